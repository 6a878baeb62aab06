"""What was found in one frame of a video."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stnet.lesions import LesionInFrame
from stnet.model.postprocess import Detections


@dataclass(frozen=True, kw_only=True, repr=False)
class FrameResult:
    """The detections in one frame of a video.

    `index` counts the frames of the video from 0, `time` is in seconds from its first frame. `detections` has
    boxes x0 y0 x1 y1 in pixels of the original frame, best score first, as predicted: they may reach beyond it. `image`
    is the frame itself, uint8 RGB `[H, W, 3]`, where it was asked for. `size` is the (height, width) of what was looked
    at: the frame, or the part of it whose corner lies at x, y `origin`. `file` is its name where frames are files.
    `lesions` are those in sight, None where detections were not linked.
    """

    video: str
    index: int
    time: float
    detections: Detections
    size: tuple[int, int]
    image: np.ndarray | None = field(default=None, repr=False)
    file: str | None = None
    origin: tuple[int, int] = (0, 0)
    lesions: tuple[LesionInFrame, ...] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        lesions = "" if self.lesions is None else f", {len(self.lesions)} lesions in sight"
        where = f"frame {self.index} of {self.video} at {self.time:.2f} s"
        return f"{type(self).__name__}({where}, {self.detections!r}{lesions})"

    @property
    def detections_in_image(self) -> Detections:
        """The detections with boxes in pixels of `image`."""
        return shifted(self.detections, (-self.origin[0], -self.origin[1]))

    @property
    def visible(self) -> Detections:
        """The detections as they are listed and drawn: cut at the borders of what was looked at, those beyond left out.

        Boxes are in pixels of the original frame.
        """
        return shifted(self.visible_in_image, self.origin)

    @property
    def visible_in_image(self) -> Detections:
        """Those of `visible`, in pixels of `image`."""
        found, rows = self.detections_in_image, self.visible_rows
        return Detections(_clipped(found.boxes, *self.size)[rows], found.scores[rows], found.labels[rows])

    def to_supervision(self, class_names: Mapping[int, str] | None = None, in_image: bool = False) -> Any:
        """Return the detections as `supervision.Detections`: `conversions.to_supervision`."""
        from stnet.inference.conversions import to_supervision

        return to_supervision(self, class_names, in_image)

    @property
    def visible_rows(self) -> Tensor:
        """Where those of `visible` stand in `detections`, int64 `[N]`."""
        return _inside(self.detections_in_image.boxes, *self.size).nonzero().flatten()


def shifted(detections: Detections, by: tuple[int, int]) -> Detections:
    """Return the same detections with all boxes moved by x, y pixels."""
    if by == (0, 0):
        return detections
    boxes = detections.boxes + detections.boxes.new_tensor([*by, *by])
    return Detections(boxes, detections.scores, detections.labels)


def class_name(names: Mapping[int, str], label: int) -> str:
    """Return the name of a label; labels without one show as numbers."""
    return names.get(label, str(label))


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return boxes cut at the borders of a frame."""
    limits = boxes.new_tensor([width, height])
    lower, upper = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    return torch.cat([lower.clamp(min=0), torch.minimum(upper, limits)], dim=1)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which boxes have a place in a frame, bool `[N]`."""
    limits = boxes.new_tensor([width, height])
    lower, upper = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    return boxes.isfinite().all(1) & (upper > 0).all(1) & (lower < limits).all(1)
