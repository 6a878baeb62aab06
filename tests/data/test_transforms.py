"""Transforms move pixels and boxes together: draw a square, transform both, compare."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stnet.data.augment import (
    Augmentation,
    BrightnessJitter,
    RandomTilt,
    SpeckleNoise,
    TimeJitter,
    improved_training_transform,
    tilt,
)
from stnet.data.clips.planning import sample_clip
from stnet.data.clips.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameStack,
    RandomCrop,
    RandomFlip,
    evaluation_transform,
    normalize,
    paper_training_transform,
    prepare_frames,
    relative_boxes,
    resized_size,
)


def square(height: int, width: int, box: tuple[int, int, int, int], channels: int = 1) -> FrameStack:
    """Two black frames: a white rectangle in the first, nothing in the second."""
    frames = np.zeros((2, height, width, channels), dtype=np.uint8)
    x0, y0, x1, y1 = box
    frames[0, y0:y1, x0:x1] = 255
    return FrameStack(
        frames=frames,
        boxes=(np.array([box], dtype=np.float32), np.zeros((0, 4), dtype=np.float32)),
        labels=(np.array([2]), np.zeros(0, dtype=np.int64)),
    )


def seen(frame: np.ndarray) -> np.ndarray | None:
    """The bounding box of what is brighter than half, x0 y0 x1 y1."""
    rows, columns = np.nonzero(frame[..., 0] > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


@st.composite
def squares(draw):
    height, width = draw(st.integers(24, 90)), draw(st.integers(24, 90))
    x0, y0 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
    x1, y1 = draw(st.integers(x0 + 8, width)), draw(st.integers(y0 + 8, height))
    return square(height, width, (x0, y0, x1, y1))


@settings(max_examples=150, deadline=None)
@given(stack=squares(), seed=st.integers(0, 2**32), size=st.sampled_from([32, 64, 100]))
def test_training_transform_keeps_boxes_on_the_pixels(stack, seed, size):
    longest = 2 * size
    out = paper_training_transform(size, longest)(stack, np.random.default_rng(seed))
    sides = sorted(out.frames.shape[1:3])
    assert len(out.frames) == 2 and sides[1] <= longest + sides[1] / sides[0], "rounded as published"
    assert out.boxes[1].shape == (0, 4) and out.boxes[0].dtype == np.float32
    found = seen(out.frames[0])
    if len(out.boxes[0]) and (out.boxes[0][0, 2:] - out.boxes[0][0, :2] > 4).all():
        np.testing.assert_allclose(out.boxes[0][0], found, atol=1.6)
        assert out.labels[0].tolist() == [2]
    elif not len(out.boxes[0]):
        assert found is None and out.labels[0].shape == (0,)


@settings(max_examples=50, deadline=None)
@given(stack=squares(), size=st.integers(8, 120))
def test_evaluation_sees_what_inference_sees(stack, size):
    out = evaluation_transform(size, 150)(stack, np.random.default_rng(0))
    assert torch.equal(normalize(out.frames), prepare_frames(stack.frames, size, 150))
    back = out.boxes[0] * np.tile([stack.width / out.width, stack.height / out.height], 2)
    np.testing.assert_allclose(back, stack.boxes[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "height, width, short, longest, expected",
    [
        (480, 640, 512, 1333, (512, 682)),
        (640, 480, 512, 1333, (682, 512)),
        (512, 512, 512, 1333, (512, 512)),
        (442, 442, 480, 1333, (480, 480)),
        (400, 1600, 512, 1333, (333, 1332)),
        (100, 4000, 512, 1333, (33, 1320)),
        (3, 1000, 512, 600, (2, 666)),
        (1, 5000, 512, 600, (1, 5000)),
        (480, 640, 512, None, (512, 682)),
    ],
)
def test_published_arithmetic_of_sizes(height, width, short, longest, expected):
    assert resized_size(height, width, short, longest) == expected


def test_training_sizes_are_the_published_ones():
    stack = square(442, 442, (10, 10, 60, 60))
    transform = paper_training_transform(512, 1333)
    rng = np.random.default_rng(0)
    shapes = {transform(stack, rng).frames.shape[1:3] for _ in range(60)}
    assert {min(shape) for shape in shapes} == {480, 512, 544, 576}
    assert any(height != width for height, width in shapes), "crops are not square"


def test_gray_and_rgb_agree():
    gray = square(50, 70, (5, 9, 33, 41))
    rgb = FrameStack(frames=np.repeat(gray.frames, 3, axis=3), boxes=gray.boxes, labels=gray.labels)
    transform = improved_training_transform(40, 80, Augmentation())
    one, three = (transform(stack, np.random.default_rng(5)) for stack in (gray, rgb))
    assert three.frames.shape[3] == 3
    np.testing.assert_array_equal(np.repeat(one.frames, 3, axis=3), three.frames)
    assert torch.equal(normalize(one.frames), normalize(three.frames))


def test_normalize_uses_the_channels_mean_and_deviation():
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    expected = (frames / 255 - IMAGENET_MEAN) / IMAGENET_STD
    out = normalize(frames)
    assert out.dtype == torch.float32 and out.is_contiguous()
    np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_relative_boxes():
    boxes = np.array([[10, 20, 30, 60]], dtype=np.float32)
    np.testing.assert_allclose(relative_boxes(boxes, 100, 200), [[0.1, 0.4, 0.1, 0.4]])
    assert relative_boxes(np.zeros((0, 4), dtype=np.float32), 100, 200).shape == (0, 4)


def test_crop_clips_and_removes_boxes():
    stack = square(40, 40, (0, 0, 8, 8))
    crops = [RandomCrop(least=20, most=20)(stack, np.random.default_rng(seed)) for seed in range(40)]
    assert all(crop.frames.shape[1:3] == (20, 20) for crop in crops)
    for crop in crops:
        found = seen(crop.frames[0])
        assert (found is None) == (len(crop.boxes[0]) == 0)
        if found is not None:
            np.testing.assert_array_equal(crop.boxes[0][0], found)
    assert {len(crop.labels[0]) for crop in crops} == {0, 1}


def test_flip_twice_is_nothing():
    stack = square(20, 30, (2, 3, 11, 12))
    always = RandomFlip(probability=1.0)
    once = always(stack, np.random.default_rng(0))
    twice = always(once, np.random.default_rng(0))
    np.testing.assert_array_equal(once.boxes[0], [[19, 3, 28, 12]])
    np.testing.assert_array_equal(twice.frames, stack.frames)
    np.testing.assert_array_equal(twice.boxes[0], stack.boxes[0])


@settings(max_examples=60, deadline=None)
@given(
    angle=st.floats(-0.5, 0.5),
    zoom=st.floats(0.7, 1.3),
    cx=st.integers(45, 75),
    cy=st.integers(45, 65),
    rx=st.integers(6, 20),
    ry=st.integers(6, 20),
)
def test_tilted_ellipse_stays_in_a_tight_box(angle, zoom, cx, cy, rx, ry):
    y, x = np.mgrid[:110, :130] + 0.5
    disc = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    box = np.array([[cx - rx, cy - ry, cx + rx, cy + ry]], dtype=np.float32)
    stack = FrameStack(frames=(disc[None, :, :, None] * np.uint8(255)), boxes=(box,), labels=(np.array([1]),))
    out = tilt(stack, angle, zoom)
    np.testing.assert_allclose(out.boxes[0][0], seen(out.frames[0]), atol=1.6)


def test_tilt_removes_what_leaves_the_image():
    stack = square(40, 200, (196, 0, 200, 4))
    out = tilt(stack, 0.0, 2.0)
    assert out.boxes[0].shape == (0, 4) and out.frames.shape == stack.frames.shape


def test_brightness_keeps_black_and_order():
    ramp = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(8, axis=1)
    stack = FrameStack(frames=ramp, boxes=(np.zeros((0, 4)),), labels=(np.zeros(0),))
    for seed in range(30):
        out = BrightnessJitter(gain=0.5, gamma=0.5, contrast=0.5, depth=0.5)(
            stack, np.random.default_rng(seed)
        ).frames.astype(int)
        assert (out[:, :, 0] == 0).all() and (np.diff(out[0, :, :, 0], axis=1) >= 0).all()
        assert out.max() > 80


def test_strength_zero_changes_nothing():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 20, 30, 1), dtype=np.uint8)
    none = tuple(np.zeros((0, 4), dtype=np.float32) for _ in range(3))
    stack = FrameStack(frames=frames, boxes=none, labels=none)
    off = (
        BrightnessJitter(gain=0, gamma=0, contrast=0, depth=0),
        SpeckleNoise(amplitude=0),
        RandomTilt(rotation=0, scale=0),
    )
    for transform in off:
        np.testing.assert_array_equal(transform(stack, rng).frames, frames)
    still = TimeJitter(stride=1, reversal=False)
    for seed in range(10):
        assert still(20, 7, 6, np.random.default_rng(seed)) == sample_clip(20, 7, 6, np.random.default_rng(seed))


def test_each_brightness_strength_acts_alone():
    frames = np.full((1, 16, 16, 1), 90, dtype=np.uint8)
    stack = FrameStack(frames=frames, boxes=(np.zeros((0, 4)),), labels=(np.zeros(0),))
    for name in ("gain", "gamma", "contrast", "depth"):
        strengths = dict.fromkeys(("gain", "gamma", "contrast", "depth"), 0.0) | {name: 0.8}
        out = BrightnessJitter(**strengths)(stack, np.random.default_rng(1)).frames[0, :, :, 0]
        assert (out != 90).any(), name
        assert (len(np.unique(out)) > 1) == (name == "depth")


def test_speckle_partly_stays_between_frames():
    stack = FrameStack(
        frames=np.full((2, 64, 64, 1), 128, dtype=np.uint8), boxes=(np.zeros((0, 4)),) * 2, labels=(np.zeros(0),) * 2
    )
    out = SpeckleNoise(amplitude=0.5)(stack, np.random.default_rng(3)).frames.astype(float)
    correlation = np.corrcoef(out[0].ravel(), out[1].ravel())[0, 1]
    assert 0.3 < correlation < 0.7 and out.std() > 1


def test_time_jitter_reverses_and_strides():
    drawn = {TimeJitter(stride=2, reversal=True)(40, 20, 6, np.random.default_rng(s))[:3] for s in range(60)}
    assert drawn == {(20, 19, 21), (20, 21, 19), (20, 18, 22), (20, 22, 18)}
    assert TimeJitter(stride=3, reversal=True)(1, 0, 6, np.random.default_rng(0)) == (0,) * 6
    five = {TimeJitter(stride=1, reversal=True)(40, 20, 6, np.random.default_rng(s), 5)[:5] for s in range(30)}
    assert five == {(20, 19, 21, 22, 18), (20, 21, 19, 18, 22)}


def test_pillow_resizes_with_antialiasing():
    stripes = (np.indices((64, 64))[1] % 2 * 255).astype(np.uint8)
    stack = FrameStack(frames=stripes[None, :, :, None], boxes=(np.zeros((0, 4)),), labels=(np.zeros(0),))
    out = evaluation_transform(16, 100)(stack, np.random.default_rng(0)).frames[0, :, :, 0]
    expected = np.asarray(Image.fromarray(stripes).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(out, expected)
    assert abs(int(out[8, 8]) - 127) < 8
