"""What examiners leave in images: calipers, measurements, notes, arrows, rulers, body marks; and their removal.

Marks stand at lesions in most public stills, so a detector learns the marks. Here they are painted where nothing is,
beside the outline they should have, and over.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, uniform_filter

NOTES = ("LT", "RT", "LEFT BREAST", "RIGHT", "AXILLA", "UOQ", "LIQ", "QSE", "RAD", "ARAD", "SAG", "TRANS", "MAMA", "B")
UNITS = ("mm", "cm", "MM", "CM")

BRIGHT = 170
"""Marks are brighter than this, and by `STEP` brighter than what surrounds them."""
BRIGHT_IN_DARK = 110
STEP = 60
ABOVE_TISSUE = 40
"""On dark scans marks are dim too: above the 95th percentile by this, they count from `BRIGHT_IN_DARK` on."""
SURROUNDINGS = 11


def paint_marks(pixels: np.ndarray, rng: np.random.Generator, places: Sequence[Sequence[float]]) -> np.ndarray:
    """Paint calipers at places, and around them what else goes with a measurement.

    Args:
        pixels: uint8 `[H, W, C]`.
        rng: decides which marks, where and how bright.
        places: x0, y0, x1, y1 of what seems to be measured, true lesions or not.

    Returns:
        A copy with marks.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    pen = _Pen(image, rng)
    for place in places:
        pen.calipers(place)
    if places and rng.random() < 0.5:
        pen.measurement(len(places))
    for draw, chance in ((pen.note, 0.4), (pen.arrow, 0.15), (pen.ruler, 0.2), (pen.body_mark, 0.15)):
        if rng.random() < chance:
            draw()
    return np.asarray(image).reshape(pixels.shape).copy()


def imagined_lesion(rng: np.random.Generator, height: int, width: int) -> tuple[float, float, float, float]:
    """Draw a place of the size of a lesion anywhere in an image, x0 y0 x1 y1 in pixels."""
    w, h = width * rng.uniform(0.08, 0.4), height * rng.uniform(0.08, 0.35)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


