"""`infer.py --stills`: images of any size, each with results of its own."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from stnet.inference.clip_runner import _Pass
from stnet.inference.jobs import by_picture_size, plan_jobs
from stnet.inference.names import find_names

SIZES = {"a": (40, 30), "b": (31, 44), "c": (40, 30), "d": (31, 44)}


@pytest.fixture
def folder(tmp_path, make_frames):
    """Four images of two sizes in two folders, one that is none, and a mask."""
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        place = tmp_path / "stills" / ("more" if name == "d" else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_frames(1, height, width, number)[0]).save(place / f"{name}.png")
    Image.new("L", (40, 30)).save(tmp_path / "stills" / "a_mask.png")
    (tmp_path / "stills" / "e.png").write_bytes(b"no image")
    return tmp_path / "stills"


def test_each_image_has_results_of_its_own(infer, folder, tmp_path):
    status, out, _ = infer("stills", "--stills", "--output", "out", "--report")
    assert status == 1 and out.count(": ok, 1 frames") == 4 and "e: unreadable" in out
    for name, (width, height) in SIZES.items():
        results = tmp_path / "out" / ("more-d" if name == "d" else name)
        data = json.loads((results / "detections.json").read_text())
        assert (data["video"]["width"], data["video"]["height"], data["frame_count"]) == (width, height, 1)
        drawn = np.asarray(Image.open(results / "annotated.png"))
        scale = drawn.shape[0] // height
        assert drawn.shape == (height * scale, width * scale, 3) and not (results / "annotated.mp4").exists()
    with open(tmp_path / "out" / "summary.csv", newline="") as table:
        assert [row["video"] for row in csv.DictReader(table)] == ["a", "b", "c", "e", "more-d"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('id="frames-') == 4 and page.count('"status":"unreadable"') == 1
    assert infer("stills", "--stills", "--output", "out", "--report", "--skip-existing")[0] == 1


def test_images_of_one_size_go_through_the_model_together(infer, folder, monkeypatch, tmp_path):
    jobs, _ = plan_jobs(find_names([str(folder)], tmp_path / "out", stills=True), tmp_path / "out")
    names = [jobs[position].name for position in by_picture_size(jobs)]
    assert names == ["e", "a", "c", "b", "more-d"]
    batches, real = [], _Pass._attempt
    monkeypatch.setattr(
        _Pass, "_attempt", lambda self, tasks, *more: batches.append(len(tasks)) or real(self, tasks, *more)
    )
    assert infer("stills", "--stills", "--no-video", "--batch", "2")[0] == 1
    assert batches == [2, 2]


def test_without_the_flag_unlike_images_are_no_video(infer, folder):
    (folder / "e.png").unlink()
    status, _, err = infer("stills")
    assert status == 2 and "b.png: is 31 x 44 pixels, a.png 40 x 30" in err and "--stills" in err


def test_a_picture_of_a_video_is_its_best_frame(infer, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=5)
    assert infer("clip.mp4", "--formats", "picture,json", "--output", "out")[0] == 0
    assert Image.open(tmp_path / "out" / "clip" / "annotated.png").size[0] % 48 == 0
    assert infer("clip.mp4", "--formats", "picture", "--no-video", "--output", "other")[0] == 2
