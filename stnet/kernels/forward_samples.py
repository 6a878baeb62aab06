"""Device functions of the forward kernels: add weighted bilinear samples to a tile of sums."""

import triton
import triton.language as tl

from stnet.kernels.sampling import (
    add_by_matrix_unit,
    axis_cell,
    cell_offset,
    cell_pointers,
    column,
    interpolate_packed,
    pack_pair,
)


@triton.jit
def _load_corner(pointers, weight, D: tl.constexpr, MASKED: tl.constexpr):
    """Values [N, C] of one corner; channels beyond D are 0 and, if MASKED, rows whose weight [N] is 0."""
    C: tl.constexpr = pointers.shape[1]
    channels = tl.arange(0, C)[None, :]
    if MASKED:
        return tl.load(pointers, mask=(weight != 0.0)[:, None] & (channels < D), other=0.0)
    if D < C:
        return tl.load(pointers, mask=channels < D, other=0.0)
    return tl.load(pointers)


@triton.jit
def _weighted_corner(pointers, weight, D: tl.constexpr, MASKED: tl.constexpr):
    return _load_corner(pointers, weight, D, MASKED).to(tl.float32) * weight[:, None]


@triton.jit
def add_samples(
    total,  # float32 [N, C]
    identity,
    cells,  # pointers [1, C] to cell 0 of the level
    right,  # elements from a cell to its right neighbour
    down,  # and to the one below
    x,  # float32 [N, K] pixel positions minus 0.5
    y,
    probability,  # float32 [N, K]
    height,
    width,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    MASKED: tl.constexpr,
    THIN: tl.constexpr,
    PTX: tl.constexpr,
):
    """Total + the bilinear samples at K (1 or 2) positions of each of N queries, times their probabilities."""
    K: tl.constexpr = x.shape[1]
    cell_x, west, east = axis_cell(x, width, THIN, PTX)
    cell_y, north, south = axis_cell(y, height, THIN, PTX)
    BYTES: tl.constexpr = ROW * cells.dtype.element_ty.primitive_bitwidth // 8
    offset = cell_offset(cell_y * width + cell_x, BYTES, WIDE)
    north *= probability
    south *= probability
    top_left, top_right = north * west, north * east
    bottom_left, bottom_right = south * west, south * east
    if ARITHMETIC == "float32":
        for k in tl.static_range(K):
            row = column(offset, k)
            above = cell_pointers(cells, row, VECTOR)
            below = cell_pointers(cells + down, row, VECTOR)
            total += _weighted_corner(above, column(top_left, k), D, MASKED)
            total += _weighted_corner(above + right, column(top_right, k), D, MASKED)
            total += _weighted_corner(below, column(bottom_left, k), D, MASKED)
            total += _weighted_corner(below + right, column(bottom_right, k), D, MASKED)
    else:
        BFLOAT: tl.constexpr = cells.dtype.element_ty == tl.bfloat16
        top_pair = pack_pair(top_left, top_right, BFLOAT)
        bottom_pair = pack_pair(bottom_left, bottom_right, BFLOAT)
        first = _packed_sample(
            cells, right, down, column(offset, 0), column(top_pair, 0), column(bottom_pair, 0), VECTOR, D
        )
        if ARITHMETIC == "packed":
            total += first.to(tl.float32)
        if K == 2:
            second = _packed_sample(
                cells, right, down, column(offset, 1), column(top_pair, 1), column(bottom_pair, 1), VECTOR, D
            )
            if ARITHMETIC == "packed":
                total += second.to(tl.float32)
            else:
                total = add_by_matrix_unit(total, first, second, identity)
        elif ARITHMETIC == "matrix":
            total = add_by_matrix_unit(total, first, tl.zeros_like(first), identity)
    return total


@triton.jit
def _packed_sample(
    cells,
    right,
    down,
    row,  # `cell_offset` [N]
    top,
    bottom,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
):
    """One weighted sample per query, 16-bit [N, C]; top and bottom are `pack_pair` weights [N]."""
    above = cell_pointers(cells, row, VECTOR)
    below = cell_pointers(cells + down, row, VECTOR)
    return interpolate_packed(
        _load_corner(above, top, D, False),
        _load_corner(above + right, top, D, False),
        _load_corner(below, bottom, D, False),
        _load_corner(below + right, bottom, D, False),
        top[:, None],
        bottom[:, None],
    )
