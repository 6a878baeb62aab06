"""Physical size of pixels: what a source states of it, and what that makes of a box."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stnet.video.geometry import Box

MM_RANGE = (1e-4, 10.0)
"""Widths and heights of a pixel that are believed, in mm."""

LEAST_OVERLAP = 0.5
"""Share of a box that must lie in a region for its scale to hold."""


@dataclass(frozen=True, kw_only=True)
class BoxSize:
    """Extents of a box in mm, and how deep its top lies; `top` is None where no depth is stated."""

    width: float
    depth: float
    top: float | None


@dataclass(frozen=True, kw_only=True)
class RegionScale:
    """The size of pixels in a part of the frame.

    `box` is the part, in pixels of the frame; None is all of it. `pixel_width` and `pixel_height` are in mm.
    `surface` is the row of the frame at depth 0, which may lie outside of it; None where it is not stated.
    """

    box: Box | None = None
    pixel_width: float
    pixel_height: float
    surface: float | None = None

    def __post_init__(self) -> None:
        for side in (self.pixel_width, self.pixel_height):
            if not MM_RANGE[0] <= side <= MM_RANGE[1]:
                raise ValueError(f"a pixel of {side:g} mm is not between {MM_RANGE[0]:g} and {MM_RANGE[1]:g} mm")

    def overlap(self, box: Sequence[float]) -> float:
        """Return the share of a box that lies in the region."""
        if self.box is None:
            return 1.0
        x0, y0, x1, y1 = box
        width = max(0.0, min(x1, self.box[2]) - max(x0, self.box[0]))
        height = max(0.0, min(y1, self.box[3]) - max(y0, self.box[1]))
        return width * height / ((x1 - x0) * (y1 - y0))

    def size(self, box: Sequence[float]) -> BoxSize:
        """Return the size of a box by this region's pixels."""
        x0, y0, x1, y1 = (float(value) for value in box)
        top = None if self.surface is None else (y0 - self.surface) * self.pixel_height
        return BoxSize(width=(x1 - x0) * self.pixel_width, depth=(y1 - y0) * self.pixel_height, top=top)


@dataclass(frozen=True, kw_only=True)
class PixelScale:
    """The physical size of a source's pixels, region by region; where regions overlap, the first is the most exact."""

    regions: tuple[RegionScale, ...]

    def size_of(self, box: Sequence[float]) -> BoxSize | None:
        """Return the size of a box, or None where no scale is known for it: nothing is guessed.

        The scale is that of the region that most of the box lies in; a box that lies half outside of all has none.

        Args:
            box: x0, y0, x1, y1 in pixels of the frame (as results have them).
        """
        values = [float(value) for value in box]
        if not all(map(math.isfinite, values)) or values[2] <= values[0] or values[3] <= values[1]:
            return None
        best = max(self.regions, key=lambda region: region.overlap(values), default=None)
        if best is None or best.overlap(values) < LEAST_OVERLAP:
            return None
        return best.size(values)


def uniform_scale(pixel_width: float, pixel_height: float) -> PixelScale | None:
    """Return the scale of a frame whose pixels (mm) are all alike, or None where the numbers are not believable."""
    try:
        return PixelScale(regions=(RegionScale(pixel_width=pixel_width, pixel_height=pixel_height),))
    except ValueError:
        return None
