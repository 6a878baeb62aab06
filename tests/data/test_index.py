"""The loader on the layout of BUV: what it repairs, what it refuses, and what it says."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stnet.data.annotations.box_repair import repair_box
from stnet.data.index import load_index
from stnet.errors import DataError

SMALL = {
    "categories": [{"id": 7, "name": "malignant"}, {"id": 3, "name": "Benign"}],
    "videos": [{"id": 1, "name": "left"}],
    "images": [
        {"id": 5, "file_name": "left/b.png", "height": 20, "width": 30, "video_id": 1, "frame_id": 1},
        {"id": 4, "file_name": "left/a.png", "height": 20, "width": 30, "video_id": 1, "frame_id": 0},
        {
            "id": 6,
            "file_name": "left/c.png",
            "height": 20,
            "width": 30,
            "video_id": 1,
            "frame_id": 2,
            "annotated": False,
        },
    ],
    "annotations": [{"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4]}],
}


def write(root: Path, document, name: str = "train.json", rawframes: bool = True) -> Path:
    root.mkdir(exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (root / name).write_text(text)
    if isinstance(document, str):
        return root
    for image in document["images"]:
        path = root / ("rawframes" if rawframes else "") / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (image["width"], image["height"])).save(path)
    return root


def changed(**changes) -> dict:
    """The small document with entries replaced: `images__0__id=9` sets `images[0]["id"]`."""
    document = copy.deepcopy(SMALL)
    for path, value in changes.items():
        keys = [int(key) if key.isdigit() else key for key in path.split("__")]
        target = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value
    return document


@pytest.mark.parametrize("rawframes", [True, False])
def test_minimal_form(tmp_path, rawframes):
    index = load_index(write(tmp_path, SMALL, rawframes=rawframes), "train")
    assert index.class_names == ("benign", "malignant")
    (video,) = index.videos
    assert [frame.image_id for frame in video.frames] == [4, 5, 6]
    assert [frame.annotated for frame in video.frames] == [True, True, False]
    assert video.frames[0].boxes.tolist() == [[1, 2, 4, 6]] and video.frames[0].labels.tolist() == [2]
    assert video.frames[1].boxes.shape == (0, 4) and video.frames[1].labels.dtype == np.int64
    assert video.frames[0].path.is_file() and index.repairs == ()


def test_schema_example_of_buv(tmp_path, shared):
    document = json.loads((shared / "data" / "buv_schema_example.json").read_text())
    index = load_index(write(tmp_path, document, "imagenet_vid_train_15frames.json"), "train")
    first, second = index.videos
    assert first.frames[1].boxes.tolist() == [[0, 71, 189, 233], [300, 200, 360, 240]]
    assert second.frames[0].boxes.tolist() == [[1, 92, 142, 206]] and second.frames[0].labels.tolist() == [1]
    assert [repair.kind for repair in index.repairs] == ["clipped box", "reversed box"]
    assert "annotations[1] (id 2)" in str(index.repairs[0])


@pytest.mark.parametrize(
    "split, name", [("train", "train.json"), ("val", "val.json"), ("val", "imagenet_vid_val.json")]
)
def test_file_names_of_splits(tmp_path, split, name):
    assert load_index(write(tmp_path, SMALL, name), split).annotation_file == tmp_path / name


def test_annotation_file_by_path(tmp_path):
    write(tmp_path, SMALL, "mine.json")
    assert load_index(tmp_path, "mine.json").annotation_file == tmp_path / "mine.json"
    assert load_index(tmp_path, tmp_path / "mine.json").videos
    with pytest.raises(DataError, match="no such file"):
        load_index(tmp_path, "other.json")


def test_ambiguous_or_missing_split(tmp_path):
    write(tmp_path, SMALL, "val.json")
    with pytest.raises(DataError, match=r"no imagenet_vid_train_15frames\.json or train\.json"):
        load_index(tmp_path, "train")
    write(tmp_path, SMALL, "imagenet_vid_val.json")
    with pytest.raises(DataError, match="name the one to use"):
        load_index(tmp_path, "val")
    with pytest.raises(DataError, match="give train, val"):
        load_index(tmp_path, "test")


def test_empty_box_leaves_the_frame_unannotated(tmp_path):
    index = load_index(write(tmp_path, changed(annotations__0__bbox=[4, 4, 0, 5])), "train")
    assert not index.videos[0].frames[0].annotated
    assert [repair.kind for repair in index.repairs] == ["empty box", "frame left without boxes"]


def buv(names: list[str]) -> dict:
    return {
        "categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}],
        "videos": [{"id": i, "name": name} for i, name in enumerate(names)],
        "images": [
            {"id": i, "file_name": f"{name}/0.png", "height": 8, "width": 8, "video_id": i, "frame_id": 0}
            for i, name in enumerate(names)
        ],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i, name in enumerate(names)],
    }


def test_errata_of_buv(tmp_path):
    write(tmp_path, buv(["benign/x66ef02e7f1b9a0ef", "benign/x63c9ba1377f35bf6", "benign/x1"]))
    index = load_index(tmp_path, "train")
    assert [video.name for video in index.videos] == ["benign/x63c9ba1377f35bf6", "benign/x1"]
    assert [video.frames[0].labels.tolist() for video in index.videos] == [[2], [1]]
    assert [repair.kind for repair in index.repairs] == ["BUV erratum"] * 2
    untouched = load_index(tmp_path, "train", errata=False)
    assert len(untouched.videos) == 3 and untouched.repairs == ()


def test_other_classes_keep_the_order_of_their_ids(tmp_path):
    document = changed(categories=[{"id": 7, "name": "cyst"}, {"id": 3, "name": "benign"}])
    index = load_index(write(tmp_path, document), "train")
    assert index.class_names == ("benign", "cyst") and index.videos[0].frames[0].labels.tolist() == [2]
    reordered = load_index(tmp_path, "train", class_names=("cyst", "benign"))
    assert reordered.videos[0].frames[0].labels.tolist() == [1]
    with pytest.raises(DataError, match=r"categories \(id 7\).*'cyst'.*rename"):
        load_index(tmp_path, "train", class_names=("benign", "malignant"))


REFUSED = {
    "parent": (changed(images__0__file_name="left/../../x.png"), r"images\[0\] \(id 5\).*leaves the folder"),
    "absolute": (changed(images__0__file_name="/etc/passwd"), "absolute path"),
    "nul": (changed(images__0__file_name="a\0.png"), "control character"),
    "unc": (changed(images__0__file_name="\\\\host\\share.png"), "Windows path"),
    "drive": (changed(images__0__file_name="C:/x.png"), "Windows path"),
    "long name": (changed(images__0__file_name="x" * 5000), "5000 characters"),
    "half a character": (changed(images__0__file_name="left/\ud800.png"), "half a character"),
    "name no disk holds": (changed(images__0__file_name="x" * 300), "File name too long"),
    "empty name": (changed(images__0__file_name=""), "0 characters"),
    "name type": (changed(images__0__file_name=["x"]), "write a string"),
    "video name": (changed(videos__0__name="../left"), r"videos\[0\] \(id 1\).*leaves the folder"),
    "image id twice": (changed(images__0__id=4), r"images\[1\] \(id 4\): id 4 occurs twice"),
    "video id twice": (changed(videos=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "occurs twice"),
    "video name twice": (
        changed(videos=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
        "names two videos",
    ),
    "frame twice": (
        changed(images__0__frame_id=0),
        r"images\[1\] \(id 4\): frame_id 0 .* also images\[0\]",
    ),
    "unknown category": (
        changed(annotations__0__category_id=1),
        r"annotations\[0\]: category_id 1 is not among",
    ),
    "unknown image": (changed(annotations__0__image_id=1), "image_id 1 is not among"),
    "unknown video": (changed(images__0__video_id=2), "video_id 2 is not among"),
    "no categories": (changed(categories=[]), "list the classes"),
    "categories missing": ({k: v for k, v in SMALL.items() if k != "categories"}, "`categories` is missing"),
    "images an object": (changed(annotations={}), "`annotations` is a JSON dict"),
    "entry a string": (changed(annotations__0="x"), "no JSON object"),
    "id true": (changed(images__0__id=True), "id is True"),
    "id text": (changed(images__0__id="5"), "id is '5'"),
    "id huge": (changed(images__0__id=10**40), "write an integer"),
    "frame id missing": (
        changed(images__0={"id": 5, "file_name": "x", "height": 1, "width": 1, "video_id": 1}),
        "frame_id is missing",
    ),
    "height zero": (changed(images__0__height=0), "height is 0"),
    "width bomb": (changed(images__0__width=10**9), "write an integer from 1 to 16384"),
    "box of three": (changed(annotations__0__bbox=[1, 2, 3]), "four finite numbers"),
    "box of text": (changed(annotations__0__bbox=["1", 2, 3, 4]), "four finite numbers"),
    "box overflow": (changed(annotations__0__bbox=[1e300, 2, 3, 4]), "four finite numbers"),
    "box of NaN": (changed(annotations__0__bbox=[float("nan"), 2, 3, 4]), r"annotations\[0\].* \[nan, 2"),
    "box of Infinity": (changed(annotations__0__bbox=[1, 2, float("inf"), 4]), "four finite numbers"),
    "height NaN": (changed(images__0__height=float("nan")), "height is nan"),
    "box of bool": (changed(annotations__0__bbox=[True, 2, 3, 4]), "four finite numbers"),
    "contradiction": (changed(images__1__annotated=False), r"images\[1\] \(id 4\): annotated is false"),
    "annotated text": (changed(images__0__annotated="no"), "true or false"),
    "class twice": (changed(categories__1__name="Malignant"), "merge them"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_entry_and_remedy(tmp_path, case):
    document, message = REFUSED[case]
    (tmp_path / "train.json").write_text(json.dumps(document))
    for name in "abc":
        (tmp_path / "left").mkdir(exist_ok=True)
        (tmp_path / "left" / f"{name}.png").touch()
    with pytest.raises(DataError, match=message) as caught:
        load_index(tmp_path, "train")
    assert "train.json" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"categories": NaN}', "`categories` is a JSON float"),
        ('{"images": [', "not valid JSON"),
        ("[]", "JSON list"),
        ("", "is an empty file"),
        ('{"categories": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\xff", "categories"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, text, message):
    if text == "\xff":
        text, message = '{"x": "\\ud800"}', "`categories` is missing"
    write(tmp_path, text)
    with pytest.raises(DataError, match=message):
        load_index(tmp_path, "train")


def test_infinite_number_by_overflow(tmp_path):
    write(tmp_path, SMALL)
    text = json.dumps(SMALL).replace("[1, 2, 3, 4]", "[1e999, 2, 3, 4]")
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match="four finite numbers"):
        load_index(tmp_path, "train")


def test_invalid_encoding(tmp_path):
    (tmp_path / "train.json").write_bytes(b'{"categories": "\xff\xfe"}')
    with pytest.raises(DataError, match="not valid JSON"):
        load_index(tmp_path, "train")


def test_file_beyond_the_size_limit(tmp_path, monkeypatch):
    write(tmp_path, SMALL)
    monkeypatch.setattr("stnet.data.annotations.entries.MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="only 100 are read"):
        load_index(tmp_path, "train")


@pytest.mark.parametrize("link", ["folder", "file"])
def test_symbolic_links_may_not_lead_out(tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = write(tmp_path / "data", SMALL)
    folder = root / "rawframes" / "left"
    if link == "folder":
        folder.rename(outside / "left")
        folder.symlink_to(outside / "left")
    else:
        (folder / "a.png").rename(outside / "a.png")
        (folder / "a.png").symlink_to(outside / "a.png")
    with pytest.raises(DataError, match="symbolic link"):
        load_index(root, "train")


def test_links_inside_and_a_linked_root_are_fine(tmp_path):
    root = write(tmp_path / "data", SMALL)
    (root / "rawframes" / "left").rename(root / "rawframes" / "moved")
    (root / "rawframes" / "left").symlink_to("moved")
    (tmp_path / "linked").symlink_to(root)
    assert load_index(tmp_path / "linked", "train").videos


def test_missing_frame_and_missing_root(tmp_path):
    write(tmp_path, SMALL)
    (tmp_path / "rawframes" / "left" / "a.png").unlink()
    with pytest.raises(DataError, match=r"images\[1\] \(id 4\): no file .*a\.png.*--repair"):
        load_index(tmp_path, "train")
    with pytest.raises(DataError, match="no such folder"):
        load_index(tmp_path / "nowhere", "train")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=json_values)
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory, data, value):
    """Whatever replaces a value, the loader raises DataError or returns sound boxes, nothing else."""
    document = copy.deepcopy(SMALL)
    target = document
    while True:
        key = data.draw(st.sampled_from(list(target) if isinstance(target, dict) else range(len(target))))
        if not isinstance(target[key], dict | list) or data.draw(st.booleans()):
            break
        target = target[key]
        if not target:
            return
    target[key] = value
    root = tmp_path_factory.mktemp("fuzz")
    write(root, SMALL)
    (root / "train.json").write_text(json.dumps(document))
    try:
        index = load_index(root, "train")
    except DataError:
        return
    for frame in (frame for video in index.videos for frame in video.frames):
        assert (frame.boxes[:, 2:] > frame.boxes[:, :2]).all() and (frame.boxes >= 0).all()
        assert frame.path.resolve().is_relative_to(root.resolve())


coordinates = st.floats(-1000, 1000, width=32)


@given(bbox=st.tuples(coordinates, coordinates, coordinates, coordinates))
def test_a_reversed_box_is_the_same_box(bbox):
    x, y, w, h = bbox
    corners, _ = repair_box(bbox, 300, 400)
    mirrored, _ = repair_box((x + w, y + h, -w, -h), 300, 400)
    if corners is None or mirrored is None:
        return
    np.testing.assert_allclose(corners, mirrored, atol=1e-3)
    x0, y0, x1, y1 = corners
    assert 0 <= x0 < x1 <= 400 and 0 <= y0 < y1 <= 300
