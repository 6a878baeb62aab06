"""Detections drawn into frames."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stnet.console import printable
from stnet.inference.frame_results import class_name
from stnet.model.postprocess import Detections

# Okabe-Ito colours: told apart by colour-blind readers, and bright on dark ultrasound.
PALETTE = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))


def draw_detections(
    image: np.ndarray, detections: Detections, class_names: dict[int, str], score_threshold: float = 0.0
) -> np.ndarray:
    """A copy of uint8 `[H, W, 3]` with boxes, class names and scores of at least `score_threshold`.

    Boxes are clipped to the frame; those wholly outside are left out. The best score is drawn last, on top.
    """
    height, width = image.shape[:2]
    canvas = Image.fromarray(image).copy()
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(height, width) / 250))
    font = _font(max(10, round(min(height, width) / 28)))
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    for box, score, label in sorted(rows, key=lambda row: row[1]):
        corners = _clip(box, height, width)
        if score < score_threshold or corners is None:
            continue
        colour = PALETTE[(label - 1) % len(PALETTE)]
        pen.rectangle(corners, outline=colour, width=line)
        _tag(pen, f"{printable(class_name(class_names, label))} {score:.2f}", corners, (height, width), colour, font)
    return np.asarray(canvas)


def _tag(pen, text: str, corners: tuple[int, ...], size: tuple[int, int], colour: tuple, font) -> None:
    """Text on the box's colour above it, or inside where there is no room above."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(corners[0], size[1] - width))
    y = corners[1] - height if corners[1] >= height else min(corners[1], size[0] - height)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)


def _clip(box: list[float], height: int, width: int) -> tuple[int, int, int, int] | None:
    if not all(np.isfinite(box)):
        return None
    x0, x1 = sorted((box[0], box[2]))
    y0, y1 = sorted((box[1], box[3]))
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return None
    return (
        round(max(x0, 0)),
        round(max(y0, 0)),
        max(round(max(x0, 0)), round(min(x1, width - 1))),
        max(round(max(y0, 0)), round(min(y1, height - 1))),
    )


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
