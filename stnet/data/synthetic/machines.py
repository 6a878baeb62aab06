"""How the same tissue looks on another machine, at another setting, or with the probe held badly."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from stnet.data.clips.transforms import FrameStack, map_images


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Change the grain with a probability: coarser, smeared across the beam, smoothed, or sharpened.

    Attributes:
        probability: share of the clips that are changed.
    """

    probability: float

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Change all frames alike."""
        if rng.random() >= self.probability:
            return stack
        kind, strength = rng.integers(4), rng.random()
        changes = (
            lambda image: _resampled(image, 1 + 1.2 * strength, 1 + 1.2 * strength),
            lambda image: _resampled(image, 1 + 2 * strength, 1.0),
            lambda image: image.filter(ImageFilter.GaussianBlur(0.4 + strength)),
            lambda image: image.filter(ImageFilter.UnsharpMask(1 + 2 * strength, int(40 + 120 * strength), 0)),
        )
        frames = map_images(stack.frames, changes[kind])
        return FrameStack(frames=frames, boxes=stack.boxes, labels=stack.labels)


@dataclass(frozen=True, kw_only=True)
class DynamicRange:
    """Cut off or lift the dark end of the display, as a smaller or a larger dynamic range does, and sway the gain.

    Attributes:
        cut: the darkest gray level shown, as a share of white, drawn from -cut / 2 (the dark is lifted) to cut.
        sway: largest relative change of the gain from frame to frame.
    """

    cut: float
    sway: float = 0.0

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Change the gray levels of every frame."""
        black = rng.uniform(-self.cut / 2, self.cut)
        gains = 1 + self.sway * rng.uniform(-1, 1, len(stack.frames))
        if self.sway == 0 and black == 0:
            return stack
        gray = np.linspace(0, 1, 256) * gains[:, None]
        tables = (255 * np.clip((gray - black) / (1 - black), 0, 1) + 0.5).astype(np.uint8)
        tables[:, 0] = 0
        frames = np.stack([np.take(table, frame) for table, frame in zip(tables, stack.frames, strict=True)])
        return FrameStack(frames=frames, boxes=stack.boxes, labels=stack.labels)


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Darken a stretch below some point, as ribs, air and missing contact do; lesions are left alone.

    Attributes:
        probability: share of the clips that get a shadow where there is room for one.
    """

    probability: float

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Cast one shadow on all frames."""
        if rng.random() >= self.probability:
            return stack
        height, width = stack.height, stack.width
        centre, spread = rng.uniform(0, width), width * rng.uniform(0.04, 0.18)
        top, lean = rng.uniform(-0.3, 0.7) * height, rng.uniform(-0.3, 0.3)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        edge = rng.uniform(2, 10)
        across = (spread - np.abs(x - centre - lean * (y - top))) / edge
        depth = (y - top) / edge
        shade = (1 - rng.uniform(0.4, 0.97)) ** np.clip(np.minimum(across, depth), 0, 1)
        for boxes in stack.boxes:
            for x0, y0, x1, y1 in boxes.astype(int):
                if (shade[max(0, y0) : y1 + 1, max(0, x0) : x1 + 1] < 0.98).any():
                    return stack
        factor = (256 * shade).astype(np.uint16)[None, :, :, None]
        frames = ((stack.frames * factor) >> 8).astype(np.uint8)
        return FrameStack(frames=frames, boxes=stack.boxes, labels=stack.labels)


def _resampled(image: Image.Image, across: float, down: float) -> Image.Image:
    """Drawn at fewer pixels and enlarged again."""
    small = image.resize(
        (max(1, round(image.width / across)), max(1, round(image.height / down))), Image.Resampling.BILINEAR
    )
    return small.resize(image.size, Image.Resampling.BICUBIC)
