"""The report page: what is in the file, and how it behaves in a browser."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.errors import VideoError
from stnet.inference import FrameResult, cli
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.explanation import Explanation, LookedAt
from stnet.inference.lesion_collector import LesionCollector
from stnet.inference.page import RUN_BUDGET, VIDEO_BUDGET, ReportSection
from stnet.inference.page_frames import FrameSpool, StrongestFrames, StrongFrame
from stnet.inference.report import REPORT_NAME, write_report
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.model.postprocess import Detections
from stnet.video import ArraySource

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = {1: "benign", 2: "malignant"}
HOSTILE = "</script><img src=x onerror=alert(1)> \u2028 'a\" & 乳腺.mp4"


def found(*rows) -> Detections:
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    return Detections(boxes, torch.tensor([float(row[4]) for row in rows]), torch.tensor([int(row[5]) for row in rows]))


class Page(ReportSection):
    """The sections of several videos, and the rows of those that have ended."""

    def __init__(self, folder: Path, videos: int) -> None:
        self.facts = RunFacts(
            output=folder,
            videos=videos,
            class_names=NAMES,
            score_threshold=0.3,
            model={},
            shown={"Model": "small", "Device": "cpu"},
        )
        super().__init__(self.facts)
        self.rows: list[VideoSummary] = []


def page(folder: Path, videos: int = 1) -> Page:
    return Page(folder, videos)


def begin(report: Page, name: str, frames: np.ndarray, fps: Fraction = Fraction(25)) -> None:
    folder = report.facts.output / name
    folder.mkdir(parents=True)
    source = ArraySource(frames, name, fps)
    report.begin(VideoFacts(name=name, folder=folder, source=source, origin=name, frames=len(frames)))


def end(report: Page, name: str, status: str = "ok", *problems: str) -> None:
    found_any = status != "unreadable"
    if found_any:
        report.end(VideoEnd(key=0, name=name, status=status, problems=problems, frames=1))
    report.rows.append(VideoSummary(name=name, status=status, problems=problems, frames=int(found_any)))


def finish(report: Page, folder: Path) -> str:
    assert write_report(report.facts, report.rows) == folder / REPORT_NAME
    return (folder / REPORT_NAME).read_text(encoding="utf-8")


def result(name: str, index: int, time: float, detections: Detections, image: np.ndarray) -> FrameResult:
    return FrameResult(video=name, index=index, time=time, detections=detections, size=image.shape[:2], image=image)


def explanation(frames: np.ndarray) -> Explanation:
    """Of lesion 1, in frame 10, looked at in frames 2 and 19 too."""
    points = np.array([[20, 15, 0.3], [30, 20, 0.1], [1, 2, 0.0001]], np.float32)
    looked = [
        LookedAt(frame=number, image=frames[number], own=number == 10, box=box, decoder=points, encoder=points[:1])
        for number, box in ((10, (15, 8, 40, 26)), (2, (7, 8, 32, 26)), (19, None))
    ]
    return Explanation(lesion=1, frame=10, time=1.0, label=2, score=0.9, frames=tuple(looked))


def add_video(report: Page, name: str, frames: np.ndarray, status: str = "ok", explained: bool = False) -> None:
    """A lesion of class 2 crosses the clip, most certain in the middle."""
    begin(report, name, frames, Fraction(10))
    collector = LesionCollector(NAMES, 0.3)
    for index, image in enumerate(frames):
        certainty = 0.9 - 0.8 * abs(index - len(frames) / 2) / len(frames)
        detections = found((5 + index, 8, 30 + index, 26, certainty, 2), (40, 5, 50, 15, 0.1, 1))
        report.write(one := result(name, index, index / 10, detections, image))
        collector.add(one)
    report.lesions(collector.found())
    report.explained([explanation(frames)] if explained else [])
    end(report, name, status, *(() if status == "ok" else ("9 of 20 frames",)))


def pictures(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that can be told apart by their brightness."""
    ramp = np.linspace(0, 60, width)[None, :, None] + np.zeros((height, 1, 3))
    return np.stack([(ramp + 180 * index / max(1, count - 1)).astype(np.uint8) for index in range(count)])


def blocks(text: str) -> dict:
    found_blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text, re.DOTALL)
    return {name: json.loads(value) for name, value in found_blocks}


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


