"""Boxes that are written for annotation tools are read back by convert: the same boxes on the same frames."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stnet.data.convert import convert
from stnet.data.formats.marks import FoundBox, VideoBoxes
from stnet.data.formats.writing import EXPORTS
from stnet.data.index import load_index

WIDTH, HEIGHT, LENGTH = 60, 44, 7


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "clip"
    folder.mkdir()
    for number in range(LENGTH):
        Image.fromarray(np.full((HEIGHT, WIDTH), 30 * number, np.uint8)).save(folder / f"{number:06d}.png")
    return folder


@st.composite
def boxes(draw):
    """Lesions that come and go, and boxes that belong to none."""
    frames: dict[int, list[FoundBox]] = {}
    for instance in draw(st.lists(st.sampled_from((None, 3, 5, 8)), unique_by=lambda n: n or object(), max_size=4)):
        label = draw(st.sampled_from(("benign", "malignant")))
        for number in draw(st.sets(st.integers(0, LENGTH - 1), max_size=LENGTH)):
            x, y = draw(st.integers(0, 8 * (WIDTH - 3))) / 8, draw(st.integers(0, 8 * (HEIGHT - 3))) / 8
            right, bottom = x + draw(st.floats(1.5, WIDTH - x)), y + draw(st.floats(1.5, HEIGHT - y))
            score = draw(st.none() | st.floats(0, 1))
            found = FoundBox(label=label, box=(x, y, right, bottom), score=score, instance=instance)
            frames.setdefault(number, []).append(found)
    return {number: tuple(found) for number, found in frames.items()}


def video(found) -> VideoBoxes:
    return VideoBoxes(
        name="clip",
        source="clip.mp4",
        size=(WIDTH, HEIGHT),
        frames=LENGTH,
        fps=25.0,
        labels=("benign", "malignant"),
        boxes=found,
    )


def save(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", EXPORTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=boxes())
def test_round_trip(name, clip, tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("trip")
    save(folder, EXPORTS[name](video(found)))
    marks = folder / "labels" if name == "yolo" else next(folder.iterdir())
    done = convert(clip, marks, folder / "out", split="val")
    assert done.frames_with_boxes == len(found) and done.negatives == LENGTH - len(found)
    for number, frame in enumerate(load_index(folder / "out", "val").videos[0].frames):
        written = sorted((1 + (one.label == "malignant"), *one.box) for one in found.get(number, ()))
        read = sorted((int(label), *box) for label, box in zip(frame.labels, frame.boxes.tolist(), strict=True))
        np.testing.assert_allclose(np.array(read), np.array(written), atol=0.011)
    numbers = [entry["instance_id"] for entry in json.loads((folder / "out" / "val.json").read_text())["annotations"]]
    if name != "yolo":  # which has no place for lesions
        assert len(set(numbers)) == len(video(found).tracks())


def test_what_other_tools_expect():
    found = {1: (FoundBox(label="benign", box=(6, 11, 30, 22), score=0.5, instance=2),)}
    (task,) = json.loads(EXPORTS["label-studio"](video(found))["clip.json"])
    value = task["predictions"][0]["result"][0]["value"]
    assert value["framesCount"] == LENGTH and value["labels"] == ["benign"]
    key = {"frame": 2, "time": 0.04, "enabled": False, "rotation": 0, "x": 10, "y": 25, "width": 40, "height": 25}
    assert value["sequence"] == [key]
    root = ElementTree.fromstring(EXPORTS["cvat"](video(found))["clip.xml"])
    assert [(box.get("frame"), box.get("outside")) for box in root.iter("box")] == [("1", "0"), ("2", "1")]
    assert root.findtext("meta/task/stop_frame") == "6" and root.findtext("meta/source") == "clip.mp4"
    files = EXPORTS["yolo"](video(found))
    assert files["labels/clip/000001.txt"] == "0 0.30000000 0.37500000 0.40000000 0.25000000\n"
    assert files["labels/clip/000000.txt"] == ""
    assert files["data.yaml"] == 'names:\n  0: "benign"\n  1: "malignant"\n'
    document = json.loads(EXPORTS["coco-vid"](video(found))["clip.json"])
    (entry,) = document["annotations"]
    assert (entry["bbox"], entry["score"], entry["instance_id"], entry["image_id"]) == ([6, 11, 24, 11], 0.5, 2, 2)
    assert document["images"][1]["frame_id"] == 1
