"""Which brightness a stored value means, where values are not bytes: one rule for all image files, said aloud.

Black is 0. White is what the file states; where it states nothing (12 bits in files of 16 are common, and floats are 0
to 1 or 0 to 255 by taste), it is the largest value of the smallest usual depth that holds all values of all frames of
the video. So a dark frame stays dark among bright ones, and `GrayScale.note` says what was taken.
"""

from dataclasses import dataclass

import numpy as np

USUAL_BITS = (8, 10, 12, 14, 16, 24, 32)

DEEP_LEAST = 64
"""Of 256 levels, the brightest that samples of 16 bits must reach in a video: below, they hold fewer bits.

For decoders that deliver only the upper 8 bits, so that the values cannot be shown by another depth.
"""


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The smallest and the largest value met; `whole` where all are integers by type."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of(cls, values: np.ndarray) -> "Extremes":
        """Return those of an array, which must not be empty."""
        return cls(low=float(values.min()), high=float(values.max()), whole=values.dtype.kind in "ui")

    def __or__(self, other: "Extremes") -> "Extremes":
        return Extremes(low=min(self.low, other.low), high=max(self.high, other.high), whole=self.whole and other.whole)


@dataclass(frozen=True, kw_only=True)
class GrayScale:
    """What is shown as white; `note` says so where it was found out rather than stated."""

    white: float
    note: str | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return uint8 brightness of stored values."""
        return np.rint(np.clip(values.astype(np.float64) / self.white, 0, 1) * 255).astype(np.uint8)


def choose_scale(found: Extremes, stated: int | None = None) -> GrayScale:
    """Return the scale of values between these extremes.

    Args:
        found: over all frames of a video.
        stated: the largest possible value that the files state, if they do.

    Raises:
        ValueError: the values are no brightness: negative, not finite, or beyond what is stated. The message is
            meant for the user.
    """
    if not (np.isfinite(found.low) and np.isfinite(found.high)):
        raise ValueError("its pixels hold infinities or no numbers; convert it to 8 bits")
    if found.low < 0:
        raise ValueError(f"its pixels go from {found.low:g} to {found.high:g}; convert it to 8 bits, black being 0")
    if stated is not None:
        if found.high > stated:
            raise ValueError(f"its pixels go up to {found.high:g} though it states at most {stated}; it is damaged")
        return GrayScale(white=stated)
    if not found.whole and found.high <= 1:
        return GrayScale(white=1, note="gray in floating point, at most 1: 1 is taken for white")
    bits = next((bits for bits in USUAL_BITS if found.high <= 2**bits - 1), None)
    if bits is None:
        raise ValueError(f"its pixels go up to {found.high:g}; convert it to 8 bits")
    note = f"gray of more than 8 bits with values up to {found.high:g}: {2**bits - 1} is taken for white"
    return GrayScale(white=2**bits - 1, note=note)


def on_black(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 RGB `[H, W, 3]` of RGBA `[H, W, 4]`: what is transparent is black, whatever colour hides there.

    Where all of a picture is transparent its fourth channel is no alpha but unused (uncompressed AVI of 32 bits).
    """
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255 or alpha.max() == 0:
        return np.ascontiguousarray(colours)
    return ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
