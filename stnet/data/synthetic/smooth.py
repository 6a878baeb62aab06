"""Smooth random functions of space, and of space and time."""

import numpy as np
from scipy.ndimage import map_coordinates


class SmoothField:
    """A random function of three coordinates with standard deviation about 1, periodic after many lengths.

    A quadratic B-spline with white coefficients; `lengths` says how far apart values stop being alike along
    each coordinate.
    """

    _CELLS = (28, 16, 28)
    _SCALE = 2.45  # one over the deviation of a triquadratic B-spline with unit coefficients

    def __init__(self, rng: np.random.Generator, lengths: tuple[float, float, float]):
        self._coefficients = rng.standard_normal(self._CELLS, dtype=np.float32)
        self._lengths = lengths

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return the values at points of equal shapes."""
        coordinates = [c / length for c, length in zip((x, y, z), self._lengths, strict=True)]
        values = map_coordinates(self._coefficients, coordinates, order=2, prefilter=False, mode="grid-wrap")
        return values * self._SCALE

    def sample(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, stride: int) -> np.ndarray:
        """Return the values at points [H, W] that vary smoothly, computed at every `stride`-th and interpolated."""
        values = self(*(_thinned(c, stride) for c in (x, y, z)))
        for axis, length in enumerate(x.shape):
            position = np.arange(length) / stride
            start = position.astype(int)
            share = (position - start).reshape((-1, 1) if axis == 0 else (1, -1))
            values = np.take(values, start, axis) * (1 - share) + np.take(values, start + 1, axis) * share
        return values


def wander(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return a smooth random curve over `time` from 0 to 1, with standard deviation about 1."""
    cycles, phases = rng.uniform(0.4, 2.5, 4), rng.uniform(0, 2 * np.pi, 4)
    return np.sin(2 * np.pi * cycles * time[:, None] + phases).sum(axis=1) / np.sqrt(2)


def _thinned(values: np.ndarray, stride: int) -> np.ndarray:
    """Every `stride`-th row and column, and one more beyond the end, extrapolated."""
    height, width = values.shape
    padded = np.pad(values, ((0, 2 * stride), (0, 2 * stride)), mode="reflect", reflect_type="odd")
    return padded[: height + stride : stride, : width + stride : stride]
