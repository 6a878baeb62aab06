"""Transforms of a clip: all frames alike, boxes following.

A transform takes a `FrameStack` and a numpy generator and returns a new `FrameStack`; the randomness of a
sample comes from the generator alone. Pixels stay uint8 until `normalize`, so that training, evaluation and
inference share the same last steps.

The published training recipe, at its size of 512: flip with p = 0.5; then with p = 0.5 resize the short side
to one of 480, 512, 544, 576 (longest at most 1333), else resize it to one of 400, 500, 600, crop 384 to 600
pixels each way and resize as before. `paper_training_transform` scales these numbers with its `size`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stnet.normalization import IMAGENET_MEAN, IMAGENET_STD

# Short sides and crop range of the published recipe, and the test size they belong to.
PAPER_SIZE = 512
PAPER_SHORT_SIDES = (480, 512, 544, 576)
PAPER_SHORT_SIDES_BEFORE_CROP = (400, 500, 600)
PAPER_CROP = (384, 600)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameStack:
    """The frames of a clip and what is marked in them.

    `frames` uint8 `[F, H, W, C]` with C = 3 (RGB) or 1 (gray, a third of the work); per frame `boxes` float32
    `[n, 4]`, x0, y0, x1, y1 in pixels, and `labels` int64 `[n]`.
    """

    frames: np.ndarray
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.frames.shape[2]


Transform = Callable[[FrameStack, np.random.Generator], FrameStack]


def resized_size(height: int, width: int, short: int, longest: int | None = None) -> tuple[int, int]:
    """Return the (height, width) of an image whose short side becomes `short`, its long side at most `longest`.

    The published arithmetic: the short side gives way to `longest` rounded (so the long side may exceed it by
    a few pixels), the long side is truncated.
    """
    if longest is not None and max(height, width) / min(height, width) * short > longest:
        short = max(1, round(longest * min(height, width) / max(height, width)))
    if width < height:
        return int(short * height / width), short
    return short, int(short * width / height)


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 `[N, H, W, C]` with Pillow's antialiased bilinear filter."""
    if frames.shape[1:3] == (height, width):
        return frames
    return map_images(frames, lambda image: image.resize((width, height), Image.Resampling.BILINEAR))


