"""What every format of results is: a sink that video after video is written to, frame by frame."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stnet.inference.clip_reader import VideoEnd
from stnet.inference.explanation import Explain, Explanation
from stnet.inference.frame_results import FrameResult
from stnet.lesions import Lesion
from stnet.video import VideoSource
from stnet.video.scale import PixelScale


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What all videos of a run have in common.

    Attributes:
        output: the folder that all results go to.
        videos: how many are expected.
        class_names: by label.
        score_threshold: from which score on detections are drawn and listed.
        model: how frames are predicted: checkpoint, targets, dtype.
        shown: what a reader of the results should know, by title.
        explain: tells where the model looked for lesions; None where that is not asked for.
    """

    output: Path
    videos: int
    class_names: dict[int, str]
    score_threshold: float
    model: dict[str, Any]
    shown: dict[str, str]
    explain: Explain | None = None


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """A video whose results follow.

    Attributes:
        name: of the video.
        folder: for its results.
        source: what it is read from.
        origin: what the user named.
        frames: how many are expected, None where that is unknown.
        scale: the size of its pixels, None where that is unknown.
        dicom: the DICOM file that it is, None where it is none.
    """

    name: str
    folder: Path
    source: VideoSource
    origin: str
    frames: int | None
    scale: PixelScale | None = None
    dicom: Path | None = None


class Sink(ABC):
    """Results of the videos of a run in one format.

    A sink lives as long as its run: for every video `begin`, `write` for each frame, `lesions`, `explained` where that
    was asked for, then `end`, or `abandon` where it could not be finished. A file grows under a partial name until its
    video has ended.
    All methods raise `OSError` or `VideoError` where something cannot be written.

    Attributes:
        file_name: what is written, in the folder of each video.
        needs_images: results have to carry their frames.
    """

    file_name: ClassVar[str]
    needs_images: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, run: RunFacts) -> None: ...

    @abstractmethod
    def begin(self, video: VideoFacts) -> None:
        """Start a video."""

    @abstractmethod
    def write(self, result: FrameResult) -> None:
        """Append one frame of the video."""

    def lesions(self, found: Sequence[Lesion]) -> None:  # noqa: B027  nothing to do for some
        """Take in the lesions of the video, which are known when all its frames are."""

    def explained(self, found: Sequence[Explanation]) -> None:  # noqa: B027  nothing to do for most
        """Take in where the model looked for lesions of the video."""

    @abstractmethod
    def end(self, end: VideoEnd) -> None:
        """Finish the video."""

    @abstractmethod
    def abandon(self, error: BaseException) -> None:
        """Leave what there is of the video under a partial name; harmless where none was begun."""
