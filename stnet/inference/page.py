"""The section of a video on the report page: what was found in it, as JSON.

It lies beside the video's other results, so that processes that share a list, and calls that go on with it, make one
page of all (`report.py`). Frames are written to the file as they come, so memory does not grow with a video.
"""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np

from stnet.errors import EXTERNAL
from stnet.evaluation.video_level import frame_maxima, video_scores
from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.explanation import Explanation
from stnet.inference.frame_marks import Listed, listed
from stnet.inference.frame_results import FrameResult
from stnet.inference.json_text import json_text
from stnet.inference.page_explained import looked_at
from stnet.inference.page_frames import FrameSpool, StrongestFrames, StrongFrame
from stnet.inference.page_lesions import best_lesions, box_rows, lesion_card
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion
from stnet.video import VideoSource
from stnet.video.scale import PixelScale

SECTION_NAME = "report.section"

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
    explained: dict[int, Explanation] = field(default_factory=dict)  # by the number of the lesion

    def unlisted(self, number: int) -> Listed:
        """Return a frame of whose detections nothing is kept."""
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


class ReportSection(Sink):
    """Writes the section of each video: a JSON list of its pictures over several lines, then a line with the rest.

    Every `<` is escaped, so that a section can stand in a page as it is.
    """

    file_name = SECTION_NAME
    needs_images = True

    def __init__(self, run: RunFacts) -> None:
        self._budget = min(VIDEO_BUDGET, RUN_BUDGET // max(1, run.videos))
        self._classes, self._threshold = len(run.class_names), run.score_threshold
        self._video: _Video | None = None
        self._file: GrowingFile | None = None

    def begin(self, video: VideoFacts) -> None:
        """Start the section of a video."""
        length = video.frames or 1
        spool = FrameSpool(length, self._budget)
        strongest = StrongestFrames(length)
        self._video = _Video(name=video.name, source=video.source, scale=video.scale, spool=spool, strongest=strongest)
        self._file = GrowingFile(video.folder / self.file_name)
        # An empty string stands first so that every frame can follow a comma.
        self._file.write('[""')

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
            self._file.write(f',\n"{text}"')
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

    def explained(self, found: Sequence[Explanation]) -> None:
        """Take in where the model looked."""
        self._video.explained = {one.lesion: one for one in found}

    def end(self, end: VideoEnd) -> None:
        """Complete the section."""
        data = {"name": end.name, "status": end.status, "problems": list(end.problems)}
        self._file.write("]\n" + embedded(data | self._summary(self._video)) + "\n")
        self._file.close()
        self._file = self._video = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial section."""
        file, self._file, self._video = self._file, None, None
        if file is not None:
            file.abandon()

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
        """Return what is told of the best lesions, with their best frames."""
        lesions = best_lesions(video.lesions)
        kept = video.pictures({lesion.best_frame for lesion in lesions} - set(video.numbers))
        cards = [lesion_card(lesion, video.source, video.scale, video.numbers, kept) for lesion in lesions]
        for card in cards:
            best = card["best"]
            # Those among the frames shown are not stored twice.
            best["image"] = kept.get(best["shown"])
            if best["image"] is not None:
                best["boxes"] = box_rows(video.unlisted(best["shown"]), video.lesions)
            explanation = video.explained.get(card["number"])
            if explanation is not None:
                card["looked"] = looked_at(explanation, video.indices, video.numbers, video.spool.encode)
        return cards

    def _strongest(self, frames: list[StrongFrame]) -> list[StrongFrame]:
        """Those that reach the threshold; where none does, the best of them, which show that nothing was missed."""
        return [frame for frame in frames if frame.score >= self._threshold] or frames[:FEW_STRONG]


def _curve(maxima: np.ndarray) -> tuple[int, np.ndarray]:
    """Frames per point, and the maxima `[points, classes]` over so many frames each."""
    step = -(-len(maxima) // CHART_POINTS)
    padded = np.pad(maxima, ((0, -len(maxima) % step), (0, 0)))
    return step, padded.reshape(-1, step, maxima.shape[1]).max(axis=1)


def embedded(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json_text(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
