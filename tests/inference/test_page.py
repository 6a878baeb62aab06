"""The report page as a file: frames, scores, facts, its size, and nothing that a stranger's name could run."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from stnet.errors import VideoError
from stnet.inference import cli
from stnet.inference.lesion_collector import LesionCollector
from stnet.inference.page import RUN_BUDGET, VIDEO_BUDGET
from stnet.inference.page_frames import FrameSpool, StrongestFrames, StrongFrame
from stnet.inference.report import REPORT_NAME
from tests.inference.report_pages import (
    HOSTILE,
    NAMES,
    add_video,
    begin,
    blocks,
    end,
    finish,
    found,
    page,
    pictures,
    result,
)


def test_file_holds_frames_scores_and_facts(tmp_path):
    report = page(tmp_path)
    add_video(report, HOSTILE, pictures(20), "truncated")
    end(report, "lost", "unreadable", "lost: no such file")
    text = finish(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [REPORT_NAME]
    data = blocks(text)
    assert "<img src=x" not in text
    assert data["run"]["facts"]["Model"] == "small" and data["run"]["facts"]["Software"].startswith("stnet ")
    video = data["video-0"]
    assert (video["name"], video["status"], video["frames"], video["stride"]) == (HOSTILE, "truncated", 20, 1)
    assert video["scores"] == pytest.approx([0.1, np.mean([0.9, 0.86])])  # the two highest of twenty frames
    assert video["strongest"][0]["number"] == 10 and video["strongest"][0]["image"] is None
    assert np.array(video["curve"]["scores"])[:, 1].argmax() == 10
    (lesion,) = video["lesions"]
    assert (lesion["number"], lesion["label"], lesion["count"], video["lesionCount"]) == (1, 2, 20, 1)
    assert video["boxes"][3][0][4:] == [pytest.approx(0.62), 2, 1] and video["boxes"][3][1][6] is None
    assert (lesion["best"]["number"], lesion["best"]["shown"], lesion["best"]["image"]) == (10, 10, None)
    assert lesion["best"]["box"] == pytest.approx([15, 8, 40, 26], abs=0.2) and lesion["best"]["size"] is None
    assert [one["number"] for one in lesion["film"]] == [0, 3, 5, 8, 11, 14, 16, 19]
    assert np.array(lesion["curve"]["scores"]).argmax() == 10 and lesion["curve"]["unit"] == "px"
    images = data["frames-0"][1:]
    assert len(images) == len(video["numbers"]) == len(video["boxes"]) == 20
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[19]))))
    assert abs(int(shown.mean()) - int(pictures(20)[19].mean())) < 3
    assert data["video-1"] == {"name": "lost", "status": "unreadable", "problems": ["lost: no such file"]}


def test_policy_forbids_the_network_and_the_page_names_no_address(tmp_path):
    report = page(tmp_path)
    add_video(report, "clip", pictures(3))
    text = finish(report, tmp_path)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy.replace("&#x27;", "'") and "unsafe" not in policy and "{{" not in text
    addresses = set(re.findall(r"https?://[^\"' ]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements, which nobody fetches
    assert not re.search(r'<(link|script|img)[^>]+(src|href)="(?!data:)', text)


def test_two_hundred_frames_of_noise_stay_below_5_mb(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 480, 640, 3), dtype=np.uint8)
    frames = np.concatenate([noise] * 25)
    report = page(tmp_path)
    add_video(report, "noise", frames)
    data = blocks(finish(report, tmp_path))
    assert (tmp_path / REPORT_NAME).stat().st_size <= 5_000_000  # lesions and their best frames included
    assert len(data["frames-0"]) == 201 and data["video-0"]["shownSize"][0] >= 96


def test_long_videos_are_thinned_and_keep_their_strongest_frames(tmp_path):
    frames = np.zeros((1001, 16, 16, 3), np.uint8)
    report = page(tmp_path)
    begin(report, "long", frames)
    for index, image in enumerate(frames):
        detections = found((1, 1, 9, 9, 0.95 if index == 501 else 0.05, 1))
        report.write(result("long", index, index / 25, detections, image))
    end(report, "long")
    video = blocks(finish(report, tmp_path))["video-0"]
    assert video["stride"] == 4 and video["numbers"][:3] == [0, 4, 8] and len(video["numbers"]) <= 300
    best = video["strongest"][0]
    assert best["number"] == 501 and best["image"] and best["boxes"] == [[1, 1, 9, 9, 0.95, 1, None]]


def test_a_lesion_that_is_best_in_a_frame_not_shown_brings_that_frame(tmp_path):
    frames = np.zeros((1001, 16, 16, 3), np.uint8)
    report, collector = page(tmp_path), LesionCollector(NAMES, 0.3)
    begin(report, "long", frames)
    for index, image in enumerate(frames[:1000]):
        rows = [(1, 1, 9, 9, 0.9 if index == 501 else 0.5, 1)] if 400 <= index < 600 and index != 500 else []
        report.write(one := result("long", index, index / 25, found(*rows), image))
        collector.add(one)
    report.lesions(collector.found())
    end(report, "long")
    video = blocks(finish(report, tmp_path))["video-0"]
    (lesion,) = video["lesions"]
    best = lesion["best"]
    assert (best["number"], best["shown"]) == (501, 501) and best["image"]
    assert best["boxes"] == [[1, 1, 9, 9, None, 1, 1]]
    missed = video["boxes"][video["numbers"].index(500)]
    assert missed == [[1, 1, 9, 9, None, 1, 1]]
    assert len(lesion["film"]) == 8 and len(lesion["curve"]["frames"]) == 200


@pytest.mark.parametrize(("length", "budget"), [(1, 5000), (7, 40_000), (300, 300_000), (10_000, 600_000)])
def test_frames_keep_to_their_budget(length, budget):
    spool = FrameSpool(length, budget)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    # More frames than announced come, as files that understate their length have them.
    taken = [text for number in range(min(length * 2, 1200)) if (text := spool.take(number, image)) is not None]
    assert taken and sum(map(len, taken)) <= budget * 1.05


@pytest.mark.parametrize("videos", [1, 300, 2000, 14_000])
def test_frames_shown_are_spread_over_the_video_however_many_videos_there_are(videos):
    length, image = 400, np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    spool = FrameSpool(length, min(VIDEO_BUDGET, RUN_BUDGET // videos))
    taken = [number for number in range(length) if spool.take(number, image) is not None]
    assert taken[0] == 0 and taken[-1] + spool.stride >= length
    assert set(np.diff(taken)) <= {spool.stride}


def test_strongest_frames_are_apart():
    strongest = StrongestFrames(120)
    for number in range(120):
        score = 0.5 + 0.4 * np.cos(number / 6)
        if strongest.wants(number, score):
            strongest.add(StrongFrame(number=number, score=score, image=""))
    numbers = [frame.number for frame in strongest.best_first()]
    assert 3 <= len(numbers) <= 6 and min(np.diff(sorted(numbers))) >= 10
    assert {0, 38, 75, 113} <= set(numbers)
    assert not StrongestFrames(5).wants(0, 0.0)


@pytest.mark.parametrize(("best", "listed"), [(0.9, 2), (0.2, 3)])
def test_frames_below_the_threshold_are_listed_only_where_none_reaches_it(tmp_path, best, listed):
    report = page(tmp_path)
    begin(report, "clip", pictures(60))
    for index, image in enumerate(pictures(60)):
        detections = found((1, 1, 9, 9, best if index in (10, 30) else 0.1 + index / 10_000, 1))
        report.write(result("clip", index, index / 25, detections, image))
    end(report, "clip")
    strongest = blocks(finish(report, tmp_path))["video-0"]["strongest"]
    assert len(strongest) == listed and {frame["number"] for frame in strongest[:2]} == {10, 30}


def test_what_reaches_the_threshold_does_so_on_the_page(tmp_path):
    report, scores = page(tmp_path, threshold=0.10003), (0.10004, 0.10002)
    begin(report, "clip", pictures(1))
    detections = found(*[(20 * n, 1, 20 * n + 9, 9, score, 1) for n, score in enumerate(scores)])
    report.write(result("clip", 0, 0.0, detections, pictures(1)[0]))
    end(report, "clip")
    (rows,) = blocks(finish(report, tmp_path))["video-0"]["boxes"]
    assert [row[4] >= report.facts.score_threshold for row in rows] == [True, False]


def test_an_error_leaves_a_partial_section(tmp_path):
    report = page(tmp_path)
    begin(report, "clip", pictures(2))
    report.abandon(KeyboardInterrupt())
    assert [path.name for path in (tmp_path / "clip").iterdir()] == ["report.section.partial"]


def test_a_section_that_could_run_in_the_page_is_refused(tmp_path):
    report = page(tmp_path)
    add_video(report, "clip", pictures(3))
    path = tmp_path / "clip" / "report.section"
    path.write_text(path.read_text().replace("\n]", "\n</script><script>alert(1)</script>]"))
    path.write_text(path.read_text() + "<p>\n")
    with pytest.raises(VideoError, match=r"report\.section: is no section"):
        finish(report, tmp_path)
    assert not (tmp_path / REPORT_NAME).exists()


def test_command_writes_the_page(checkpoint, make_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "clip.mp4", frames=5)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    command = ["clip.mp4", "bad.mp4", "gone.mp4", "--report", "--no-video", "--output", "out"]
    command += ["--checkpoint", str(checkpoint), "--device", "cpu"]
    assert cli.main(command) == 1
    assert "report: out/report.html" in capsys.readouterr().err
    data = blocks((tmp_path / "out" / REPORT_NAME).read_text())
    states = [data[f"video-{number}"]["status"] for number in range(3)]
    assert states == ["ok", "unreadable", "unreadable"] and data["video-0"]["frames"] == 5
    assert not (tmp_path / "out/clip/annotated.mp4").exists()
    assert cli.main(command) == 2
    assert "out/report.html" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "--live"]) == 1
    assert blocks((tmp_path / "out" / REPORT_NAME).read_text())["video-0"]["frames"] >= 1
