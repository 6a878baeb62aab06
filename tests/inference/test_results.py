"""Files of results and drawings."""

import csv
import dataclasses
import errno
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stnet.errors import ConfigError, VideoError
from stnet.inference import FrameResult, draw_detections
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.folder_lock import FolderLock
from stnet.inference.format_names import DEFAULT_FORMATS, EXPORT_NAMES, FORMAT_NAMES
from stnet.inference.formats import EXPORT_FORMATS, FORMATS, PER_VIDEO
from stnet.inference.outputs import LOCK_NAME, Outputs
from stnet.inference.report import write_report
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.model.postprocess import Detections
from stnet.video import ArraySource, open_source

NAMES = {1: "benign", 2: "malignant"}
MILLIMETRES = ("width_mm", "depth_mm", "top_mm")
WRITTEN = [FORMATS[name].file_name for name in DEFAULT_FORMATS]


def detections(*rows):
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    return Detections(boxes, torch.tensor([float(row[4]) for row in rows]), torch.tensor([int(row[5]) for row in rows]))


def outputs(folder, frames: int = 3, video: bool = True, overwrite: bool = True, lines: list | None = None) -> Outputs:
    """The formats of one video, begun."""
    source = ArraySource(np.zeros((frames, 20, 31, 3), np.uint8), "clip", Fraction(30000, 1001))
    facts = RunFacts(
        output=folder.parent,
        videos=1,
        class_names=NAMES,
        score_threshold=0.5,
        model={"checkpoint": "tiny"},
        shown={},
    )
    formats = DEFAULT_FORMATS if video else ("json", "csv")
    written = Outputs(formats, facts, overwrite, (lines if lines is not None else []).append)
    written.begin(VideoFacts(name="clip", folder=folder, source=source, origin="clip [1].mp4", frames=frames))
    return written


def end(status: str = "ok", *problems: str) -> VideoEnd:
    return VideoEnd(key=0, name="clip", status=status, problems=problems, frames=3)


def result(index: int, found: Detections) -> FrameResult:
    image = np.zeros((20, 31, 3), np.uint8)
    return FrameResult(
        video="clip", index=index, time=index * 1001 / 30000, detections=found, size=(20, 31), image=image
    )


def test_files_hold_what_was_found(tmp_path):
    writer = outputs(tmp_path / "clip")
    writer.write(result(0, detections((1.25, 2, 10.126, 12, 0.9, 2), (-3, -4, 40, 50, 0.2, 1))))
    writer.write(result(1, detections()))
    writer.write(result(2, detections((0, 0, 5, 5, 0.5, 3))))
    assert writer.end(end("truncated", "3 of 9 frames"))
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == sorted(WRITTEN)
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
        "lesions": [None, None],
    }
    empty = {"boxes": [], "scores": [], "labels": [], "lesions": []}
    assert data["frames"][1] == {"frame": 1, "time": 0.033367, **empty}
    with open(tmp_path / "clip" / "detections.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["frame", "time", "x0", "y0", "x1", "y1", "score", "class", "lesion", *MILLIMETRES],
        ["0", "0.000000", "1.25", "2.00", "10.13", "12.00", "0.900000", "malignant", "", "", "", ""],
        ["2", "0.066733", "0.00", "0.00", "5.00", "5.00", "0.500000", "3", "", "", "", ""],
    ]
    video = open_source(tmp_path / "clip" / "annotated.mp4")
    assert (len(list(video)), video.fps) == (3, Fraction(30000, 1001))


def test_a_video_without_detections_and_without_drawing(tmp_path):
    writer = outputs(tmp_path, video=False)
    writer.write(result(0, detections()))
    assert writer.end(end())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.csv", "detections.json"]


def test_abandoned_files_are_partial_and_former_ones_gone(tmp_path):
    for name in PER_VIDEO:
        (tmp_path / name).write_text("former")
    writer = outputs(tmp_path)
    writer.write(result(0, detections()))
    writer.abandon(KeyboardInterrupt())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.partial" for name in WRITTEN)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VideoError, match="choose another --output"):
        outputs(tmp_path / "file" / "clip")


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    first = outputs(tmp_path / "clip")
    with pytest.raises(VideoError, match="another run is writing there"):
        outputs(tmp_path / "clip")
    first.write(result(0, detections()))
    first.end(end())
    assert not (tmp_path / "clip" / LOCK_NAME).exists()
    with pytest.raises(ConfigError, match="results exist already"):  # finished between the check and this
        outputs(tmp_path / "clip", overwrite=False)
    outputs(tmp_path / "clip").abandon(KeyboardInterrupt())


def test_a_lock_whose_file_was_replaced_is_no_lock(tmp_path):
    """The holder removes the file when it releases; who opened it before must not believe to hold the new one."""
    path = tmp_path / LOCK_NAME
    for _ in range(3):
        lock = FolderLock(path)
        with pytest.raises(VideoError):
            FolderLock(path)
        lock.release()
        lock.release()
    path.touch()  # left by a process that was killed
    FolderLock(path).release()
    assert not path.exists()


