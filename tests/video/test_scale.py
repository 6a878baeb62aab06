"""Sizes in millimetres: by region, by pixel spacing, or not at all."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stnet.video import ArraySource, PixelScale, uniform_scale
from stnet.video.scale import RegionScale

pytest.importorskip("pydicom")
from pydicom.sequence import Sequence

from stnet.video import open_source
from tests.video.dicom_making import dataset, loop, region, save


def scaled(box, dx: float, dy: float, units=(3, 3), reference=None):
    item = region(*box)
    item.PhysicalDeltaX, item.PhysicalDeltaY = dx, dy
    item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = units
    if reference is not None:
        item.ReferencePixelX0, item.ReferencePixelY0 = 0, reference[0]
        item.ReferencePixelPhysicalValueX, item.ReferencePixelPhysicalValueY = 0.0, reference[1]
    return item


def source(tmp_path, *items, full_frame=False, **elements):
    if items:
        elements["SequenceOfUltrasoundRegions"] = Sequence(items)
    return open_source(save(dataset(loop(2, 100, 160), **elements), tmp_path / "a"), full_frame=full_frame)


@pytest.mark.parametrize("full_frame", [False, True])
def test_regions_have_their_own_scales_in_pixels_of_the_whole_frame(tmp_path, full_frame):
    left = scaled((10, 20, 69, 89), 0.02, 0.01, reference=(5, 0.0))
    right = scaled((80, 20, 149, 89), 0.05, 0.04, reference=(0, 0.5))
    scale = source(tmp_path, left, right, full_frame=full_frame).scale
    found = scale.size_of((20, 45, 30, 65))
    assert (found.width, found.depth, found.top) == pytest.approx((2.0, 2.0, 2.0))
    found = scale.size_of((90, 30, 110, 40))
    assert (found.width, found.depth, found.top) == pytest.approx((10.0, 4.0, 5.0 + 4.0))
    assert scale.size_of((60, 30, 75, 40)).width == pytest.approx(3.0)  # most of it is left
    assert scale.size_of((68, 30, 82, 40)) is None  # between the two
    assert scale.size_of((0, 0, 9, 9)) is None


def test_upward_axes_and_missing_references(tmp_path):
    upward = source(tmp_path, scaled((0, 0, 99, 99), 0.01, -0.01, reference=(10, 0.2))).scale
    assert upward.size_of((10, 40, 20, 50)).top == pytest.approx((40 - 10) * 0.1 - 2.0)
    unknown = source(tmp_path, scaled((0, 0, 99, 99), 0.01, 0.01)).scale
    assert unknown.size_of((10, 40, 20, 50)).top is None and unknown.size_of((10, 40, 20, 50)).depth == pytest.approx(1)


def test_the_smaller_of_overlapping_regions_counts(tmp_path):
    large, small = scaled((0, 0, 159, 99), 0.02, 0.02), scaled((20, 20, 79, 79), 0.01, 0.01)
    scale = source(tmp_path, large, small).scale
    assert scale.size_of((30, 30, 40, 40)).width == pytest.approx(1)
    assert scale.size_of((100, 30, 110, 40)).width == pytest.approx(2)


def test_pixel_spacing(tmp_path):
    scale = source(tmp_path, PixelSpacing=[0.2, 0.1]).scale
    found = scale.size_of((10, 10, 20, 20))
    assert (found.width, found.depth) == pytest.approx((1.0, 2.0)) and found.top is None


@pytest.mark.parametrize(
    "item",
    [
        scaled((0, 0, 99, 99), 0.01, 0.01, units=(3, 4)),
        scaled((0, 0, 99, 99), 0.01, 0.01, units=(0, 0)),
        scaled((0, 0, 99, 99), 0.0, 0.01),
        scaled((0, 0, 99, 99), 1e9, 0.01),
        scaled((0, 0, 99, 99), math.nan, 0.01),
        region(0, 0, 99, 99),
    ],
)
def test_what_is_not_stated_is_absent(tmp_path, item):
    assert source(tmp_path, item).scale is None


def test_other_sources_state_none():
    assert ArraySource(np.zeros((2, 8, 8), np.uint8)).scale is None
    assert uniform_scale(0, 0.1) is uniform_scale(0.1, 1000) is None
    with pytest.raises(ValueError, match="not between"):
        RegionScale(pixel_width=-1, pixel_height=1)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=4, max_size=4),
    st.floats(0.01, 5),
    st.floats(0.01, 5),
)
def test_any_box_has_a_size_of_its_own_scale_or_none(box, across, down):
    scale = PixelScale(regions=(RegionScale(pixel_width=across, pixel_height=down, surface=3.0),))
    found = scale.size_of(box)
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)) or x1 <= x0 or y1 <= y0:
        assert found is None
    else:
        assert found.width == pytest.approx((x1 - x0) * across) and found.depth == pytest.approx((y1 - y0) * down)
        assert found.top == pytest.approx((y0 - 3) * down)
