"""`report.html`: what a run found, in one file that opens from disk, without a network, and on a phone.

The page is the template beside this module with blocks of JSON in the middle, which the template's script turns into
sections. Frames are written to the file as they come, so memory does not grow with a video. Names reach the page as
JSON with every `<` escaped and are only ever set as text; a Content-Security-Policy forbids every connection and every
script but the template's own.
"""

import base64
import hashlib
import html
import platform
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import resources

import numpy as np
import torch

import stnet
from stnet.command_line import explain
from stnet.errors import EXTERNAL
from stnet.evaluation.video_level import STRONGEST_SHARE, frame_maxima, video_scores
from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.draw import PALETTE
from stnet.inference.folder_lock import FolderLock
from stnet.inference.frame_marks import Listed, listed
from stnet.inference.frame_results import FrameResult
from stnet.inference.page_frames import FrameSpool, StrongestFrames, StrongFrame
from stnet.inference.page_lesions import best_lesions, box_rows, lesion_card
from stnet.inference.sink import RunFacts, Sink, VideoFacts, json_text
from stnet.lesions import Lesion
from stnet.video import VideoSource
from stnet.video.scale import PixelScale

REPORT_NAME = "report.html"
TEMPLATE = "report.html"
STYLE = "report.css"
SCRIPTS = ("report_boxes.js", "report_lesions.js", "report_player.js", "report_page.js")
DATA_MARK = "<!--data-->"

VIDEO_BUDGET = 4_400_000
"""Characters for the frames of one video; the page of a single video stays below 5 MB."""

RUN_BUDGET = 60_000_000
"""Characters for the frames of all videos: runs of many videos get smaller frames."""

BOXES_SHOWN = 10
"""Detections per frame that the page can draw, best first."""

FEW_STRONG = 3
"""Frames listed as the strongest where none reaches the score threshold."""

CHART_POINTS = 1500
"""Points of a score curve; longer videos show the maximum of neighbouring frames."""


@dataclass(kw_only=True)
class _Video:
    """What is known so far of the video that is being written."""

    name: str
    source: VideoSource
    scale: PixelScale | None
    spool: FrameSpool
    strongest: StrongestFrames
    maxima: list[np.ndarray] = field(default_factory=list)  # [classes] of every frame
    times: list[float] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)  # in the video; live runs may leave frames out
    numbers: list[int] = field(default_factory=list)  # positions (in `maxima`) of the frames shown
    listed: dict[int, Listed] = field(default_factory=dict)  # what was found in the frames shown, and in strong ones
    lesions: Sequence[Lesion] = ()

    def unlisted(self, number: int) -> Listed:
        """A frame of whose detections nothing is kept."""
        size = (self.source.height, self.source.width)
        return Listed(
            frame=number, time=self.times[number], table=np.zeros((0, 7)), origin=self.source.origin, size=size
        )

    def pictures(self, numbers: set[int]) -> dict[int, str]:
        """Frames of the video, read once more; those that cannot be are left out."""
        wanted, found = {self.indices[number]: number for number in numbers}, {}
        if not wanted:
            return found
        with suppress(*EXTERNAL), closing(iter(self.source)) as frames:
            for frame in frames:
                if frame.index in wanted:
                    found[wanted[frame.index]] = self.spool.encode(frame.image)
                if len(found) == len(wanted):
                    break
        return found


