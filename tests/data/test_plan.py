"""Training on a set with faults, and on its repaired copy, is the same training; or both are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.data.annotations.box_repair import repair_box
from stnet.data.annotations.entries import parse_annotations
from stnet.data.annotations.facts import FrameFacts
from stnet.data.annotations.plan import plan_repairs
from stnet.data.annotations.repairs import apply_repairs
from stnet.data.check import check_dataset, repair_dataset
from stnet.data.clips.dataset import ClipDataset
from stnet.data.clips.transforms import paper_training_transform
from stnet.data.index import load_index
from stnet.data.phantom import write_phantoms
from stnet.errors import DataError


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("plan") / "set", 4, 1, 2, frames=5, height=48, width=60)


@pytest.fixture
def dataset(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


def assert_same(index, other) -> None:
    """Training on both is the same: frames, boxes and labels, what counts, and what a clip holds."""
    assert index.class_names == other.class_names
    assert [video.name for video in index.videos] == [video.name for video in other.videos]
    for one, two in zip(index.videos, other.videos, strict=True):
        for a, b in zip(one.frames, two.frames, strict=True):
            assert (a.path, a.image_id, a.frame_id, a.annotated) == (b.path, b.image_id, b.frame_id, b.annotated)
            assert (a.height, a.width, a.labels.tolist()) == (b.height, b.width, b.labels.tolist())
            np.testing.assert_array_equal(a.boxes, b.boxes)
    first, second = (ClipDataset(i, 6, paper_training_transform(32, 64), seed=5) for i in (index, other))
    assert len(first) == len(second)
    for item in range(0, len(first), 7):
        one, two = first[item], second[item]
        assert torch.equal(one.images, two.images) and one.frames == two.frames
        assert all(map(torch.equal, one.boxes, two.boxes)) and one.annotated == two.annotated


class Fault:
    """Plants one fault into a document (and its frames)."""

    def __init__(self, root):
        self.root = root
        self.file = root / "train.json"
        self.document = json.loads(self.file.read_text())
        self.images, self.boxes, self.videos, self.categories = (
            self.document[name] for name in ("images", "annotations", "videos", "categories")
        )
        self.box = self.boxes[3]
        self.image = next(image for image in self.images if image["id"] == self.box["image_id"])

    def frame(self, image):
        return self.root / "rawframes" / image["file_name"]

    def resize(self, height, width):
        Image.open(self.frame(self.image)).resize((width, height)).save(self.frame(self.image))

    def rename_video(self, name):
        """Give the video of the box a name of BUV; the files stay."""
        next(v for v in self.videos if v["id"] == self.image["video_id"])["name"] = name

    def of_image(self, image):
        return [box for box in self.boxes if box["image_id"] == image["id"]]

    def without_boxes(self):
        self.boxes[:] = [box for box in self.boxes if box["image_id"] != self.image["id"]]

    def turn(self, degrees) -> None:
        self.box["attributes"] = {"rotation": degrees}


def reverse(box):
    x, y, w, h = box["bbox"]
    box["bbox"] = [x + w, y + h, -w, -h]


def link_out(fault):
    outside = fault.root.parent / "outside.png"
    fault.frame(fault.image).rename(outside)
    fault.frame(fault.image).symlink_to(outside)


def list_twice(fault, **changes):
    """A second entry for the file of the box, at the end of its video, without boxes."""
    fault.images.append(fault.image | {"id": 900, "frame_id": 900} | changes)


def mark_second_entry(fault):
    list_twice(fault)
    fault.box["image_id"] = 900


def annotate_second_entry(fault):
    list_twice(fault)
    fault.without_boxes()
    fault.image["annotated"] = False


LOADS = {
    "reversed": lambda f: reverse(f.box),
    "beyond the left": lambda f: f.box["bbox"].__setitem__(0, -3.7),
    "beyond the right": lambda f: f.box["bbox"].__setitem__(2, 1000 / 3),
    "reversed and beyond": lambda f: f.box.update(bbox=[50.3, 40.1, -60.7, -20.9]),
    "beyond by rounding": lambda f: f.box.update(bbox=[0.1, 0.1, 59.9 + 1e-9, 20]),
    "empty": lambda f: f.box["bbox"].__setitem__(2, 0),
    "outside": lambda f: f.box.update(bbox=[70, 2, 10, 10]),
    "drawn twice": lambda f: f.boxes.append(f.box | {"id": 900}),
    "drawn twice, almost": lambda f: f.boxes.append(f.box | {"id": 900, "bbox": [v * 1.001 for v in f.box["bbox"]]}),
    "drawn twice, reversed": lambda f: (f.boxes.append(f.box | {"id": 900}), reverse(f.boxes[-1])),
    "id of a box twice": lambda f: f.box.update(id=f.boxes[5]["id"]),
    "no id and empty": lambda f: (f.box.pop("id"), f.box.update(bbox=[1, 1, 3, 0])),
    "crowd, to be ignored": lambda f: (
        f.boxes.append(f.box | {"id": 900, "bbox": [1, 1, 9, 9]}),
        f.box.update(ignore=True),
    ),
    "file listed twice": list_twice,
    "file listed twice, spelled otherwise": lambda f: list_twice(
        f, id=901, frame_id=901, file_name="./" + f.image["file_name"]
    ),
    "file listed twice, marked the second time": mark_second_entry,
    "file listed twice, looked at the second time": annotate_second_entry,
    "rotated": lambda f: f.box.update(rotation=30),
    "rotated, by its attributes": lambda f: f.box.update(attributes={"rotation": 90.0, "occluded": False}),
    "rotated and beyond": lambda f: f.box.update(bbox=[30, 10, -60, 8], rotation=-45.5),
    "rotated on a crowd's frame": lambda f: (f.boxes.append(f.box | {"id": 900, "iscrowd": 1}), f.turn(20)),
    "video without frames": lambda f: f.videos.append({"id": 900, "name": "nobody"}),
    "image twice, word for word": lambda f: f.images.append(dict(f.images[2])),
    "class twice, word for word": lambda f: f.categories.append(dict(f.categories[0])),
    "BUV duplicate": lambda f: f.rename_video("benign/x66ef02e7f1b9a0ef"),
    "BUV label": lambda f: (f.rename_video("benign/x63c9ba1377f35bf6"), f.box.update(category_id=1)),
}
REGIONS = {
    "crowd": lambda f: f.box.update(iscrowd=1),
    "region to be ignored": lambda f: f.box.update(ignore=True),
    "crowd beside a box": lambda f: f.boxes.append(f.box | {"id": 900, "bbox": [1, 1, 9, 9], "iscrowd": True}),
    "crowd on a frame that is not annotated": lambda f: (f.image.update(annotated=False), f.box.update(iscrowd=1)),
    "crowd on the second entry of a file": lambda f: (
        list_twice(f),
        f.boxes.append(f.box | {"id": 900, "image_id": 900, "bbox": [1, 1, 9, 9], "iscrowd": 1}),
    ),
}
REFUSED = {
    "box of text": lambda f: f.box.update(bbox=["wide", 1, 2, 3]),
    "box of NaN": lambda f: f.box["bbox"].__setitem__(1, float("nan")),
    "box no object": lambda f: f.boxes.__setitem__(3, "box"),
    "crowd or not": lambda f: f.box.update(iscrowd="maybe"),
    "crowd without a box": lambda f: f.boxes.append(
        {k: f.box[k] for k in ("image_id", "category_id")} | {"iscrowd": 1}
    ),
    "crowd on a picture of another scale": lambda f: (f.resize(96, 120), f.box.update(iscrowd=1)),
    "unknown class": lambda f: f.box.update(category_id=17),
    "unknown image": lambda f: f.box.update(image_id=1700),
    "unknown video": lambda f: f.image.update(video_id=1700),
    "missing frame": lambda f: f.frame(f.image).unlink(),
    "empty file": lambda f: f.frame(f.image).write_bytes(b""),
    "link out": link_out,
    "path out": lambda f: f.image.update(file_name="../x.png"),
    "height 0": lambda f: f.image.update(height=0),
    "rotated by nobody knows": lambda f: f.turn("much"),
    "rotated on a picture of another scale": lambda f: (f.resize(96, 120), f.turn(90)),
    "other shape": lambda f: f.resize(48, 80),
    "other shape, no box": lambda f: (f.resize(48, 80), f.without_boxes()),
    "other scale": lambda f: f.resize(96, 120),
    "other scale and beyond": lambda f: (f.resize(24, 30), f.box["bbox"].__setitem__(0, -3)),
    "contradiction": lambda f: f.image.update(annotated=False),
    "contradiction and empty": lambda f: (f.image.update(annotated=False), f.box["bbox"].__setitem__(3, 0)),
    "class named twice": lambda f: (f.categories.append({"id": 9, "name": "BENIGN"}), f.box.update(category_id=9)),
    "frame at a taken place": lambda f: f.images.append(f.images[-1] | {"id": 900}),
    "video named twice": lambda f: f.videos[1].update(name=f.videos[0]["name"]),
}
UNDECIDED = {
    "id of an image twice": lambda f: f.images[4].update(id=f.images[7]["id"]),
    "id of a video twice": lambda f: f.videos[1].update(id=f.videos[0]["id"]),
    "id of a class twice": lambda f: f.categories[1].update(id=f.categories[0]["id"]),
    "no class": lambda f: f.categories.clear(),
}


def planted(root, plant):
    fault = Fault(root)
    plant(fault)
    fault.file.write_text(json.dumps(fault.document))
    return fault


def repaired_copy(root):
    """The index of the set once repaired; there is nothing left to repair."""
    repair_dataset(check_dataset(root), accept_loss=True)
    assert not [repair for split in check_dataset(root).splits for repair in split.repairs]
    index = load_index(root, "train")
    assert index.repairs == ()
    return index


@pytest.mark.parametrize("name", LOADS | REGIONS)
def test_what_loads_trains_like_its_repaired_copy(dataset, name):
    planted(dataset, (LOADS | REGIONS)[name])
    as_it_is = load_index(dataset, "train")
    assert bool(as_it_is.repairs) == (name != "beyond by rounding")
    assert_same(as_it_is, repaired_copy(dataset))


@pytest.mark.parametrize("name", [*REGIONS, *(name for name in REFUSED if "crowd" in name)])
def test_a_frame_with_a_crowd_region_counts_as_not_annotated(dataset, name):
    fault = planted(dataset, (REGIONS | REFUSED)[name])
    index = repaired_copy(dataset) if name in REFUSED else load_index(dataset, "train")
    (frame,) = (f for v in index.videos for f in v.frames if f.image_id == fault.image["id"])
    assert not frame.annotated and len(frame.boxes) == 0


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("key", ["rotation", "attributes"])
def test_rotated_boxes_are_loaded_as_they_are_converted(dataset, key, scale):
    fault = Fault(dataset)
    fault.box.update({"bbox": [10, 20, 30, 10], key: 90 if key == "rotation" else {"rotation": 90}})
    fault.resize(48 * scale, 60 * scale)
    fault.file.write_text(json.dumps(fault.document))
    index = load_index(dataset, "train") if scale == 1 else repaired_copy(dataset)
    (frame,) = (f for v in index.videos for f in v.frames if f.image_id == fault.image["id"])
    assert [20 * scale, 10 * scale, 30 * scale, 40 * scale] in frame.boxes.tolist()
    assert [repair.kind for repair in load_index(dataset, "train").repairs] == ["rotated box"] or scale == 2


def test_boxes_that_say_they_are_no_crowd_stay(dataset):
    before, fault = load_index(dataset, "train"), Fault(dataset)
    for number, box in enumerate(fault.boxes):
        box.update(iscrowd=(False, 0, 0.0)[number % 3], ignore=0)
    fault.file.write_text(json.dumps(fault.document))
    index = load_index(dataset, "train")
    assert index.repairs == ()
    assert_same(index, before)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_loads_once_repaired(dataset, clean, name):
    fault = planted(dataset, REFUSED[name])
    with pytest.raises(DataError, match="--repair"):
        load_index(dataset, "train")
    index = repaired_copy(dataset)
    # All that the fault has nothing to do with is as it was.
    before = {frame.image_id: frame for video in load_index(clean, "train").videos for frame in video.frames}
    touched = {fault.image["id"], 900} | ({i["id"] for i in fault.images} if "video" in name else set())
    frames = [frame for video in index.videos for frame in video.frames]
    for frame in frames:
        if frame.image_id not in touched:
            np.testing.assert_array_equal(frame.boxes, before[frame.image_id].boxes)
            assert frame.annotated == before[frame.image_id].annotated
    assert len(frames) >= len(before) - 1


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_may_mean_either_is_left_to_a_person(dataset, name):
    fault = planted(dataset, UNDECIDED[name])
    before = fault.file.read_text()
    report = check_dataset(dataset)
    found = [finding for finding in report.findings if finding.kind in {"duplicate id", "missing categories"}]
    assert found and not any("--repair" in finding.remedy for finding in found)
    with pytest.raises(DataError) as caught:
        load_index(dataset, "train")
    assert "--repair" not in str(caught.value)
    if len(report.findings) == len(found):
        assert repair_dataset(report, accept_loss=True) == [] and fault.file.read_text() == before


def test_example_of_buv_trains_like_its_repaired_copy(buv_example):
    as_it_is = load_index(buv_example, "train")
    assert [repair.kind for repair in as_it_is.repairs] == ["clipped box", "reversed box"]
    assert_same(as_it_is, repaired_copy(buv_example))


def test_all_that_loads_at_once(dataset):
    """Faults on one frame meet: the order of their treatment is the same for both."""
    fault = Fault(dataset)
    for plant in LOADS.values():
        plant(fault)
    fault.file.write_text(json.dumps(fault.document))
    assert_same(load_index(dataset, "train"), repaired_copy(dataset))


def test_boxes_follow_a_picture_of_another_scale(dataset):
    fault = planted(dataset, REFUSED["other scale"])
    (frame,) = (f for v in repaired_copy(dataset).videos for f in v.frames if f.image_id == fault.image["id"])
    assert (frame.height, frame.width) == (96, 120)
    x, y, w, h = fault.box["bbox"]
    expected = repair_box((2 * x, 2 * y, 2 * w, 2 * h), 96, 120)[0]
    np.testing.assert_allclose(frame.boxes[0], expected, rtol=1e-6)


def test_boxes_go_where_a_picture_has_another_shape(dataset):
    fault = planted(dataset, REFUSED["other shape"])
    (frame,) = (f for v in repaired_copy(dataset).videos for f in v.frames if f.image_id == fault.image["id"])
    assert (frame.height, frame.width) == (48, 80) and len(frame.boxes) == 0 and not frame.annotated


@pytest.mark.parametrize("sizes", [((90, 128), (600, 850)), ((600, 850), (90, 128)), ((3, 4), (480, 640))])
def test_rounded_sizes_are_still_the_same_picture(sizes):
    (height, width), size = sizes
    document = {
        "categories": [{"id": 1, "name": "benign"}],
        "videos": [{"id": 1, "name": "v"}],
        "images": [{"id": 1, "file_name": "x.png", "height": height, "width": width, "video_id": 1, "frame_id": 0}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1, 1]}],
    }
    annotations = parse_annotations(document, "train.json")
    facts = FrameFacts(paths={}, unusable={}, sizes={1: size})
    repaired = apply_repairs(document, plan_repairs(annotations, facts))
    across, down = size[1] / width, size[0] / height
    assert repaired["annotations"][0]["bbox"] == [across, down, across, down]
    assert document["annotations"][0]["bbox"] == [1, 1, 1, 1]


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_frame_with_a_crowd_is_no_target(dataset, key):
    def plant(fault):
        fault.box[key] = 1
        fault.boxes.append(fault.box | {"id": 900, "bbox": [1, 1, 9, 9], key: 0})

    fault = Fault(dataset)
    name = fault.image["file_name"]
    planted(dataset, plant)
    frame = next(f for v in load_index(dataset, "train").videos for f in v.frames if str(f.path).endswith(name))
    assert not frame.annotated and not len(frame.boxes)