def map_images(frames: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a function of Pillow images to each of the frames uint8 `[N, H, W, C]`, C = 1 or 3."""
    squeezed = frames[..., 0] if frames.shape[-1] == 1 else frames
    mapped = np.stack([np.asarray(function(Image.fromarray(frame))) for frame in squeezed])
    return mapped.reshape(*mapped.shape[:3], frames.shape[-1])


def normalize(frames: np.ndarray) -> Tensor:
    """Turn uint8 `[N, H, W, C]`, C = 1 or 3, into float32 `[N, 3, H, W]` with the mean and deviation of ImageNet."""
    scale = 1 / (255 * torch.tensor(IMAGENET_STD))
    shift = torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    channels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, 3, 1)))
    # In place: a second array of this size costs more than the subtraction.
    return (channels * scale[:, None, None]).sub_(shift[:, None, None])


def prepare_frames(frames: np.ndarray, short: int, longest: int) -> Tensor:
    """Return what the model sees at test time of uint8 `[N, H, W, C]`: resized and normalized, `[N, 3, h, w]`."""
    return normalize(resize(frames, *resized_size(*frames.shape[1:3], short, longest)))


@dataclass(frozen=True)
class Sequential:
    """Applies transforms one after another."""

    transforms: tuple[Transform, ...]

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Apply all of them."""
        for transform in self.transforms:
            stack = transform(stack, rng)
        return stack


@dataclass(frozen=True)
class OneOf:
    """Applies one of several transforms, each as likely."""

    transforms: tuple[Transform, ...]

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Apply one of them."""
        return self.transforms[rng.integers(len(self.transforms))](stack, rng)


@dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Mirrors left and right with a probability."""

    probability: float = 0.5

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Mirror, or not."""
        return flip(stack) if rng.random() < self.probability else stack


@dataclass(frozen=True, kw_only=True)
class RandomResize:
    """Resizes the short side to one of `short_sides`; with a single one it is the test-time resize."""

    short_sides: tuple[int, ...]
    longest: int | None = None

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Resize to a size drawn at random."""
        short = self.short_sides[0] if len(self.short_sides) == 1 else int(rng.choice(self.short_sides))
        return resize_stack(stack, *resized_size(stack.height, stack.width, short, self.longest))


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Crops to a height and a width each drawn from `least` to `most` pixels (or what the image has)."""

    least: int
    most: int

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Cut out a rectangle drawn at random."""
        height, width = (self._side(side, rng) for side in (stack.height, stack.width))
        top = int(rng.integers(stack.height - height + 1))
        left = int(rng.integers(stack.width - width + 1))
        return crop(stack, top, left, height, width)

    def _side(self, side: int, rng: np.random.Generator) -> int:
        return int(rng.integers(min(self.least, side), min(self.most, side) + 1))


def paper_training_transform(size: int, longest: int) -> Transform:
    """Return the published recipe, scaled so that its test size of 512 becomes `size`."""

    def scaled(sides: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(1, side * size // PAPER_SIZE) for side in sides)

    resize_short = RandomResize(short_sides=scaled(PAPER_SHORT_SIDES), longest=longest)
    least, most = scaled(PAPER_CROP)
    cropped = Sequential(
        (
            RandomResize(short_sides=scaled(PAPER_SHORT_SIDES_BEFORE_CROP)),
            RandomCrop(least=least, most=most),
            resize_short,
        )
    )
    return Sequential((RandomFlip(), OneOf((resize_short, cropped))))


def evaluation_transform(size: int, longest: int) -> Transform:
    """Return the transform that resizes as `prepare_frames` does; nothing is random."""
    return RandomResize(short_sides=(size,), longest=longest)


def flip(stack: FrameStack) -> FrameStack:
    """Mirror left and right."""
    width = np.float32(stack.width)
    boxes = tuple(np.stack((width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]), axis=1) for b in stack.boxes)
    return FrameStack(frames=stack.frames[:, :, ::-1], boxes=boxes, labels=stack.labels)


def resize_stack(stack: FrameStack, height: int, width: int) -> FrameStack:
    """Resize frames and boxes."""
    if (height, width) == (stack.height, stack.width):
        return stack
    ratio = np.array([width / stack.width, height / stack.height] * 2, dtype=np.float32)
    frames = resize(stack.frames, height, width)
    return FrameStack(frames=frames, boxes=tuple(b * ratio for b in stack.boxes), labels=stack.labels)


def crop(stack: FrameStack, top: int, left: int, height: int, width: int) -> FrameStack:
    """Cut a rectangle out; boxes are clipped to it and removed where nothing of them is left."""
    frames = stack.frames[:, top : top + height, left : left + width]
    offset = np.array([left, top, left, top], dtype=np.float32)
    return with_boxes(stack, frames, tuple(b - offset for b in stack.boxes))


def with_boxes(stack: FrameStack, frames: np.ndarray, boxes: Sequence[np.ndarray]) -> FrameStack:
    """Return the stack with new frames and boxes, these clipped to the frames and removed where empty."""
    height, width = frames.shape[1:3]
    limit = np.array([width, height, width, height], dtype=np.float32)
    clipped = [np.clip(b, np.float32(0), limit) for b in boxes]
    kept = [(b[:, 2:] > b[:, :2]).all(axis=1) for b in clipped]
    return FrameStack(
        frames=frames,
        boxes=tuple(b[k] for b, k in zip(clipped, kept, strict=True)),
        labels=tuple(label[k] for label, k in zip(stack.labels, kept, strict=True)),
    )


def relative_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Turn x0, y0, x1, y1 in pixels into cx, cy, w, h in [0, 1] of the image, float32 `[n, 4]`."""
    x0, y0, x1, y1 = boxes.T / np.array([width, height, width, height], dtype=np.float32)[:, None]
    return np.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), axis=1)
