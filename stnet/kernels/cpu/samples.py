"""Where samples lie: cells, corner weights and their slopes, for eight samples at a time.

The four corners of a sample are read as a window of 2 x 2 cells that always lies within its level. At a border the
window is moved inside, and the weight of a corner outside goes: a window moved right by one has its left weight where
its right one was. Along an axis with one cell both lie on it. So nothing is branched on, and whatever the position, no
address lies outside of the values. A position that is not finite, or outside, has weights of 0.
"""

from functools import lru_cache

import numpy as np

from stnet.kernels.cpu.lanes import every_second, floor, spread, where
from stnet.kernels.cpu.simd import Width, helper, load, load_first, read, store, store_cells, write_long

BLOCK = 8
EIGHT, _SIXTEEN = Width(BLOCK), Width(2 * BLOCK)

# Lines of a sample table.
_COLUMNS, _ROWS, _LAST_X, _LAST_Y, _HAS_RIGHT, _HAS_BELOW, _FIRST, _LINE = range(8)


@lru_cache(maxsize=64)
def sample_table(shapes: tuple[tuple[int, int], ...], starts: tuple[int, ...], points: int) -> np.ndarray:
    """What is known of the levels of a frame's samples, whose number is filled up to whole blocks, and one more.

    Returns:
        float32 `[8, N]`: columns, rows, the last places of a window, whether it has a second column and row; then int32
        of the same size: first cell and cells of a line.
    """
    count = (-(-len(shapes) * points // BLOCK) + 1) * BLOCK
    table = np.zeros((8, count), np.float32)
    table[_COLUMNS : _ROWS + 1] = 1.0
    for level, ((height, width), start) in enumerate(zip(shapes, starts, strict=True)):
        samples = slice(level * points, (level + 1) * points)
        numbers = (width, height, max(width - 2, 0), max(height - 2, 0), width > 1, height > 1)
        table[:_FIRST, samples] = np.array(numbers, np.float32)[:, None]
        table.view(np.int32)[_FIRST:, samples] = np.array((start, width), np.int32)[:, None]
    return table


def view_table(table: np.ndarray) -> tuple[int, int]:
    """Address and size of a sample table: how kernels get it."""
    return table.ctypes.data, table.shape[1]


@helper
def place(reference, components, size_x, size_y, points):
    """Base and scale of x and y in cells: a sample lies at base + scale * offset."""
    base_x = read(reference, 0) * size_x - np.float32(0.5)
    base_y = read(reference, 1) * size_y - np.float32(0.5)
    if components == 2:
        return base_x, base_y, np.float32(1.0), np.float32(1.0)
    half = np.float32(0.5)
    count = np.float32(points)
    return base_x, base_y, read(reference, 2) * half * size_x / count, read(reference, 3) * half * size_y / count


@helper
def place_frame(table, reference, stride, components, levels, points, placed):
    """Write base and scale of x and y, four lines, for the samples that a query takes in a frame."""
    known, line = table
    for level in range(levels):
        k = level * points
        columns, rows = read(known, _COLUMNS * line + k), read(known, _ROWS * line + k)
        base_x, base_y, scale_x, scale_y = place(reference + level * stride, components, columns, rows, points)
        for k in range(level * points, (level + 1) * points, BLOCK):  # the next level overwrites what is too much
            store(placed + 4 * k, spread(EIGHT, base_x))
            store(placed + 4 * (line + k), spread(EIGHT, base_y))
            store(placed + 4 * (2 * line + k), spread(EIGHT, scale_x))
            store(placed + 4 * (3 * line + k), spread(EIGHT, scale_y))


@helper
def corner_steps(table, step, steps):
    """Write the bytes from a sample's first corner to that on its right, then, in a second line, to that below."""
    known, line = table
    for k in range(line):
        right, below = read(known, _HAS_RIGHT * line + k), read(known, _HAS_BELOW * line + k)
        write_long(steps, k, step * np.int64(right))
        write_long(steps, line + k, step * np.int64(below) * np.int64(read(known, _COLUMNS * line + k)))


@helper
def window(position, last, has_next):
    """Where a window of two cells lies along an axis; of each the weight, and its slope by the position."""
    one, nothing = np.float32(1.0), np.float32(0.0)
    corner = floor(position)
    after = position - corner
    before = one - after
    first = where(corner < nothing, nothing, corner)
    first = where(first > last, last, first)
    moved_on, moved_back = corner < first, corner > first
    weight = where(moved_on, after, where(moved_back, nothing, before))
    slope = where(moved_on, one, where(moved_back, nothing, -one))
    next_weight = where(moved_on, nothing, where(moved_back, before, after)) * has_next
    next_slope = where(moved_on, nothing, where(moved_back, -one, one)) * has_next
    return first, weight, next_weight, slope, next_slope


@helper
def locate(table, placed, offset, count, k, cells):
    """Find samples k to k + 7 of the `count` of a frame; write the numbers of their first cells.

    Returns:
        Which of them are inside, and for x and for y the weight of the first and of the next cell, and their slopes.
    """
    nothing = np.float32(0.0)
    line = table[1] * 4
    known, placed = table[0] + 4 * k, placed + 4 * k
    columns, rows = load(EIGHT, known + _COLUMNS * line), load(EIGHT, known + _ROWS * line)
    pairs = load_first(_SIXTEEN, offset + 8 * k, 2 * (count - k), nothing)
    x = load(EIGHT, placed) + load(EIGHT, placed + 2 * line) * every_second(pairs, 0)
    y = load(EIGHT, placed + line) + load(EIGHT, placed + 3 * line) * every_second(pairs, 1)
    inside = (x > np.float32(-1.0)) & (x < columns) & (y > np.float32(-1.0)) & (y < rows)
    x, y = where(inside, x, nothing), where(inside, y, nothing)
    along_x = window(x, load(EIGHT, known + _LAST_X * line), load(EIGHT, known + _HAS_RIGHT * line))
    along_y = window(y, load(EIGHT, known + _LAST_Y * line), load(EIGHT, known + _HAS_BELOW * line))
    store_cells(cells + 8 * k, known + _FIRST * line, known + _LINE * line, along_x[0], along_y[0])
    return inside, along_x[1:], along_y[1:]
