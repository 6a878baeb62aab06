"""What surrounds a scan on a screen: black margins, pillar boxes, sectors, menus, gray wedges, rulers and text.

A detector that has only seen cropped stills marks such surroundings; here they never carry a box.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from stnet.data.clips.transforms import FrameStack
from stnet.data.synthetic.marks import font

WORDS = (
    "GE",
    "PHILIPS",
    "SIEMENS",
    "L12-5",
    "MI 0.9",
    "TIS 0.4",
    "FR 32Hz",
    "Gn 64",
    "DR 60",
    "2D",
    "Freeze",
    "B",
    "R",
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where on a screen of `height` x `width` pixels the scan lies: `top`, `left`, `rows`, `columns`."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int


def draw_layout(rng: np.random.Generator, height: int, width: int) -> Layout:
    """Draw where a scan lies on a screen: pillar boxes, letter boxes, or a frame all around."""
    kind = rng.integers(3)
    share_x = rng.uniform(0.55, 0.95) if kind != 1 else 1.0
    share_y = rng.uniform(0.55, 0.95) if kind != 0 else 1.0
    columns, rows = max(1, round(width * share_x)), max(1, round(height * share_y))
    left, top = (int(rng.integers(room + 1)) for room in (width - columns, height - rows))
    return Layout(height=height, width=width, top=top, left=left, rows=rows, columns=columns)


def place_on_screen(stack: FrameStack, layout: Layout, rng: np.random.Generator) -> FrameStack:
    """Put the frames `[F, rows, columns, C]` of a scan onto a screen; the screen does not move."""
    channels = stack.frames.shape[3]
    screen = _screen(layout, channels, rng)
    frames = np.repeat(screen[None], len(stack.frames), axis=0)
    rows = slice(layout.top, layout.top + layout.rows)
    columns = slice(layout.left, layout.left + layout.columns)
    frames[:, rows, columns] = stack.frames
    offset = np.array([layout.left, layout.top, layout.left, layout.top], dtype=np.float32)
    return FrameStack(frames=frames, boxes=tuple(boxes + offset for boxes in stack.boxes), labels=stack.labels)


def cut_sector(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
    """Blacken what lies outside the sector of a curved or a steered probe, unless that would cut a lesion."""
    height, width = stack.height, stack.width
    y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    depth = height * rng.uniform(0.15, 1.2)
    centre = width * rng.uniform(0.45, 0.55)
    spread = width * rng.uniform(0.3, 0.62) / (height + depth)
    inside = np.abs(x - centre) <= spread * (y + depth)
    if rng.random() < 0.6:  # curved: arcs about the apex of the sector
        radius = np.hypot(x - centre, y + depth)
        inside &= (radius >= depth) & (radius <= height + depth)
    for boxes in stack.boxes:
        for x0, y0, x1, y1 in boxes:
            across, down = (x - (x0 + x1) / 2) / max(x1 - x0, 1e-6), (y - (y0 + y1) / 2) / max(y1 - y0, 1e-6)
            if (~inside & (across**2 + down**2 <= 0.25)).any():
                return stack
    return FrameStack(
        frames=stack.frames * inside[None, :, :, None].astype(np.uint8), boxes=stack.boxes, labels=stack.labels
    )


def _screen(layout: Layout, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Return the screen without its scan, uint8 `[H, W, C]`: black half of the time, else with an interface."""
    level = int(rng.integers(60)) if rng.random() < 0.3 else 0
    image = Image.new("L", (layout.width, layout.height), level)
    if rng.random() < 0.5:
        _draw_interface(ImageDraw.Draw(image), layout, rng)
    pixels = np.asarray(image)[..., None]
    if rng.random() < 0.3:
        noise = rng.integers(0, int(rng.integers(2, 8)), pixels.shape, dtype=np.uint8)
        pixels = np.minimum(pixels, 247) + noise
    return np.repeat(pixels, channels, axis=2)


def _draw_interface(draw: ImageDraw.ImageDraw, layout: Layout, rng: np.random.Generator) -> None:
    ink = int(rng.integers(90, 256))
    size = int(np.clip(min(layout.width, layout.height) * rng.uniform(0.035, 0.06), 6, 16))
    for _ in range(int(rng.integers(1, 9))):
        words = [WORDS[rng.integers(len(WORDS))] for _ in range(int(rng.integers(1, 5)))]
        at = (rng.uniform(0, layout.width * 0.9), rng.uniform(0, layout.height * 0.95))
        draw.multiline_text(at, "\n".join(words), fill=ink, font=font(size))
    if rng.random() < 0.5:
        _draw_wedge(draw, layout, rng)
    for _ in range(int(rng.integers(4))):  # buttons, tabs, thumbnails
        x, y = rng.uniform(0, layout.width), rng.uniform(0, layout.height)
        w, h = layout.width * rng.uniform(0.03, 0.25), layout.height * rng.uniform(0.03, 0.2)
        draw.rectangle((x, y, x + w, y + h), fill=int(rng.integers(20, 160)), outline=ink)
    right = layout.left + layout.columns
    step = layout.rows / int(rng.integers(4, 16))
    for y in np.arange(layout.top, layout.top + layout.rows, step):
        draw.line((right + 1, y, right + 4, y), fill=ink)


def _draw_wedge(draw: ImageDraw.ImageDraw, layout: Layout, rng: np.random.Generator) -> None:
    """Draw the gray wedge of the display's map, beside the scan."""
    x = rng.uniform(0, layout.width * 0.95)
    width, top, bottom = rng.uniform(3, 9), layout.height * rng.uniform(0, 0.3), layout.height * rng.uniform(0.5, 1)
    for y in range(int(top), int(bottom)):
        draw.line((x, y, x + width, y), fill=int(255 * (bottom - y) / max(bottom - top, 1)))
