"""What was found in a video as a whole."""

from dataclasses import dataclass

from stnet.inference.frame_results import FrameResult
from stnet.lesions import Lesion


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """The results of one video.

    Attributes:
        name: of the video.
        frames: the results of its frames, in order; each knows the lesions in it.
        lesions: in the order they appear.
    """

    name: str
    frames: tuple[FrameResult, ...]
    lesions: tuple[Lesion, ...]
