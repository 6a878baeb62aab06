"""Files of results and drawings."""

import csv
import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from stnet.errors import VideoError
from stnet.inference import FrameResult, draw_detections
from stnet.inference.outputs import FILE_NAMES, VideoOutputs
from stnet.model.postprocess import Detections
from stnet.video import ArraySource, open_source

NAMES = {1: "benign", 2: "malignant"}


def detections(*rows):
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    return Detections(boxes, torch.tensor([float(row[4]) for row in rows]), torch.tensor([int(row[5]) for row in rows]))


def outputs(folder, frames: int = 3, video: bool = True) -> VideoOutputs:
    source = ArraySource(np.zeros((frames, 20, 31, 3), np.uint8), "clip", Fraction(30000, 1001))
    return VideoOutputs(
        folder,
        source,
        origin="clip [1].mp4",
        model={"checkpoint": "tiny"},
        class_names=NAMES,
        score_threshold=0.5,
        video=video,
    )


def result(index: int, found: Detections) -> FrameResult:
    image = np.zeros((20, 31, 3), np.uint8)
    return FrameResult(video="clip", index=index, time=index * 1001 / 30000, detections=found, image=image)


def test_files_hold_what_was_found(tmp_path):
    writer = outputs(tmp_path / "clip")
    writer.write(result(0, detections((1.25, 2, 10.126, 12, 0.9, 2), (-3, -4, 40, 50, 0.2, 1))))
    writer.write(result(1, detections()))
    writer.write(result(2, detections((0, 0, 5, 5, 0.5, 3))))
    writer.finish("truncated", ("3 of 9 frames",))
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == sorted(FILE_NAMES)
    data = json.loads((tmp_path / "clip" / "detections.json").read_text())
    assert data["video"] == {
        "name": "clip",
        "source": "clip [1].mp4",
        "width": 31,
        "height": 20,
        "fps": "30000/1001",
    }
    assert (data["status"], data["problems"], data["frame_count"]) == ("truncated", ["3 of 9 frames"], 3)
    assert data["class_names"] == {"1": "benign", "2": "malignant"} and data["model"] == {"checkpoint": "tiny"}
    assert data["frames"][0] == {
        "frame": 0,
        "time": 0.0,
        "boxes": [[1.25, 2.0, 10.13, 12.0], [-3.0, -4.0, 40.0, 50.0]],
        "scores": [0.9, 0.2],
        "labels": [2, 1],
    }
    assert data["frames"][1] == {"frame": 1, "time": 0.033367, "boxes": [], "scores": [], "labels": []}
    with open(tmp_path / "clip" / "detections.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["frame", "time", "x0", "y0", "x1", "y1", "score", "class"],
        ["0", "0.000000", "1.25", "2.00", "10.13", "12.00", "0.900000", "malignant"],
        ["2", "0.066733", "0.00", "0.00", "5.00", "5.00", "0.500000", "3"],
    ]
    assert (writer.frames, writer.detections, writer.frames_with_detections) == (3, 2, 2)
    video = open_source(tmp_path / "clip" / "annotated.mp4")
    assert (len(list(video)), video.fps) == (3, Fraction(30000, 1001))


def test_a_video_without_detections_and_without_drawing(tmp_path):
    writer = outputs(tmp_path, video=False)
    writer.write(result(0, detections()))
    writer.finish("ok", ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.csv", "detections.json"]


def test_abandoned_files_are_partial_and_former_ones_gone(tmp_path):
    for name in FILE_NAMES:
        (tmp_path / name).write_text("former")
    writer = outputs(tmp_path)
    writer.write(result(0, detections()))
    writer.abandon(KeyboardInterrupt())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.partial" for name in FILE_NAMES)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VideoError, match="cannot be written to"):
        outputs(tmp_path / "file" / "clip")


def test_boxes_are_drawn_where_they_are():
    image = np.full((100, 120, 3), 50, np.uint8)
    found = detections((20, 40, 80, 90, 0.9, 2), (0, 0, 119, 99, 0.1, 1))
    drawn = draw_detections(image, found, NAMES, 0.5)
    changed = (drawn != image).any(axis=2)
    assert (image == 50).all() and drawn.shape == image.shape
    assert (
        changed[40, 20:81].all() and changed[90, 20:81].all() and changed[40:91, 20].all() and changed[40:91, 80].all()
    )
    assert not changed[45:85, 25:75].any()
    assert not changed[92:].any() and not changed[:, 100:].any()


@pytest.mark.parametrize(
    "box",
    [(-50, -50, -10, -10), (200, 10, 300, 50), (10, 10, 10, 10), (float("nan"), 0, 1, 1), (float("inf"), 0, 1, 1)],
)
def test_boxes_beyond_the_frame_do_no_harm(box):
    image = np.zeros((30, 40, 3), np.uint8)
    drawn = draw_detections(image, detections((*box, 0.9, 1)), NAMES)
    inside = box == (10, 10, 10, 10)
    assert (drawn != image).any() == inside


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (8, 8)])
def test_tiny_frames(size):
    image = np.zeros((*size, 3), np.uint8)
    assert draw_detections(image, detections((-5, -5, 500, 500, 0.9, 7)), NAMES).shape == image.shape
