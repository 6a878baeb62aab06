"""The lesions of a video, collected from the results of its frames."""

from collections.abc import Sequence
from dataclasses import replace

from stnet.inference.frame_results import FrameResult
from stnet.inference.video_results import VideoResult
from stnet.lesions import Findings, Lesion, LesionFinder, findings_of
from stnet.lesions.linking import link_settings
from stnet.video.scale import PixelScale


def frame_findings(result: FrameResult, classes: int, least_score: float) -> Findings:
    """Return what was found in a frame, each finding once, inside of what was looked at.

    Args:
        result: of the frame.
        classes: how many there are.
        least_score: findings whose best score is lower are left out.
    """
    x, y = result.origin
    height, width = result.size
    return findings_of(
        result.index,
        result.time,
        result.detections.boxes.cpu().numpy(),
        result.detections.scores.cpu().numpy(),
        result.detections.labels.cpu().numpy(),
        classes=classes,
        region=(x, y, x + width, y + height),
        least_score=least_score,
    )


class LesionCollector:
    """Collects the lesions of a video, keeping none of its frames.

    Args:
        class_names: by label.
        score_threshold: from which score on detections are told.
    """

    def __init__(self, class_names: dict[int, str], score_threshold: float) -> None:
        self._class_names, self._score_threshold = class_names, score_threshold
        self._classes = max(class_names, default=0)
        self._settings = link_settings(score_threshold)
        self._finder = LesionFinder(self._settings)

    def fresh(self) -> "LesionCollector":
        """Return one for another video."""
        return LesionCollector(self._class_names, self._score_threshold)

    def add(self, result: FrameResult) -> None:
        """Take in the next frame."""
        self._finder.update(frame_findings(result, self._classes, self._settings.keep_score))

    def found(self) -> Sequence[Lesion]:
        """Return the lesions in the order they appear."""
        return self._finder.lesions()


def linked(
    name: str,
    frames: Sequence[FrameResult],
    class_names: dict[int, str],
    score_threshold: float,
    scale: PixelScale | None = None,
) -> VideoResult:
    """Return a video's result: its frames linked into lesions, which each frame then knows."""
    collector = LesionCollector(class_names, score_threshold)
    for frame in frames:
        collector.add(frame)
    lesions = collector.found()
    return VideoResult(
        name=name,
        frames=tuple(
            replace(frame, lesions=tuple(seen for lesion in lesions if (seen := lesion.in_frame(frame.index))))
            for frame in frames
        ),
        lesions=tuple(lesions),
        class_names=class_names,
        scale=scale,
    )