# Chromium reads commands from descriptor 3 and answers on 4.
ON_PIPES = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A page in headless Chromium, spoken to through a pair of pipes."""

    def __init__(self, folder: Path, address: str, width: int, height: int) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_PIPES, str(to_browser[0]), str(from_browser[1]), CHROMIUM, "--headless"]
            + ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
            + [f"--user-data-dir={folder}", f"--window-size={width},{height}", "--remote-debugging-pipe"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._write, self._read = to_browser[1], os.fdopen(from_browser[0], "rb")
        self._number, self._session, self.complaints, self.requests = 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 20
        while self.js("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.05)

    def call(self, method: str, **parameters) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def js(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, name: str, modifiers: int = 0) -> None:
        text = {"text": " "} if name == " " else {}
        code = "Space" if name == " " else name
        virtual = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32}[name]
        common = {"key": name, "code": code, "modifiers": modifiers, "windowsVirtualKeyCode": virtual}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def close(self) -> None:
        self._session = None
        os.write(self._write, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        self._read.close()

    def _next(self) -> bytes:
        message = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        return bytes(message)

    def _note(self, event: dict) -> None:
        kind, details = event.get("method"), event.get("params", {})
        logged = kind == "Log.entryAdded" and details["entry"]["level"] != "verbose"
        if logged or kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(details)
        elif kind == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"][:200])


@pytest.fixture
def browse(tmp_path):
    """Opens a page of two videos, one of them short and damaged, and a still."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    report = page(tmp_path, videos=3)
    add_video(report, HOSTILE, pictures(20), explained=True)
    add_video(report, "second", pictures(4), "truncated")
    add_video(report, "still", pictures(1))
    end(report, "lost", "unreadable", "lost: no such file")
    finish(report, tmp_path)
    address = (tmp_path / REPORT_NAME).as_uri()
    opened = []

    def start(width: int = 1280, height: int = 900) -> Browser:
        opened.append(Browser(tmp_path / f"profile{len(opened)}", address, width, height))
        return opened[-1]

    yield start
    for browser in opened:
        browser.close()


STATE = """(() => {
    const section = document.querySelectorAll("section.video")[%d];
    return {
        frame: Number(section.dataset.frame),
        place: section.querySelector('[data-part="place"]').textContent,
        slider: Number(section.querySelector('[data-part="slider"]').value),
        marker: Number(section.querySelector(".marker").getAttribute("x1")),
        picture: section.querySelector(".screen img").src.slice(-400),
        boxes: section.querySelectorAll(".screen .box").length,
        text: section.querySelector(".screen .label text")?.textContent ?? null,
    };
})()"""
SLIDE = """(() => {
    const slider = document.querySelectorAll('[data-part="slider"]')[0];
    slider.value = %d;
    slider.dispatchEvent(new Event("input"));
})()"""


@pytest.mark.timeout(120)
def test_page_in_a_browser(browse):
    browser = browse()
    first = browser.js(STATE % 0)
    assert first["frame"] == 10 and first["boxes"] == 1 and first["text"] == "#1 malignant 0.90"

    browser.js(SLIDE % 3)
    moved = browser.js(STATE % 0)
    assert (moved["frame"], moved["slider"]) == (3, 3) and moved["place"] == "Frame 4 of 20 · 0.30 s"
    assert moved["marker"] < first["marker"] and moved["picture"] != first["picture"]
    assert moved["marker"] == pytest.approx(42 + (472 - 42) * 3 / 19)

    browser.key("ArrowRight")
    assert browser.js(STATE % 0)["frame"] == 4
    browser.key("ArrowLeft")
    browser.key("ArrowLeft")
    assert browser.js(STATE % 0)["frame"] == 2
    browser.key("End")
    assert browser.js(STATE % 0)["frame"] == 19
    browser.key("ArrowLeft", modifiers=8)
    assert browser.js(STATE % 0)["frame"] == 9
    browser.key("Home")
    assert browser.js(STATE % 0)["frame"] == 0

    browser.js("document.querySelector('.strongest button').click()")
    assert browser.js(STATE % 0)["frame"] == 10
    browser.js("document.querySelector('[data-part=\"slider\"]').focus()")
    browser.key("ArrowRight")
    assert browser.js(STATE % 0)["frame"] == 11  # once, not by the slider and by the page

    assert browser.js("document.querySelectorAll('section.video')[0].querySelectorAll('.card').length") == 1
    looked = "players[0].section.querySelector('.looked')"
    assert browser.js(f"[...{looked}.querySelectorAll('.tiles .text')].map((one) => one.textContent)") == [
        "own frame 11: 40 %",
        "frame 3: 40 %",
        "frame 20: 40 %",
    ]
    assert browser.js(f"{looked}.querySelectorAll('circle').length") == 6  # nobody could see the third point
    assert browser.js(f"[...{looked}.querySelectorAll('.tiles .edge.unsure')].length") == 1
    browser.js(f"{looked}.querySelector('[data-points=\"encoder\"]').click()")
    assert browser.js(f"{looked}.querySelectorAll('.points.own circle').length") == 1
    assert "10 % of the weight" in browser.js(f"{looked}.querySelector('p').textContent")
    browser.js(f"{looked}.querySelectorAll('.tiles button')[2].click()")
    assert browser.js(STATE % 0)["frame"] == 19
    assert browser.js("players[1].section.querySelector('.looked').hidden")
    seen = "[...players[%d].section.querySelectorAll('.moving')].filter((one) => one.offsetParent).length"
    assert browser.js(seen % 1) == 5 and browser.js(seen % 2) == 0  # nothing to play in a still
    assert "per second" not in browser.js("players[2].section.textContent")
    browser.js("document.querySelectorAll('.film button')[1].click()")
    assert browser.js(STATE % 0)["frame"] == 3
    assert browser.js("players[0].section.querySelectorAll('.film button[aria-current=\"true\"]').length") == 1
    browser.js("document.querySelector('.card [data-part=\"best\"]').click()")
    assert browser.js(STATE % 0)["frame"] == 10
    browser.js(SLIDE % 11)
    browser.js("document.querySelector('[data-part=\"show\"]').click()")
    assert browser.js(STATE % 0)["boxes"] == 0
    browser.js("document.querySelectorAll('[data-part=\"slider\"]')[1].focus()")
    browser.key("Home")
    assert browser.js(STATE % 1)["frame"] == 0 and browser.js(STATE % 0)["frame"] == 11
    browser.js("document.activeElement.blur()")
    browser.key(" ")
    deadline = time.monotonic() + 10
    while browser.js(STATE % 1)["frame"] < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.js(STATE % 1)["frame"] == 3

    assert browser.js("document.querySelectorAll('section.video h2')[0].textContent") == HOSTILE
    assert browser.js("document.querySelectorAll('#overview tbody tr').length") == 4
    assert browser.js("getComputedStyle(document.querySelectorAll('.columns')[3]).display") == "none"
    assert browser.js("fetch('https://example.org').then(() => 1, () => 0)") is not None  # refused by the policy
    browser.js("document.title")
    refused = [c for c in browser.complaints if "Content Security Policy" in json.dumps(c)]
    assert refused and browser.complaints == refused
    assert not [url for url in browser.requests if not url.startswith(("file:", "data:"))]


