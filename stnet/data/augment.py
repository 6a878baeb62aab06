"""Augmentations of ultrasound beyond the published recipe, each with a strength that switches it off at 0.

What varies between scanners, examiners and settings: gain, gamma and contrast of the display, the depth gain
curve, the speckle realization, the tilt and zoom of the probe, the direction and speed of the sweep.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stnet.data.clips.planning import LOCAL_FRAMES, local_offsets, sample_clip
from stnet.data.clips.transforms import (
    FrameStack,
    Sequential,
    Transform,
    map_images,
    paper_training_transform,
    with_boxes,
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Strengths of the augmentations; 0 (or False) switches one off.

    gain: brightness factor 2^u, |u| <= gain
    gamma: display exponent 2^u, |u| <= gamma
    contrast: factor 2^u around middle gray, |u| <= contrast
    depth: brightness factor that runs from 2^-u at the top to 2^u at the bottom, |u| <= depth
    speckle: relative amplitude of multiplicative noise, drawn up to this value
    rotation: degrees either way
    scale: zoom factor 2^u, |u| <= scale
    stride: largest distance of the local frames, in frames (1: neighbours, as published)
    reversal: play clips backwards half of the time
    """

    gain: float = 0.3
    gamma: float = 0.3
    contrast: float = 0.3
    depth: float = 0.3
    speckle: float = 0.2
    rotation: float = 8.0
    scale: float = 0.2
    stride: int = 2
    reversal: bool = True


def improved_training_transform(size: int, longest: int, strengths: Augmentation) -> Transform:
    """Return the published recipe at `size` with tilt and zoom before and changes of brightness and speckle after."""
    return Sequential(
        (
            RandomTilt(rotation=strengths.rotation, scale=strengths.scale),
            paper_training_transform(size, longest),
            BrightnessJitter(
                gain=strengths.gain,
                gamma=strengths.gamma,
                contrast=strengths.contrast,
                depth=strengths.depth,
            ),
            SpeckleNoise(amplitude=strengths.speckle),
        )
    )


@dataclass(frozen=True, kw_only=True)
class TimeJitter:
    """A clip sampler for `ClipDataset`: `sample_clip` with longer steps between local frames, or backwards.

    A step of 2 takes t, t-2, t+2; backwards takes t, t+1, t-1. Every frame keeps its own boxes.
    """

    stride: int
    reversal: bool

    def __call__(
        self,
        length: int,
        centre: int,
        frames_per_clip: int,
        rng: np.random.Generator,
        targets: int = LOCAL_FRAMES,
    ) -> tuple[int, ...]:
        """Choose the frames of a clip around `centre`, see `sample_clip`."""
        frames = np.array(sample_clip(length, centre, frames_per_clip, rng, targets))
        step = int(rng.integers(1, max(1, self.stride) + 1))
        if self.reversal and rng.random() < 0.5:
            step = -step
        offsets = np.array(local_offsets(frames_per_clip, targets))
        frames[: len(offsets)] = np.clip(centre + step * offsets, 0, length - 1)
        return tuple(int(frame) for frame in frames)


@dataclass(frozen=True, kw_only=True)
class BrightnessJitter:
    """Gain, gamma, contrast and depth gain of the display; black stays black."""

    gain: float
    gamma: float
    contrast: float
    depth: float

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Change the brightness of all frames alike."""
        gain, gamma, contrast, depth = (
            2.0 ** rng.uniform(-limit, limit) for limit in (self.gain, self.gamma, self.contrast, self.depth)
        )
        gray = np.linspace(0, 1, 256) ** gamma * gain
        # Fading the change of contrast out below middle gray keeps the background of the scan black.
        gray = 0.5 + (gray - 0.5) * np.where(gray < 0.5, 1 + (contrast - 1) * gray * 2, contrast)
        row_gain = depth ** np.linspace(-1, 1, stack.height)
        table = (255 * np.clip(gray * row_gain[:, None], 0, 1) + 0.5).astype(np.uint8)
        table[:, 0] = 0
        rows = np.arange(stack.height)[None, :, None, None]
        return FrameStack(frames=table[rows, stack.frames], boxes=stack.boxes, labels=stack.labels)


@dataclass(frozen=True, kw_only=True)
class SpeckleNoise:
    """Multiplicative grain two pixels wide; half of it stays from frame to frame, as speckle does."""

    amplitude: float

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Multiply every frame with grain."""
        amplitude = rng.uniform(0, self.amplitude)
        if amplitude == 0:
            return stack
        count, height, width = stack.frames.shape[:3]
        shape = (count + 1, height // 2 + 2, width // 2 + 2)
        grain = rng.standard_normal(shape, dtype=np.float32)
        grain = (grain[:-1] + grain[-1]) * np.float32(amplitude / np.sqrt(2))
        grain = grain.repeat(2, axis=1).repeat(2, axis=2)
        # Averaging neighbours softens the blocks of 2 x 2 pixels.
        grain = (grain[:, :-1] + grain[:, 1:]) / 2
        grain = (grain[:, :, :-1] + grain[:, :, 1:]) / 2
        factor = 1 + grain[:, 1 : height + 1, 1 : width + 1, None]
        frames = np.clip(stack.frames * factor + 0.5, 0, 255).astype(np.uint8)
        return FrameStack(frames=frames, boxes=stack.boxes, labels=stack.labels)


@dataclass(frozen=True, kw_only=True)
class RandomTilt:
    """Rotate and zooms about the centre of the image, keeping its size.

    A box becomes the bounding box of the ellipse inscribed in it, turned: lesions fill their boxes as
    ellipses do, and the bounding box of the turned rectangle would be too large.
    """

    rotation: float
    scale: float

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Rotate and zoom all frames alike."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
        zoom = 2.0 ** rng.uniform(-self.scale, self.scale)
        if angle == 0 and zoom == 1:
            return stack
        return tilt(stack, angle, zoom)


def tilt(stack: FrameStack, angle: float, zoom: float) -> FrameStack:
    """Rotate by `angle` (radians, clockwise on the screen) and zooms about the centre; outside is black."""
    centre = np.array([stack.width / 2, stack.height / 2])
    forward = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    backward = np.linalg.inv(forward)
    shift = centre - backward @ centre
    coefficients = (*backward[0], shift[0], *backward[1], shift[1])
    frames = map_images(
        stack.frames,
        lambda image: image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR),
    )
    return with_boxes(stack, frames, [_tilted_boxes(boxes, forward, centre) for boxes in stack.boxes])


def _tilted_boxes(boxes: np.ndarray, forward: np.ndarray, centre: np.ndarray) -> np.ndarray:
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre) @ forward.T + centre
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    half = np.sqrt(half**2 @ (forward**2).T)
    return np.concatenate((middle - half, middle + half), axis=1).astype(np.float32)
