"""What the numbers of a picture in memory mean: bytes by their type, all others as whoever passes them states it."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from stnet.errors import VideoError
from stnet.video.depth import on_black

ValueRange = tuple[float, float]
"""The values of black and of white."""

HALF_LEVEL = 0.5 / 255
"""How far beyond its range a value may be, as a share of it: rounding, as of floats that were resized."""

DEEP_MODES = ("I", "F")
"""How the modes of PIL begin whose values are no bytes."""


def checked_range(value_range: Any) -> ValueRange | None:
    """Return a range as numbers.

    Raises:
        VideoError: it is none.
    """
    if value_range is None:
        return None
    try:
        black, white = (float(value) for value in value_range)
    except (TypeError, ValueError):
        black = white = 0.0
    if not (np.isfinite([black, white]).all() and black < white):
        raise VideoError(f"value_range {value_range!r}: expected (black, white), two numbers of which white is larger")
    return black, white


def to_bytes(values: np.ndarray, value_range: ValueRange | None, name: str) -> np.ndarray:
    """Return brightness as uint8.

    Args:
        values: of any shape; bytes stay as they are where no range is stated.
        value_range: what is black and what is white.
        name: what messages call it.

    Raises:
        VideoError: the type states no range and none is given, or values lie beyond it.
    """
    if values.dtype == np.uint8 and value_range is None:
        return values
    if values.dtype.kind not in "uif":
        raise VideoError(f"{name}: values of type {values.dtype}; expected numbers, such as uint8 from 0 to 255")
    if value_range is None:
        example = "(0, 1)" if values.dtype.kind == "f" else "(0, 4095) for 12 bits or (0, 65535)"
        raise VideoError(
            f"{name}: values of type {values.dtype} do not tell what is black and what is white; pass "
            f"value_range=(black, white), such as {example}, or uint8 with values 0 to 255"
        )
    black, white = value_range
    relative = (values.astype(np.float64) - black) / (white - black)
    if values.size and not (relative.min() >= -HALF_LEVEL and relative.max() <= 1 + HALF_LEVEL):
        finite = bool(np.isfinite(relative).all())
        found = f"from {values.min():g} to {values.max():g}" if finite else "that are not finite"
        remedy = "state the range that they have, or cut them by np.clip first" if finite else "replace them first"
        raise VideoError(f"{name}: values {found}, but value_range says {black:g} to {white:g}; {remedy}")
    return np.rint(np.clip(relative, 0, 1) * 255).astype(np.uint8)


def picture_values(image: Image.Image, name: str) -> np.ndarray:
    """Return the values of a picture of PIL, upright, `[H, W, 3]` or `[H, W]`; what is transparent is black.

    Raises:
        VideoError: it holds several pictures.
    """
    if getattr(image, "n_frames", 1) > 1:
        raise VideoError(
            f"{name}: a picture that holds {image.n_frames}; pass its path, or a list of them by PIL.ImageSequence"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(DEEP_MODES):
        return np.asarray(image)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.has_transparency_data:
        return on_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))
