"""How lesions move in the picture: a Kalman filter that looks ahead, and a smoother that looks both ways.

All noise is relative to the lesion's size, the root of its box's area: what is a jump for a small box is nothing for a
large one. A hand moves the probe smoothly, so a centre keeps its velocity (a random acceleration changes it); width and
height wander.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solveh_banded

CENTRE_NOISE = 0.08
"""Standard deviation of a detected centre, in sizes of the lesion."""

EXTENT_NOISE = 0.16
"""Of a detected width or height."""

ACCELERATION = 0.02
"""Of a centre's acceleration, in sizes per frame squared."""

FIRST_VELOCITY = 0.1
"""Of the velocity of a lesion seen once, in sizes per frame."""

EXTENT_DRIFT = 0.04
"""Of the change of a width or height from frame to frame, in sizes."""

STIFFNESS = (CENTRE_NOISE / ACCELERATION) ** 2
"""Weight of the bending of a smoothed path: the ratio of noise and acceleration, as for the filter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Where a lesion is believed to be in a frame.

    Attributes:
        frame: the frame.
        centre: x, y in pixels.
        velocity: pixels per frame.
        extent: width, height in pixels.
        spread: `[2, 2]` covariance of centre and velocity, the same along x and y, in squared sizes.
        extent_spread: variance of width and height, in squared sizes.
    """

    frame: int
    centre: np.ndarray
    velocity: np.ndarray
    extent: np.ndarray
    spread: np.ndarray
    extent_spread: float

    @property
    def size(self) -> float:
        """The root of the area, in pixels."""
        return float(np.sqrt(self.extent.prod()))

    @property
    def box(self) -> np.ndarray:
        """Corners x0 y0 x1 y1 `[4]`."""
        return np.concatenate([self.centre - self.extent / 2, self.centre + self.extent / 2])

    def predicted(self, frame: int) -> "Motion":
        """Return the motion in a later frame."""
        spread, steps = self.spread, frame - self.frame
        step = np.array([[1.0, 1.0], [0.0, 1.0]])
        push = ACCELERATION**2 * np.array([[0.25, 0.5], [0.5, 1.0]])
        for _ in range(steps):
            spread = step @ spread @ step.T + push
        return replace(
            self,
            frame=frame,
            centre=self.centre + steps * self.velocity,
            spread=spread,
            extent_spread=self.extent_spread + steps * EXTENT_DRIFT**2,
        )

    def reversed(self) -> "Motion":
        """Return the same motion with time running the other way."""
        return replace(
            self, frame=-self.frame, velocity=-self.velocity, spread=self.spread * np.array([[1.0, -1.0], [-1.0, 1.0]])
        )

    def moving_as(self, other: "Motion") -> "Motion":
        """Return the motion with the velocity of another one, as sure as that is of it."""
        return replace(self, velocity=other.velocity, spread=np.diag([self.spread[0, 0], other.spread[1, 1]]))

    def distances(self, boxes: np.ndarray) -> np.ndarray:
        """Return squared distances of boxes `[N, 4]` in this frame, in standard deviations, `[N]` (chi-squared, 4)."""
        centres, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        off = (((centres - self.centre) / self.size) ** 2).sum(1) / (self.spread[0, 0] + CENTRE_NOISE**2)
        change = (((extents - self.extent) / self.size) ** 2).sum(1) / (self.extent_spread + EXTENT_NOISE**2)
        return off + change

    def corrected(self, box: np.ndarray) -> "Motion":
        """Return the motion after a box `[4]` was found in this frame."""
        centre, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        gain = self.spread[:, 0] / (self.spread[0, 0] + CENTRE_NOISE**2)
        surprise = centre - self.centre
        extent_gain = self.extent_spread / (self.extent_spread + EXTENT_NOISE**2)
        return replace(
            self,
            centre=self.centre + gain[0] * surprise,
            velocity=self.velocity + gain[1] * surprise,
            extent=self.extent + extent_gain * (extent - self.extent),
            spread=self.spread - np.outer(gain, self.spread[0]),
            extent_spread=(1 - extent_gain) * self.extent_spread,
        )


def first_motion(frame: int, box: np.ndarray) -> Motion:
    """Return what is believed of a lesion that was seen once."""
    return Motion(
        frame=frame,
        centre=(box[:2] + box[2:]) / 2,
        velocity=np.zeros(2),
        extent=box[2:] - box[:2],
        spread=np.diag([CENTRE_NOISE**2, FIRST_VELOCITY**2]),
        extent_spread=EXTENT_NOISE**2,
    )


def smoothed(frames: np.ndarray, boxes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth path through boxes, with a box in every frame between the first and the last.

    Penalized least squares (Whittaker 1923; Eilers, Anal. Chem. 2003): squared distances to the boxes, weighted, plus
    `STIFFNESS` times the squared second differences of the path. What bends least goes through gaps: a straight line.
    It is what a Kalman smoother of the same motion gives, by one banded solution.

    Args:
        frames: `[N]` ascending, no two alike.
        boxes: `[N, 4]`.
        weights: `[N]` above 0; 1 is a box of usual noise.

    Returns:
        The frames `[M]` without gaps, and the boxes `[M, 4]`, in order x0 < x1, y0 < y1.
    """
    every = np.arange(frames[0], frames[-1] + 1)
    if len(frames) < 3:
        share = (every - frames[0]) / max(frames[-1] - frames[0], 1)
        return every, boxes[:1] + share[:, None] * (boxes[-1:] - boxes[:1])
    count = len(every)
    bands = np.zeros((3, count))
    places = frames - frames[0]
    bands[2, places] = weights
    for offset, value in ((0, 1.0), (1, -2.0), (2, 1.0)):  # D'D of the second differences [1, -2, 1]
        bands[2, offset : count - 2 + offset] += STIFFNESS * value**2
    bands[1, 1 : count - 1] += STIFFNESS * -2.0
    bands[1, 2:count] += STIFFNESS * -2.0
    bands[0, 2:] += STIFFNESS
    centres, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, np.log(boxes[:, 2:] - boxes[:, :2])
    wanted = np.zeros((count, 4))
    wanted[places] = weights[:, None] * np.concatenate([centres, extents], axis=1)
    path = solveh_banded(bands, wanted)
    half = np.exp(path[:, 2:]) / 2
    return every, np.concatenate([path[:, :2] - half, path[:, :2] + half], axis=1)
