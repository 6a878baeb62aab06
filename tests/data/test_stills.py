"""Pseudo-videos of stills: boxes follow the pixels, lesion-free stretches exist, bad input is named."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from stnet.data.index import load_index
from stnet.data.still_sets.made import Held, Moving
from stnet.data.still_sets.repeats import leave_out_repeats
from stnet.data.still_sets.stills import read_coco_stills
from stnet.data.stills import write_stills
from stnet.data.stills_command import main
from stnet.data.synthetic.pseudo_video import render_still
from stnet.errors import ConfigError, DataError

SIZE = {"height": 48, "width": 60}


def ellipse(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    inside = ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25
    return np.where(inside, 230, 40).astype(np.uint8)


def brighter(annotation_file, folder):
    """A copy of a set with other pixels."""
    shutil.copytree(annotation_file.parent, folder)
    for path in folder.rglob("*.png"):
        Image.fromarray(np.array(Image.open(path)) + np.uint8(9)).save(path)
    return folder / annotation_file.name


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Six stills with one bright ellipse, and one without any."""
    root = tmp_path_factory.mktemp("stills")
    (root / "train").mkdir()
    images, annotations = [], []
    for i in range(7):
        box = (20 + 10 * i, 30, 50 + 10 * i, 50)
        pixels = ellipse(120, 160, box) if i < 6 else np.full((120, 160), 40, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"s{i}.png")
        images.append({"id": 50 + i, "file_name": f"train/s{i}.png", "height": 120, "width": 160})
        if i < 6:
            x0, y0, x1, y1 = box
            bbox = [x0, y0, x1 - x0, y1 - y0]
            annotations.append({"id": i, "image_id": 50 + i, "category_id": 1 + i % 2, "bbox": bbox})
    categories = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]
    document = {"categories": categories, "images": images, "annotations": annotations}
    (root / "train.json").write_text(json.dumps(document))
    return root / "train.json"


def videos(coco, seeds):
    index = read_coco_stills(coco).index
    for seed in seeds:
        for video in index.videos[:6]:
            (still,) = video.frames
            pixels = np.array(Image.open(still.path))
            yield still, render_still(pixels, still, np.random.default_rng(seed), frames=8, **SIZE)


def test_boxes_follow_the_pixels(coco):
    checked = 0
    for still, video in videos(coco, range(3)):
        for frame, boxes, labels, annotated in zip(
            video.frames, video.boxes, video.labels, video.annotated, strict=True
        ):
            rows, columns = np.nonzero(frame > 130)
            if not annotated:
                assert len(boxes) == 0
                continue
            if not len(boxes):
                assert len(rows) < 3
                continue
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(boxes[0], seen, atol=2.5)
            assert labels.tolist() == still.labels.tolist()
            checked += 1
    assert checked > 80


def test_views_move_slowly_and_lesion_free_stretches_exist(coco):
    free, moved = 0, 0
    for _, video in videos(coco, range(4)):
        shown = [len(boxes) > 0 for boxes, annotated in zip(video.boxes, video.annotated, strict=True) if annotated]
        free += not all(shown)
        assert any(shown)
        centres = [(b[0, :2] + b[0, 2:]) / 2 for b in video.boxes if len(b)]
        moved += len(centres) > 1 and np.ptp(np.array(centres), axis=0).max() > 3
        for a, b in zip(video.boxes, video.boxes[1:], strict=False):
            if len(a) and len(b):
                assert np.abs(b - a).max() < 25
    assert free >= 4 and moved >= 12


def test_gain_and_grain_change_from_frame_to_frame(coco):
    still = read_coco_stills(coco).index.videos[6].frames[0]
    pixels = np.full((120, 160), 100, dtype=np.uint8)
    frames = render_still(pixels, still, np.random.default_rng(0), frames=6, **SIZE).frames.astype(float)
    assert all((a != b).mean() > 0.3 for a, b in itertools.pairwise(frames))
    near = np.corrcoef(frames[0].ravel(), frames[1].ravel())[0, 1]
    far = np.corrcoef(frames[0].ravel(), frames[5].ravel())[0, 1]
    assert near > far + 0.2
    black = render_still(pixels * 0, still, np.random.default_rng(0), frames=2, **SIZE).frames
    assert black.max() == 0