def paint_over(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace thin bright strokes by what surrounds them.

    Args:
        pixels: uint8 `[H, W, C]`.
        rng: decides from where in the surroundings each pixel is taken, which keeps the grain.

    Returns:
        A copy without strokes; some bright tissue goes with them.
    """
    gray = pixels.max(axis=2)
    around = uniform_filter(gray.astype(np.float32), SURROUNDINGS)
    bright = np.clip(np.percentile(gray[::2, ::2], 95) + ABOVE_TISSUE, BRIGHT_IN_DARK, BRIGHT)
    strokes = (gray > bright) & (gray > around + STEP)
    if not strokes.any():
        return pixels
    strokes = binary_dilation(strokes, iterations=1)
    filled = pixels.copy()
    rows, columns = np.nonzero(strokes)
    height, width = gray.shape
    for reach in (3, 5, 8, 13):
        angle = rng.uniform(0, 2 * np.pi, len(rows))
        y = np.clip(rows + np.rint(reach * np.sin(angle)).astype(int), 0, height - 1)
        x = np.clip(columns + np.rint(reach * np.cos(angle)).astype(int), 0, width - 1)
        clean = ~strokes[y, x]
        filled[rows[clean], columns[clean]] = pixels[y[clean], x[clean]]
        rows, columns = rows[~clean], columns[~clean]
    left = np.minimum(around[rows, columns], bright)
    filled[rows, columns] = left[:, None].astype(np.uint8)
    return filled


@functools.cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font, about `size` pixels high (one size only where Pillow lacks FreeType)."""
    return ImageFont.load_default(size)


class _Pen:
    """Draws in one style on one image."""

    def __init__(self, image: Image.Image, rng: np.random.Generator):
        self.draw = ImageDraw.Draw(image)
        self.width, self.height = image.size
        self.rng = rng
        level = int(rng.integers(150, 256))
        self.ink = level if image.mode == "L" else _tinted(level, rng)
        self.arm = max(2, round(min(image.size) * rng.uniform(0.008, 0.022)))
        self.thick = 2 if rng.random() < 0.2 else 1
        self.shape = rng.choice(("plus", "cross", "tee"))
        self.dotted = rng.random() < 0.5
        self.size = int(np.clip(min(image.size) * rng.uniform(0.03, 0.055), 7, 18))

    def calipers(self, place: Sequence[float]) -> None:
        """Two pairs (or one) of end points on the axes of an ellipse in the place, not quite on its outline."""
        x0, y0, x1, y1 = place
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        half = np.array([(x1 - x0) / 2, (y1 - y0) / 2]) * self.rng.uniform(0.8, 1.25, 2)
        lean = np.deg2rad(self.rng.uniform(-20, 20))
        axes = [half[0] * np.array([np.cos(lean), np.sin(lean)]), half[1] * np.array([-np.sin(lean), np.cos(lean)])]
        for axis in axes if self.rng.random() < 0.7 else axes[:1]:
            ends = [middle - axis, middle + axis]
            if self.dotted:
                self._dots(*ends)
            for end in ends:
                self._end(end)

    def measurement(self, count: int) -> None:
        """Lengths, as scanners print them in a corner."""
        lines = [
            f"{'+x:'[self.rng.integers(3)]}{number + 1} "
            f"{('D', 'L', 'Dist', '')[self.rng.integers(4)]} {self.rng.uniform(0.3, 30):.1f}{self._one(UNITS)}"
            for number in range(count + int(self.rng.integers(2)))
        ]
        self._text("\n".join(lines))

    def note(self) -> None:
        """Write a side or a region."""
        self._text(f"{self._one(NOTES)} {self.rng.integers(1, 13) if self.rng.random() < 0.5 else ''}")

    def arrow(self) -> None:
        """Draw an arrow head, or a short arrow."""
        tip = self._anywhere()
        angle = self.rng.uniform(0, 2 * np.pi)
        for spread in (-0.4, 0.4):
            self._line(tip, tip + 2.5 * self.arm * np.array([np.cos(angle + spread), np.sin(angle + spread)]))
        if self.rng.random() < 0.5:
            self._line(tip, tip + 6 * self.arm * np.array([np.cos(angle), np.sin(angle)]))

    def ruler(self) -> None:
        """Ticks along a side."""
        step = max(4.0, self.height * self.rng.uniform(0.04, 0.12))
        x = self._one((1, self.width - 2 - 2 * self.arm))
        for number, y in enumerate(np.arange(self.rng.uniform(0, step), self.height, step)):
            self._line(np.array([x, y]), np.array([x + self.arm * (2 if number % 5 == 0 else 1), y]))

    def body_mark(self) -> None:
        """Draw a breast as a circle, with a stroke for the probe."""
        radius = min(self.width, self.height) * self.rng.uniform(0.04, 0.08)
        x, y = self._anywhere()
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=self.ink)
        angle = self.rng.uniform(0, 2 * np.pi)
        probe = radius * 0.5 * np.array([np.cos(angle), np.sin(angle)])
        centre = np.array([x, y]) + self.rng.uniform(-0.6, 0.6, 2) * radius
        self._line(centre - probe, centre + probe)

    def _end(self, at: np.ndarray) -> None:
        arms = {"plus": ((1, 0), (0, 1)), "cross": ((1, 1), (1, -1)), "tee": ((1, 0), (0, 0.5))}[self.shape]
        for arm in arms:
            self._line(at - self.arm * np.array(arm), at + self.arm * np.array(arm))

    def _dots(self, start: np.ndarray, end: np.ndarray) -> None:
        count = max(2, int(np.hypot(*(end - start)) / max(3, self.arm)))
        self.draw.point([tuple(start + (end - start) * share) for share in np.linspace(0, 1, count)], fill=self.ink)

    def _line(self, start: np.ndarray, end: np.ndarray) -> None:
        self.draw.line((*start, *end), fill=self.ink, width=self.thick)

    def _text(self, text: str) -> None:
        self.draw.multiline_text(tuple(self._anywhere()), text, fill=self.ink, font=font(self.size))

    def _anywhere(self) -> np.ndarray:
        return self.rng.uniform(0, 0.92, 2) * (self.width, self.height)

    def _one(self, choices: Sequence):
        return choices[self.rng.integers(len(choices))]


def _tinted(level: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """White, or the yellow, green or cyan of scanners."""
    tints = ((1, 1, 1), (1, 1, 0.3), (0.3, 1, 0.4), (0.3, 1, 1))
    return tuple(int(level * share) for share in tints[rng.integers(len(tints))])