@pytest.mark.timeout(120)
def test_labels_do_not_cover_each_other_and_dashes_tell_what_is_not_sure(browse):
    browser = browse()
    boxes = [[10, 10, 40, 30, 0.9, 2, 1], [10, 10, 40, 30, 0.4, 1, None], [10, 10, 41, 30, 0.8, 1, 2]]
    boxes += [[12, 10, 40, 30, None, 1, 3], [11, 11, 40, 31, 0.1, 1, 4], [11, 11, 40, 31, 0.05, 2, None]]
    browser.js(f"drawBoxes(players[0].overlay, players[0].video, {json.dumps(boxes)}, run.threshold)")
    labels = browser.js("[...players[0].overlay.querySelectorAll('.label')].map((label) => label.textContent)")
    assert labels == ["#1 malignant 0.90, benign 0.40", "#2 benign 0.80", "#3 benign", "#4 benign 0.10"]
    sides = "['x', 'y', 'width', 'height'].map((name) => Number(one.getAttribute(name)))"
    rectangles = browser.js(f"[...players[0].overlay.querySelectorAll('.label rect')].map((one) => {sides})")
    for number, (x, y, wide, high) in enumerate(rectangles):
        assert x >= 0 and y >= 0 and x + wide <= 64.01 and y + high <= 48.01
        for left, top, width, height in rectangles[:number]:
            assert x >= left + width or left >= x + wide or y >= top + height or top >= y + high
    edges = browser.js(
        "[...players[0].overlay.querySelectorAll('.edge')].map((one) => one.classList.contains('unsure'))"
    )
    assert edges[::-1] == [False, False, True, True]


@pytest.mark.timeout(120)
def test_a_picture_without_room_causes_no_complaint(browse):
    browser = browse()
    browser.js("document.querySelector('.screen').style.height = 0")  # as before the first picture is there
    browser.js(SLIDE % 3)
    assert browser.js(STATE % 0)["boxes"] == 0
    browser.js("document.querySelector('.screen').style.height = ''")
    browser.js(SLIDE % 3)
    assert browser.js(STATE % 0)["boxes"] == 1 and browser.complaints == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_fits_screens(browse, width):
    browser = browse(width, 800)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    assert browser.js("document.documentElement.scrollWidth") <= width
    picture = browser.js("document.querySelector('.screen').getBoundingClientRect().width")
    assert picture >= min(0.85 * width - 20, 500)
    buttons = (
        "[...document.querySelectorAll('section.video')[0].querySelectorAll('.controls button, .looked .row button')]"
    )
    heights = browser.js(f"{buttons}.map((b) => b.offsetHeight)")
    assert len(heights) == 5 and min(heights) >= 40
    assert browser.complaints == []
