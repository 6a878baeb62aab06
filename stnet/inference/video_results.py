"""What was found in a video as a whole."""

from dataclasses import dataclass
from typing import Any

from stnet.inference.frame_results import FrameResult
from stnet.lesions import Lesion
from stnet.video.scale import PixelScale


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """The results of one video.

    Attributes:
        name: of the video.
        frames: the results of its frames, in order; each knows the lesions in it.
        lesions: in the order they appear.
        class_names: by label.
        scale: the size of pixels as the video states it, None where it does not.
    """

    name: str
    frames: tuple[FrameResult, ...]
    lesions: tuple[Lesion, ...]
    class_names: dict[int, str]
    scale: PixelScale | None = None

    def __repr__(self) -> str:
        lesions = ", ".join(f"{self.class_names.get(one.label, one.label)} {one.score:.2f}" for one in self.lesions[:5])
        more = ", ..." if len(self.lesions) > 5 else ""
        told = f": {lesions}{more}" if lesions else ""
        return f"VideoResult({self.name}, {len(self.frames)} frames, {len(self.lesions)} lesions{told})"

    def to_pandas(self) -> Any:
        """Return all detections as a `pandas.DataFrame`: `conversions.detections_to_pandas`."""
        from stnet.inference.conversions import detections_to_pandas

        return detections_to_pandas(self)

    def lesions_to_pandas(self) -> Any:
        """Return the lesions as a `pandas.DataFrame`: `conversions.lesions_to_pandas`."""
        from stnet.inference.conversions import lesions_to_pandas

        return lesions_to_pandas(self)
