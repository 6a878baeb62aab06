"""How the pixels that a source delivers lie in those that its file stores.

    stored pixels --orientation--> frame --cut at its origin--> image

A *frame* is the whole picture, upright, as a viewer or an annotation tool shows it. Boxes are in pixels of the frame
wherever they are read or written. An *image* is what the model sees: the frame itself, or the part of it that a DICOM
header calls the scan region, whose corner in the frame is the source's `origin`. Pixels are never resampled; where
they are not square, the source's `pixel_aspect` says so.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; the last column and row are outside."""

SQUARE = Fraction(1)

ASPECT_RANGE = (Fraction(1, 8), Fraction(8))
"""Pixel aspects that are believed."""


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the eight ways to lay a picture upright: transposed first, then mirrored left-right and upside down."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @classmethod
    def from_exif(cls, code: object) -> "Orientation":
        """Return that of an EXIF (or TIFF) orientation; values that the standard does not know mean upright."""
        if not isinstance(code, int) or not 1 <= code <= 8:
            return UPRIGHT
        return cls(transposed=code >= 5, mirrored_x=code in (2, 3, 6, 7), mirrored_y=code in (3, 4, 7, 8))

    @classmethod
    def from_display_matrix(cls, matrix: tuple[int, int, int, int]) -> "Orientation | None":
        """Return that of a display matrix, or None where it turns by other than quarters.

        Args:
            matrix: a, b, c, d of x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 6.2.2).
        """
        a, b, c, d = matrix
        if a and d and not _counts(b, a) and not _counts(c, d):
            return cls(mirrored_x=a < 0, mirrored_y=d < 0)
        if b and c and not _counts(a, b) and not _counts(d, c):
            return cls(transposed=True, mirrored_x=c < 0, mirrored_y=b < 0)
        return None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the stored pixels `[H, W, ...]` laid upright."""
        image = image.swapaxes(0, 1) if self.transposed else image
        image = image[:, ::-1] if self.mirrored_x else image
        image = image[::-1] if self.mirrored_y else image
        return np.ascontiguousarray(image)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the frame made of `height` by `width` stored pixels."""
        return (width, height) if self.transposed else (height, width)

    def aspect(self, stored: Fraction) -> Fraction:
        """Return the pixel aspect (width over height) in the frame of pixels stored with the aspect `stored`."""
        return 1 / stored if self.transposed else stored


UPRIGHT = Orientation()


def believable_aspect(width: float | Fraction, height: float | Fraction) -> Fraction:
    """Return the aspect of pixels `width` wide and `height` high in any unit; square where that makes no sense."""
    try:
        aspect = (Fraction(width) / Fraction(height)).limit_denominator(1000)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        return SQUARE
    return aspect if ASPECT_RANGE[0] <= aspect <= ASPECT_RANGE[1] else SQUARE


def aspect_notes(aspect: Fraction) -> tuple[str, ...]:
    """Return what a user should know of pixels of this aspect: nothing of square ones."""
    return () if aspect == SQUARE else (f"its pixels are not square: {float(aspect):.4g} times as wide as high",)


def _counts(part: int, whole: int) -> bool:
    """Return whether an entry that should be 0 is more than what fixed-point numbers leave."""
    return abs(part) * 1000 > abs(whole)