def test_written_data_set_is_reproducible_and_loads(coco, tmp_path):
    other = brighter(coco, tmp_path / "brighter")
    splits = {"train": [read_coco_stills(coco)], "val": [read_coco_stills(other)]}
    for name in "ab":
        write_stills(tmp_path / name, splits, 3, Moving(frames=4, **SIZE))
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 2 * 7 * 4 + 3
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    train, val = load_index(tmp_path / "a", "train"), load_index(tmp_path / "a", "val")
    assert len(train.videos) == len(val.videos) == 7 and train.repairs == ()
    labels = [set(np.concatenate([f.labels for f in video.frames])) for video in train.videos]
    assert labels == [{1}, {2}, {1}, {2}, {1}, {2}, set()]
    first = [(tmp_path / "a" / "rawframes" / video.name / "000000.png").read_bytes() for video in train.videos]
    second = [(tmp_path / "a" / "rawframes" / video.name / "000000.png").read_bytes() for video in val.videos]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_stills_whose_box_is_empty_are_not_annotated(coco, tmp_path):
    document = json.loads(coco.read_text())
    document["annotations"][0]["bbox"] = [10, 10, 0, 5]
    bad = coco.with_name("bad.json")
    bad.write_text(json.dumps(document))
    write_stills(tmp_path / "o", {"train": [read_coco_stills(bad)]}, 0, Moving(frames=2, **SIZE))
    first = load_index(tmp_path / "o", "train").videos[0]
    assert not any(frame.annotated for frame in first.frames)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"file_name": "../x.png"}, r"images\[0\] \(id 50\).*leaves the folder"),
        ({"file_name": "train/none.png"}, "no file"),
        ({"id": 51}, "occurs twice"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_bad_annotations_are_named(coco, change, message):
    document = json.loads(coco.read_text())
    document["images"][0] |= change
    bad = coco.with_name("bad.json")
    bad.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        read_coco_stills(bad)


def test_options_that_cannot_be_used(coco, tmp_path):
    stills = read_coco_stills(coco)
    for shape, message in (
        (Moving(frames=0), "frames 0"),
        (Moving(height=8), "height 8"),
        (Moving(width=9999), "width 9999"),
        (Held(longest=5), "longest 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_stills(tmp_path / "o", {"train": [stills]}, 0, shape)
    with pytest.raises(ConfigError, match="train, val or both"):
        write_stills(tmp_path / "o", {}, 0, Held())
    other = read_coco_stills(coco, class_names=("malignant", "benign"))
    with pytest.raises(DataError, match="different classes"):
        write_stills(tmp_path / "o", {"train": [stills], "val": [other]}, 0, Held())
    assert not (tmp_path / "o").exists()


def test_held_stills_are_videos_of_one_frame(coco, tmp_path):
    sets = [read_coco_stills(file) for file in (coco, brighter(coco, tmp_path / "copy"))]
    write_stills(tmp_path / "o", {"train": sets}, 0, Held(longest=80))
    index = load_index(tmp_path / "o", "train")
    assert len(index.videos) == 14 and {len(video.frames) for video in index.videos} == {1}
    frame = index.videos[8].frames[0]
    assert (frame.height, frame.width) == (60, 80)
    np.testing.assert_allclose(frame.boxes, [[15, 15, 30, 25]], atol=0.01)
    rows, columns = np.nonzero(np.array(Image.open(frame.path)) > 130)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == pytest.approx((15, 15, 30, 25), abs=1)
    assert len(index.videos[6].frames[0].boxes) == 0 and index.videos[6].frames[0].annotated


def test_a_patient_in_two_splits_is_refused(coco, tmp_path):
    files = {}
    for split, path in (("train", coco), ("val", brighter(coco, tmp_path / "v"))):
        document = json.loads(path.read_text())
        for number, image in enumerate(document["images"]):
            image["patient"] = f"{split}_{number}" if number != 3 else "same"
        files[split] = path.with_name("patients.json")
        files[split].write_text(json.dumps(document))
    splits = {split: [read_coco_stills(path)] for split, path in files.items()}
    with pytest.raises(DataError, match=r"s3.png: patient 'same' is in val and in train"):
        write_stills(tmp_path / "o", splits, 0, Held())
    with pytest.raises(DataError, match="the same image is in val and in train"):
        write_stills(tmp_path / "o", {"train": [read_coco_stills(coco)], "val": [read_coco_stills(coco)]}, 0, Held())
    assert not (tmp_path / "o").exists()
    write_stills(tmp_path / "o", {"train": [splits["train"][0]]}, 0, Held(longest=32))
    stated = json.loads((tmp_path / "o" / "train.json").read_text())["images"][3]
    assert stated["patient"] == "same" and stated["set"] == coco.parent.name
    document["images"][0]["patient"] = 7
    files["val"].write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"images\[0\]: patient is 7"):
        read_coco_stills(files["val"])


def test_command_line(coco, tmp_path, capsys):
    options = ["--train", str(coco), "--frames", "2", "--height", "32", "--width", "40"]
    assert main([str(tmp_path / "o"), *options]) == 0
    assert "7 train videos" in capsys.readouterr().out
    assert main([str(tmp_path / "o"), *options]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([str(tmp_path / "o"), *options, "--overwrite"]) == 0
    assert main([str(tmp_path / "p"), "--train", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([str(tmp_path / "p")]) == 2
    assert main([str(tmp_path / "p"), *options, "--seed", "-1"]) == 2


@pytest.mark.parametrize("shape", [["--held"], ["--frames", "2", "--height", "32", "--width", "40"]])
def test_a_full_disk_leaves_nothing_behind(coco, tmp_path, capsys, full_disk, shape):
    full_disk(3)
    assert main([str(tmp_path / "a" / "o"), "--train", str(coco), *shape]) == 2
    assert capsys.readouterr().err.endswith(".png: cannot be written (No space left on device)\n")
    assert not (tmp_path / "a").exists()


def test_real_stills(shared, tmp_path):
    file = shared / "data" / "busi" / "val.json"
    if not file.is_file():
        pytest.skip("no stills")
    stills = read_coco_stills(file)
    assert stills.index.class_names == ("benign", "malignant") and len(stills) == 124 and stills.patients == {}
    still = stills.index.videos[3].frames[0]
    pixels = np.array(Image.open(still.path).convert("L"))
    video = render_still(pixels, still, np.random.default_rng(0), frames=3, **SIZE)
    assert video.frames.shape == (3, 48, 60) and video.frames.std() > 10
    kept, lines = leave_out_repeats(stills)
    assert len(kept) == 119 and lines[0] == "busi: benign_061 left out: it is the scan of benign_094"
    assert "busi: malignant_052 left out: it is published as benign_085, benign_164 too" in lines
