"""Detections and lesions drawn into frames."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stnet.inference.frame_marks import Mark, listed, marks_of
from stnet.inference.frame_results import FrameResult
from stnet.inference.label_places import Label, placed
from stnet.model.postprocess import Detections

# Okabe-Ito colours: told apart by colour-blind readers, and bright on dark ultrasound.
PALETTE = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))

READABLE_SIDE = 480
"""Shorter side, in pixels, that small frames are enlarged towards, so that their labels can be read."""

LONGEST_SIDE = 1920
"""Longer side that no frame is enlarged beyond."""

LEAST_LETTERS = 10
"""Height of letters in pixels, at least."""

DASH = 5
"""Length of dashes, in line widths."""


def readable_scale(height: int, width: int) -> int:
    """Return how many times a frame is enlarged so that labels in it can be read; 1 for frames large enough."""
    return max(1, min(round(READABLE_SIDE / min(height, width)), LONGEST_SIDE // max(height, width)))


def colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class."""
    return PALETTE[(label - 1) % len(PALETTE)]


def draw_detections(
    image: np.ndarray, detections: Detections, class_names: dict[int, str], score_threshold: float = 0.0
) -> np.ndarray:
    """Return a copy of uint8 `[H, W, 3]` with boxes, class names and scores of at least `score_threshold`.

    Boxes are cut at the borders of the frame; those wholly outside are left out.
    """
    found = FrameResult(video="", index=0, time=0.0, detections=detections, size=image.shape[:2])
    return draw_marks(image, marks_of(listed(found, score_threshold)), class_names)


def draw_marks(image: np.ndarray, marks: Sequence[Mark], class_names: dict[int, str], scale: int = 1) -> np.ndarray:
    """Return uint8 `[H * scale, W * scale, 3]` of uint8 `[H, W, 3]` with marks and their labels.

    Boxes of lesions that were not found for sure are dashed. No label covers another one: where there is no room for
    all, the lower scores say less or nothing.

    Args:
        image: the frame.
        marks: in pixels of the frame, the most important first.
        class_names: by label.
        scale: how many times the frame is enlarged.
    """
    canvas = _enlarged(image, scale)
    width, height = canvas.size
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(height, width) / 240))
    font = letters(max(LEAST_LETTERS, round(min(height, width) / 28)))
    corners = [_corners(mark.box, scale, height, width) for mark in marks]
    for mark, box in reversed(list(zip(marks, corners, strict=True))):
        if mark.sure:
            pen.rectangle(box, outline=colour(mark.label), width=line)
        else:
            dashed_rectangle(pen, box, colour(mark.label), line)
    texts = [mark.texts(class_names) for mark in marks]
    labels = [
        Label(box=(x0, y0, x1 + 1, y1 + 1), sizes=[_extent(text, font) for text in choice])
        for (x0, y0, x1, y1), choice in zip(corners, texts, strict=True)
    ]
    for mark, choice, label, place in zip(marks, texts, labels, placed(labels, width, height), strict=True):
        if place is not None:
            _tag(pen, choice[place.text], place.x, place.y, label.sizes[place.text], colour(mark.label), font)
    return np.asarray(canvas)


def _enlarged(image: np.ndarray, scale: int) -> Image.Image:
    picture = Image.fromarray(image)
    if scale == 1:
        return picture.copy()
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def _corners(box: Sequence[float], scale: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the pixels of a box's corners in a picture."""
    x0, y0, x1, y1 = (value * scale for value in box)
    left, top = min(round(x0), width - 1), min(round(y0), height - 1)
    return left, top, max(left, min(round(x1), width - 1)), max(top, min(round(y1), height - 1))


def dashed_rectangle(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], fill: tuple, line: int) -> None:
    """Draw the edges of a box, both corners included, in dashes."""
    x0, y0, x1, y1 = box
    dash = DASH * line
    for start in range(x0, x1 + 1, 2 * dash):
        stop = min(start + dash - 1, x1)
        for top in (y0, max(y0, y1 - line + 1)):
            pen.rectangle((start, top, stop, min(top + line - 1, y1)), fill=fill)
    for start in range(y0, y1 + 1, 2 * dash):
        stop = min(start + dash - 1, y1)
        for left in (x0, max(x0, x1 - line + 1)):
            pen.rectangle((left, start, min(left + line - 1, x1), stop), fill=fill)


def _extent(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Return the width and height of a label; all of one font are equally high."""
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    return int(right - left) + 6, ascent + descent + 2


def _tag(pen: ImageDraw.ImageDraw, text: str, x: int, y: int, size: tuple[int, int], fill: tuple, font) -> None:
    """Write text on its class's colour."""
    left, _, _, _ = font.getbbox(text)
    pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=fill)
    pen.text((x + 3 - left, y + 1), text, fill=(0, 0, 0), font=font)


@lru_cache(maxsize=8)
def letters(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of labels in a size in pixels."""
    return ImageFont.load_default(size)
