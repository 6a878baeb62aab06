"""Report pages of made-up videos, and what is in them."""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from stnet.inference import FrameResult
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.explanation import Explanation, LookedAt
from stnet.inference.lesion_collector import LesionCollector
from stnet.inference.page import ReportSection
from stnet.inference.report import REPORT_NAME, write_report
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.model.postprocess import Detections
from stnet.video import ArraySource

NAMES = {1: "benign", 2: "malignant"}
HOSTILE = "</script><img src=x onerror=alert(1)> \u2028 'a\" & 乳腺.mp4"


def found(*rows) -> Detections:
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(-1, 4)
    return Detections(boxes, torch.tensor([float(row[4]) for row in rows]), torch.tensor([int(row[5]) for row in rows]))


class Page(ReportSection):
    """The sections of several videos, and the rows of those that have ended."""

    def __init__(self, folder: Path, videos: int, threshold: float) -> None:
        self.facts = RunFacts(
            output=folder,
            videos=videos,
            class_names=NAMES,
            score_threshold=threshold,
            model={},
            shown={"Model": "small", "Device": "cpu"},
        )
        super().__init__(self.facts)
        self.rows: list[VideoSummary] = []


def page(folder: Path, videos: int = 1, threshold: float = 0.3) -> Page:
    return Page(folder, videos, threshold)


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
