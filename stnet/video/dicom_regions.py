"""The scan regions of an ultrasound image: what of a frame is shown, and what is kept dark.

Whatever lies beside the scan may carry the patient's name. So only what a plausible region covers is shown; regions
that do not fit the frame are not trusted (a header that survived a change of the image's size has them all wrong), and
where none is left, the user has to ask for whole frames.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from stnet.video.dicom_elements import number, text
from stnet.video.geometry import Box, believable_aspect
from stnet.video.scale import PixelScale, RegionScale

SPATIAL_FORMAT_2D = 1
TISSUE, COLOUR_FLOW = 1, 2
LEAST_SIDE = 8
"""Regions narrower than this, in pixels, show no scan."""

WHOLE_SHARE = 0.98
"""Share of the frame from which on a region is said to be all of it."""

CENTIMETRES = 3
MANY = 64


@dataclass(frozen=True, kw_only=True)
class Region:
    """One plausible 2D region: its box, its data type, and the size of its pixels where it is stated."""

    box: Box
    kind: int
    scale: RegionScale | None


@dataclass(frozen=True, kw_only=True)
class ScanArea:
    """What of a frame is looked at: `box`, and in it the boxes `shown`; all else is black.

    `box` is None where nothing is to be cut. `refusal` says why whole frames must be asked for.
    """

    regions: tuple[Region, ...] = ()
    box: Box | None = None
    shown: tuple[Box, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: str | None = None

    @property
    def scale(self) -> PixelScale | None:
        """The size of pixels by region, the smallest first, or None where no region states it."""
        known = [region.scale for region in self.regions if region.scale is not None]
        known.sort(key=lambda scale: (scale.box[2] - scale.box[0]) * (scale.box[3] - scale.box[1]))
        return PixelScale(regions=tuple(known)) if known else None

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a pixel over its height, as the first region with known pixels has it."""
        known = next((region.scale for region in self.regions if region.scale), None)
        if known is None:
            return None
        return believable_aspect(round(known.pixel_width, 9), round(known.pixel_height, 9))

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """Return the part of a frame `[H, W, 3]` that is looked at, black outside the regions."""
        if self.box is None:
            return frame
        x0, y0, x1, y1 = self.box
        image = np.zeros((y1 - y0, x1 - x0, frame.shape[2]), dtype=frame.dtype)
        for left, top, right, bottom in self.shown:
            image[top - y0 : bottom - y0, left - x0 : right - x0] = frame[top:bottom, left:right]
        return image


def read_scan_area(dataset: Any, height: int, width: int) -> ScanArea:
    """Return what of frames of this size is looked at, as the header's 2D tissue (else 2D colour) regions have it."""
    regions, unusable = _regions(dataset, height, width)
    if not regions:
        return ScanArea(refusal=_refusal(dataset, unusable), notes=("its header names no 2D scan region",))
    boxes = [region.box for region in regions]
    main = [region.box for region in regions if region.kind == TISSUE] or boxes
    box = (min(b[0] for b in main), min(b[1] for b in main), max(b[2] for b in main), max(b[3] for b in main))
    shown = tuple(cut for cut in (_intersection(other, box) for other in boxes) if cut is not None)
    notes = []
    if unusable:
        notes.append(f"{unusable} of {unusable + len(regions)} scan regions in its header fit no scan: left out")
    if any((x1 - x0) * (y1 - y0) >= WHOLE_SHARE * height * width for x0, y0, x1, y1 in shown):
        notes.append("the scan region in its header is the whole frame: text burned into the frames shows")
    return ScanArea(regions=regions, box=box, shown=shown, notes=tuple(notes))


def _regions(dataset: Any, height: int, width: int) -> tuple[tuple[Region, ...], int]:
    """Return the plausible 2D tissue and colour regions, and the number of those that are not."""
    regions, unusable = [], 0
    for item in _items(dataset):
        kind = number(item, "RegionDataType")
        if number(item, "RegionSpatialFormat") != SPATIAL_FORMAT_2D or kind not in (TISSUE, COLOUR_FLOW):
            continue
        box = _box(item, height, width)
        if box is None:
            unusable += 1
        else:
            regions.append(Region(box=box, kind=round(kind), scale=_scale(item, box)))
    return tuple(regions), unusable


def _items(dataset: Any) -> list:
    try:
        return list(dataset.get("SequenceOfUltrasoundRegions") or ())[:MANY]
    except Exception:  # damaged elements are as good as absent
        return []


def _box(item: Any, height: int, width: int) -> Box | None:
    corners = [number(item, f"RegionLocation{corner}") for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    if None in corners:
        return None
    x0, y0, x1, y1 = map(round, corners)
    # Some scanners count the last column and row from 1.
    if min(x0, y0) < 0 or x1 > width or y1 > height:
        return None
    box = (x0, y0, min(x1 + 1, width), min(y1 + 1, height))
    return box if min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE else None


def _scale(item: Any, box: Box) -> RegionScale | None:
    """Return the size of a region's pixels, where both axes are lengths, and the row at depth 0."""
    across, down = (number(item, f"PhysicalDelta{axis}") for axis in "XY")
    units = [number(item, f"PhysicalUnits{axis}Direction") for axis in "XY"]
    if not across or not down or units != [CENTIMETRES, CENTIMETRES]:
        return None
    pixel, value = number(item, "ReferencePixelY0"), number(item, "ReferencePixelPhysicalValueY")
    # The reference pixel counts from the corner of the region; `value` cm is the place of its row on the axis.
    surface = None if pixel is None or value is None else box[1] + pixel - value / down
    try:
        return RegionScale(box=box, pixel_width=abs(across) * 10, pixel_height=abs(down) * 10, surface=surface)
    except ValueError:
        return None


def _refusal(dataset: Any, unusable: int) -> str | None:
    if unusable:
        return "the scan region in its header does not lie within the frame"
    if text(dataset, "BurnedInAnnotation") == "YES":
        return "its header names no 2D scan region and says that text is burned into the frames"
    return None


def _intersection(a: Box, b: Box) -> Box | None:
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
