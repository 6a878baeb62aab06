"""Results know their lesions: whole videos, live feeds, and the command."""

import csv
import json
import sys

import numpy as np
import pytest

from stnet.errors import ConfigError
from stnet.inference import VideoDetector, cli
from stnet.inference.live import LiveDetector
from stnet.inference.video_results import VideoResult


def test_a_video_knows_its_lesions(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu")
    frames = np.repeat(make_frames(1), 6, axis=0)
    (video,) = detector.videos(frames, score_threshold=0.05)
    assert [frame.index for frame in video.frames] == list(range(6))
    assert video.lesions and [lesion.number for lesion in video.lesions] == list(range(1, len(video.lesions) + 1))
    for frame in video.frames:
        for seen in frame.lesions:
            lesion = video.lesions[seen.number - 1]
            position = lesion.frames.tolist().index(frame.index)
            assert (lesion.boxes[position] == seen.box).all() and seen.found == (seen.row >= 0)
            assert not seen.found or float(frame.detections.scores[seen.row]) == pytest.approx(
                lesion.scores[position].max(), abs=1e-6
            )
    assert next(iter(detector(frames))).lesions is None


def test_live_results_know_the_lesions_until_then(small_model, make_frames):
    live = LiveDetector(VideoDetector(small_model, device="cpu"), policy="wait", score_threshold=0.05)
    results = list(live(np.repeat(make_frames(1), 6, axis=0)))
    assert results[0].lesions == ()
    numbers = [[lesion.number for lesion in result.lesions] for result in results]
    assert numbers[-1] and all(len(set(row)) == len(row) for row in numbers)


def test_the_command_exports_and_measures(checkpoint, make_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "clip.mp4", frames=4)
    command = [
        "clip.mp4",
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--no-video",
        "--score-threshold",
        "0.05",
    ]
    command += ["--output", "out", "--export", "cvat,yolo", "--mm-per-pixel", "0.1,0.2"]
    assert cli.main(command) == 0
    names = sorted(path.name for path in (tmp_path / "out/clip").iterdir())
    assert names == ["detections.csv", "detections.json", "export-cvat", "export-yolo", "lesions.csv"]
    with open(tmp_path / "out/clip/detections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert float(row["width_mm"]) == pytest.approx(0.1 * (float(row["x1"]) - float(row["x0"])), abs=0.01)
        assert float(row["depth_mm"]) == pytest.approx(0.2 * (float(row["y1"]) - float(row["y0"])), abs=0.01)
        assert row["top_mm"] == ""
    assert json.loads((tmp_path / "out/clip/detections.json").read_text())["format"] == "stnet-detections/2"
    assert cli.main(command) == 2 and "results exist already" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--export", "pdf"), ("--export", ","), ("--mm-per-pixel", "wide")])
def test_options_that_make_no_sense(option, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["clip.mp4", *option])
    assert ended.value.code == 2 and option[0] in capsys.readouterr().err


@pytest.mark.parametrize(("call", "package"), [("to_pandas", "pandas"), ("lesions_to_pandas", "pandas")])
def test_conversions_say_what_they_need(monkeypatch, call, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        getattr(VideoResult(name="a", frames=(), lesions=(), class_names={}), call)()
