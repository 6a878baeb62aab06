"""How many 128-byte cache lines the gathers of a warp touch, simulated on the host.

The tile's lanes follow from the compiled layout, the cells from the encoder's query order and from sampling positions
drawn with a fixed seed: `near`, the published star-shaped initialization plus a pixel of noise, as trained models
sample near their reference, and `uniform`, anywhere in the level, the worst case.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stnet.kernels.problem import StdaProblem, level_starts
from stnet.kernels.triton.device_tables import query_order

LINE_BYTES = 128
LANE_BYTES = 16
_PROGRAMS = 64
_SEED = 20230814


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Distinct lines of one gather instruction (mean), and of a whole program, per sample of it."""

    per_gather: float
    per_sample: float


def gather_lines(
    problem: StdaProblem,
    *,
    block_queries: int,
    lanes_per_row: int,
    row_bytes: int,
    ordered: bool = True,
    step: int = 1,
    uniform: bool = False,
) -> Lines:
    """Lines touched by gathers of values stored by heads (`[B, F, H, S, D]`), own-frame samples only.

    Args:
        problem: sizes of the layer.
        block_queries: queries of a program.
        lanes_per_row: lanes that read one cell's row, at most 16 bytes each: a warp reads 32 / lanes_per_row rows.
        row_bytes: bytes of a row, a power of two.
        ordered: whether encoder queries are taken in 2-D tiles instead of raster order.
        step: samples of a query that are neighbours in the tile.
        uniform: positions anywhere instead of near the reference.
    """
    rng = np.random.default_rng(_SEED)
    rows = 32 // lanes_per_row
    queries, references = _queries(problem, block_queries if ordered else None)
    starts = rng.integers(0, max(1, len(queries) // block_queries), _PROGRAMS) * block_queries
    angles = rng.integers(0, problem.heads, _PROGRAMS) * (2 * np.pi / problem.heads)
    per_gather, per_program = [], []
    for start, angle in zip(starts, angles, strict=True):
        tile = np.take(queries, np.arange(start, start + block_queries), mode="clip")
        cells = _cells(problem, references[tile], angle, rng, uniform)
        lines = cells * row_bytes // LINE_BYTES
        per_program.append(np.unique(lines).size)
        arranged = lines.reshape(*lines.shape[:2], -1, step, block_queries).swapaxes(-1, -2)
        per_gather.append(_distinct(arranged.reshape(-1, min(rows, block_queries * step))).mean())
    whole_row = max(1, min(row_bytes, lanes_per_row * LANE_BYTES) // LINE_BYTES)
    lines_per_row = max(1, row_bytes // LINE_BYTES)
    samples = block_queries * problem.levels * problem.points
    return Lines(
        per_gather=float(np.mean(per_gather)) * whole_row,
        per_sample=float(np.mean(per_program)) * lines_per_row / samples,
    )


def _queries(problem: StdaProblem, block_queries: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Query indices in launch order and their reference points [Q, 2] as (x, y) in [0, 1]."""
    order = np.arange(problem.queries)
    if problem.queries != problem.positions:
        return order, np.random.default_rng(_SEED).random((problem.queries, 2))
    if block_queries is not None:
        order = query_order(problem.spatial_shapes, block_queries, torch.device("cpu")).numpy()
    centres = []
    for height, width in problem.spatial_shapes:
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], axis=1))
    return order, np.concatenate(centres)


def _cells(
    problem: StdaProblem, reference: np.ndarray, angle: float, rng: np.random.Generator, uniform: bool
) -> np.ndarray:
    """Flat cell indices [levels, 4 corners, points, queries] of a tile of one head."""
    direction = np.array([np.cos(angle), np.sin(angle)])
    direction /= np.abs(direction).max()
    points = np.arange(1, problem.points + 1)[:, None, None]
    found = []
    for (height, width), start in zip(problem.spatial_shapes, level_starts(problem.spatial_shapes), strict=True):
        size = np.array([width, height])
        drawn = (problem.points, len(reference), 2)
        if uniform:
            position = rng.random(drawn) * size - 0.5
        else:
            position = reference * size - 0.5 + direction * points + rng.standard_normal(drawn)
        base = np.clip(np.floor(position), 0, np.maximum(size - 2, 0)).astype(np.int64)
        x, y = base[..., 0], base[..., 1]
        right, below = min(1, width - 1), min(1, height - 1) * width
        first = start + y * width + x
        found.append(np.stack([first, first + right, first + below, first + below + right]))
    return np.stack(found)


def _distinct(groups: np.ndarray) -> np.ndarray:
    """Return the number of distinct values in each row."""
    ordered = np.sort(groups, axis=1)
    return 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)