def test_what_is_offered_is_what_is_written():
    assert (tuple(FORMATS), tuple(EXPORT_FORMATS)) == (FORMAT_NAMES, EXPORT_NAMES)
    assert [sink.format_name for sink in EXPORT_FORMATS.values()] == list(EXPORT_NAMES)


@pytest.mark.parametrize("failing", ["json", "csv", "video"])
def test_a_format_that_fails_is_given_up_and_the_others_go_on(tmp_path, monkeypatch, failing):
    def full(self, result):
        raise OSError(errno.ENOSPC, "No space left on device")

    lines: list[str] = []
    monkeypatch.setattr(FORMATS[failing], "write", full)
    writer = outputs(tmp_path / "clip", lines=lines)
    assert writer.write(result(0, detections()))
    assert writer.write(result(1, detections()))
    assert not writer.end(end()) and writer.broken
    name = FORMATS[failing].file_name
    assert lines == [f"error: {tmp_path}/clip/{name}.partial: cannot be written (No space left on device)"]
    wanted = [f"{other}.partial" if other == name else other for other in WRITTEN]
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == sorted(wanted)


NAMES_OF_FILES = ["M\udcfcller", "esc\x1b[31m", "line\nbreak", '"quoted"', "乳腺", "\u2028", "</script>"]


@pytest.mark.parametrize("name", NAMES_OF_FILES)
def test_any_name_is_written_as_text(tmp_path, name):
    source = ArraySource(np.zeros((1, 20, 31, 3), np.uint8), name)
    facts = RunFacts(
        output=tmp_path,
        videos=1,
        class_names={1: name},
        score_threshold=0.5,
        model={"checkpoint": name},
        shown={"a": name},
    )
    said: list[str] = []
    writer = Outputs(("json", "csv", "video", "report"), facts, False, said.append)
    writer.begin(VideoFacts(name=name, folder=tmp_path / "clip", source=source, origin=name, frames=1))
    writer.write(dataclasses.replace(result(0, detections((1, 2, 3, 4, 0.9, 1))), file=name))
    assert writer.end(end("truncated", name))
    write_report(facts, [VideoSummary(name="clip", status="truncated", problems=(name,), frames=1)])
    text = (tmp_path / "clip" / "detections.json").read_bytes().decode("utf-8")
    data = json.loads(text)
    expected = name.replace("\udcfc", "\\udcfc")
    assert data["video"]["source"] == data["class_names"]["1"] == data["problems"][0] == expected
    assert len(list(csv.reader((tmp_path / "clip" / "detections.csv").read_text("utf-8").splitlines()))) == 2
    assert (tmp_path / "report.html").read_bytes().decode("utf-8").endswith("</html>\n")


coordinate = st.floats(-100, 200, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 31.0, 20.0])
rows = st.lists(st.tuples(*[coordinate] * 4, st.floats(0, 1, width=32), st.sampled_from([1, 2])), max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=rows, origin=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_all_formats_tell_of_the_same_boxes(rows, origin):
    """CSV, drawing and report show what lies in the frame, cut at its borders; none shows what the others do not."""
    moved = detections(
        *((x0 + origin[0], y0 + origin[1], x1 + origin[0], y1 + origin[1], *rest) for x0, y0, x1, y1, *rest in rows)
    )
    found = dataclasses.replace(result(0, moved), origin=origin, image=np.zeros((20, 31, 3), np.uint8))
    seen, drawn = found.visible, found.visible_in_image
    assert torch.equal(seen.scores, drawn.scores) and torch.equal(seen.labels, drawn.labels)
    offset = torch.tensor([*origin, *origin])
    torch.testing.assert_close(seen.boxes, drawn.boxes + offset, rtol=0, atol=1e-3)
    inside = drawn.boxes
    assert (inside >= 0).all() and (inside <= torch.tensor([31.0, 20.0] * 2)).all() and inside.isfinite().all()
    assert (inside[:, :2] <= inside[:, 2:]).all()
    for number in range(len(inside)):
        one = Detections(inside[number : number + 1], torch.ones(1), drawn.labels[number : number + 1])
        assert (draw_detections(found.image, one, NAMES) != found.image).any()  # nothing is listed that cannot be seen


def test_the_files_say_how_boxes_are_meant(tmp_path):
    writer = outputs(tmp_path / "clip")
    writer.write(result(0, detections((-3, -4, 40, 50, 0.9, 1), (-3, -4, 40, 50, 0.8, 2), (40, 1, 50, 5, 0.7, 1))))
    writer.end(end())
    data = json.loads((tmp_path / "clip" / "detections.json").read_text())
    assert data["frames"][0]["boxes"][0] == [-3, -4, 40, 50] and len(data["frames"][0]["boxes"]) == 3
    assert "beyond" in data["conventions"]["boxes"] and "once for every class" in data["conventions"]["labels"]
    with open(tmp_path / "clip" / "detections.csv", newline="") as file:
        found = list(csv.reader(file))[1:]
    assert [row[2:6] for row in found] == [["0.00", "0.00", "31.00", "20.00"]] * 2


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