class ReportPage(Sink):
    """Writes the page of one run, video after video; it grows as `report.html.partial` until `close`.

    Args:
        run: what to state about the run.

    Raises:
        OSError, VideoError: it cannot be written, or another run writes one at the same place.
    """

    file_name = REPORT_NAME
    once = True
    needs_images = True

    def __init__(self, run: RunFacts) -> None:
        style, script = _part(STYLE), "".join(_part(name) for name in SCRIPTS)
        template = _part(TEMPLATE).replace("{{style}}", style).replace("{{script}}", script)
        head, self._tail = template.split(DATA_MARK)
        self._lock = FolderLock(run.output / f".{REPORT_NAME}.running")
        self._budget = min(VIDEO_BUDGET, RUN_BUDGET // max(1, run.videos))
        self._classes, self._count, self._threshold = len(run.class_names), 0, run.score_threshold
        self._video: _Video | None = None
        self._file: GrowingFile | None = None
        try:
            self._file = GrowingFile(run.output / REPORT_NAME)
            self._put(head.replace("{{policy}}", html.escape(_policy(style, script))))
            self._block("run", self._run(run))
        except BaseException as error:
            self.close(error)
            raise

    def begin(self, video: VideoFacts) -> None:
        """Start a section of its own for a video."""
        length = video.frames or 1
        spool = FrameSpool(length, self._budget)
        strongest = StrongestFrames(length)
        self._video = _Video(name=video.name, source=video.source, scale=video.scale, spool=spool, strongest=strongest)
        # An empty string stands first so that every frame can follow a comma.
        self._put(f'<script type="application/json" id="frames-{self._count}">[""')

    def write(self, result: FrameResult) -> None:
        """Append one frame."""
        video, detections = self._video, result.visible_in_image
        number = len(video.maxima)
        maxima = frame_maxima(detections.scores.numpy(), detections.labels.numpy(), self._classes)
        video.maxima.append(maxima)
        video.times.append(result.time)
        video.indices.append(result.index)
        text = video.spool.take(number, result.image)
        if text is not None:
            self._put(f',\n"{text}"')
            video.numbers.append(number)
            video.listed[number] = self._listed(result, number)
        best = float(maxima.max(initial=0))
        if video.strongest.wants(number, best):
            image = text or video.spool.encode(result.image)
            video.strongest.add(StrongFrame(number=number, score=best, image=image))
            video.listed[number] = self._listed(result, number)

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions, whose frames the page numbers as it shows them."""
        video = self._video
        video.lesions = [replace(one, frames=np.searchsorted(video.indices, one.frames)) for one in found]

    def end(self, end: VideoEnd) -> None:
        """Finish the section of a video, or list one that could not be read at all."""
        self._section(end.name, end.status, end.problems)

    def abandon(self, error: BaseException) -> None:
        """Finish the section of a video as far as it goes: later ones may follow."""
        if self._video is not None:
            with suppress(OSError):  # where the page itself is what cannot be written
                self._section(self._video.name, "unfinished", (explain(error),))

    def close(self, error: BaseException | None = None) -> None:
        """Complete the page, or leave the partial one after an error."""
        try:
            if error is None:
                self._put(self._tail)
                self._file.close()
            elif self._file is not None:
                self._file.abandon()
        finally:
            self._lock.release()

    def _section(self, name: str, status: str, problems: tuple[str, ...]) -> None:
        data = {"name": name, "status": status, "problems": list(problems)}
        video, self._video = self._video, None
        if video is not None:
            self._put("]</script>\n")
            data |= self._summary(video)
        self._block(f"video-{self._count}", data)
        self._count += 1

    def _run(self, run: RunFacts) -> dict:
        names = run.class_names
        palette = [f"rgb{PALETTE[position % len(PALETTE)]}" for position in range(len(names))]
        return {
            "facts": {**_surroundings(), **run.shown},
            "classes": [
                {"label": label, "name": name, "colour": colour}
                for (label, name), colour in zip(names.items(), palette, strict=True)
            ],
            "threshold": run.score_threshold,
            "strongestShare": STRONGEST_SHARE,
        }

    def _summary(self, video: _Video) -> dict:
        source = video.source
        summary = {
            "width": source.width,
            "height": source.height,
            "fps": round(float(source.fps), 3),
            "frames": len(video.maxima),
            "numbers": video.numbers,
            "stride": video.spool.stride,
            "shownSize": video.spool.size,
            "boxes": [box_rows(video.listed[number], video.lesions) for number in video.numbers],
            "lesionCount": len(video.lesions),
            "lesions": self._cards(video),
        }
        if source.full_width:
            summary["region"] = [*source.origin, source.full_width, source.full_height]
        if not video.maxima:
            return summary
        maxima = np.stack(video.maxima)
        step, curve = _curve(maxima)
        strong = self._strongest(video.strongest.best_first())
        return summary | {
            "scores": [round(float(score), 4) for score in video_scores(maxima)],
            "times": [round(video.times[number], 3) for number in video.numbers],
            "duration": round(video.times[-1], 3),
            "curve": {"step": step, "scores": curve.round(4).tolist()},
            "strongest": [
                {
                    "number": frame.number,
                    "time": round(video.times[frame.number], 3),
                    "scores": maxima[frame.number].round(4).tolist(),
                    "boxes": box_rows(video.listed[frame.number], video.lesions),
                    # Those among the frames shown are not stored twice.
                    "image": None if frame.number in video.numbers else frame.image,
                }
                for frame in strong
            ],
        }

    @staticmethod
    def _listed(result: FrameResult, number: int) -> Listed:
        return replace(listed(result, 0.0, BOXES_SHOWN), frame=number)

    def _cards(self, video: _Video) -> list[dict]:
        """What is told of the best lesions, with their best frames."""
        lesions = best_lesions(video.lesions)
        kept = video.pictures({lesion.best_frame for lesion in lesions} - set(video.numbers))
        cards = [lesion_card(lesion, video.source, video.scale, video.numbers, kept) for lesion in lesions]
        for card in cards:
            best = card["best"]
            # Those among the frames shown are not stored twice.
            best["image"] = kept.get(best["shown"])
            if best["image"] is not None:
                best["boxes"] = box_rows(video.unlisted(best["shown"]), video.lesions)
        return cards

    def _strongest(self, frames: list[StrongFrame]) -> list[StrongFrame]:
        """Those that reach the threshold; where none does, the best of them, which show that nothing was missed."""
        return [frame for frame in frames if frame.score >= self._threshold] or frames[:FEW_STRONG]

    def _block(self, name: str, value: dict) -> None:
        self._put(f'<script type="application/json" id="{name}">{_embedded(value)}</script>\n')

    def _put(self, text: str) -> None:
        self._file.write(text)


def _curve(maxima: np.ndarray) -> tuple[int, np.ndarray]:
    """Frames per point, and the maxima `[points, classes]` over so many frames each."""
    step = -(-len(maxima) // CHART_POINTS)
    padded = np.pad(maxima, ((0, -len(maxima) % step), (0, 0)))
    return step, padded.reshape(-1, step, maxima.shape[1]).max(axis=1)


def _embedded(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json_text(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return resources.files("stnet.inference").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Only this style and this script, pictures out of the page itself, and no connection of any kind."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _surroundings() -> dict[str, str]:
    return {
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "Software": f"stnet {stnet.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
    }
