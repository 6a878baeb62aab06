"""Frame rates made exact: headers round what they state."""

from fractions import Fraction

from stnet.video.source import FPS_RANGE

COMMON_RATES = tuple(Fraction(n) for n in range(1, 241)) + tuple(Fraction(n * 1000, 1001) for n in (24, 30, 60))
RATE_TOLERANCE = 2e-4
"""Headers round frame times: 33.333 ms means 30 frames per second."""


def frame_rate(value: float) -> Fraction | None:
    """Return the frame rate (frames per second) that a rounded number means, or None where it is not believable."""
    if not FPS_RANGE[0] <= value <= FPS_RANGE[1]:
        return None
    nearest = min(COMMON_RATES, key=lambda rate: abs(rate - value))
    if abs(float(nearest) - value) <= RATE_TOLERANCE * value:
        return nearest
    return Fraction(value).limit_denominator(1001)
