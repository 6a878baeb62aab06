"""Device functions of the backward kernels: the gradients of a chunk of samples.

A chunk has ROWS samples, one a row. Their positions, weights and gradients are vectors [ROWS], computed by one lane a
row. Corners are gathered as tiles [PARTS, ROWS, C] with C channels, at most 64 bytes, in four lanes of a row, and PARTS
such pieces in the registers of a lane; the value gradient is scattered from tiles [ROWS, D], 16 bytes of float32 a
lane. The output gradient is kept in both arrangements. (As tiles of one shape the compiler would give both the
arrangement of the gathers and move every product from one to the other.)
"""

from typing import NamedTuple

import triton
import triton.language as tl

from stnet.kernels.sampling import cell_offset, cell_pointers, tent


class Config(NamedTuple):
    """What the treatment of a sample depends on when a kernel is compiled."""

    D: int  # head width
    BLOCK_D: int  # rounded up to a power of two
    C: int  # channels of a row that are gathered together
    ROW: int  # elements from cell to cell of value
    GRAD_ROW: int  # elements from cell to cell of its gradient
    VECTOR: int  # channels of value that can be read at once
    THIN: bool  # a level may be one cell wide or high
    WIDE: bool  # a frame may have 2^32 bytes or more
    PTX: bool  # inline assembly for NVIDIA GPUs
    NEED_VALUE: bool  # the gradient of value is asked for


class Level(NamedTuple):
    """One level of one source frame."""

    height: tl.tensor
    width: tl.tensor
    value: tl.tensor  # pointers [PARTS, 1, C] to its first cell
    grad_value: tl.tensor  # pointers [1, BLOCK_D] to its first cell


class OutputGradient(NamedTuple):
    """The output gradient of each row's query in both arrangements, float32."""

    gather: tl.tensor  # [PARTS, ROWS, C]
    scatter: tl.tensor  # [ROWS, BLOCK_D], times the fixed-point scale where there is one


class Samples(NamedTuple):
    """Where samples lie, [ROWS]: weights of two columns and two lines of cells, and the slopes of the weights."""

    inside: tl.tensor  # False: the sample is zero
    cell: tl.tensor  # upper left of the four
    left: tl.tensor
    right: tl.tensor
    top: tl.tensor
    bottom: tl.tensor
    left_slope: tl.tensor
    right_slope: tl.tensor
    top_slope: tl.tensor
    bottom_slope: tl.tensor


@triton.jit
def gather_channels(config: tl.constexpr):
    """Channels [PARTS, 1, C] in the arrangement of gathers."""
    PARTS: tl.constexpr = config.BLOCK_D // config.C
    return tl.arange(0, PARTS)[:, None, None] * config.C + tl.arange(0, config.C)[None, None, :]


@triton.jit
def scatter_channels(config: tl.constexpr):
    """Channels [1, BLOCK_D] in the arrangement of reductions."""
    return tl.arange(0, config.BLOCK_D)[None, :]


@triton.jit
def load_output_gradient(pointers, mask, scale, config: tl.constexpr):
    """The `OutputGradient` at pointers [ROWS] to channel 0, zero where not mask [ROWS]."""
    channels = gather_channels(config)
    gather = tl.load(pointers[None, :, None] + channels, mask=mask[None, :, None] & (channels < config.D), other=0.0)
    channels = scatter_channels(config)
    scatter = tl.load(pointers[:, None] + channels, mask=mask[:, None] & (channels < config.D), other=0.0)
    return OutputGradient(gather.to(tl.float32), scatter.to(tl.float32) * scale)


@triton.jit
def dot_with_gradient(tile, gradient, config: tl.constexpr):
    return tl.sum(lane_dots(tile, gradient, config), axis=1)


@triton.jit
def lane_dots(tile, gradient, config: tl.constexpr):
    """Sum over channels [ROWS] of tile [PARTS, ROWS, C] times the output gradient."""
    # What a lane holds of a row: 16 bytes of each part. Summed in one chain of multiply-adds, then over four lanes.
    HELD: tl.constexpr = tile.shape[0] * min(tile.shape[2], 128 // tile.dtype.primitive_bitwidth)
    return _chain(_by_row(_widen(tile, config)), _by_row(gradient.gather), 0.0, HELD)


@triton.jit
def _widen(tile, config: tl.constexpr):
    """tile in float32; bfloat16 by shift and mask, half the instructions of the compiler's conversion."""
    if config.PTX and tile.dtype == tl.bfloat16:
        wide = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=&r,=r,r",  # the first result is written while the argument is still needed
            [tile],
            dtype=tl.int32,
            is_pure=True,
            pack=2,
        ).to(tl.float32, bitcast=True)
    else:
        wide = tile.to(tl.float32)
    return wide


@triton.jit
def _by_row(tile):
    """[PARTS, ROWS, C] to [ROWS, C * PARTS], what a lane holds side by side."""
    return tl.reshape(tl.permute(tile, (1, 2, 0)), [tile.shape[1], tile.shape[2] * tile.shape[0]])


@triton.jit
def _chain(a, b, total, COUNT: tl.constexpr):
    """total + a * b, [ROWS, N], summed over groups of COUNT columns."""
    if COUNT == 1:
        total += a * b
    else:
        a_even, a_odd = tl.split(tl.reshape(a, [a.shape[0], a.shape[1] // 2, 2]))
        b_even, b_odd = tl.split(tl.reshape(b, [b.shape[0], b.shape[1] // 2, 2]))
        total = _chain(a_even, b_even, total, COUNT // 2)
        total = _chain(a_odd, b_odd, total, COUNT // 2)
    return total


@triton.jit
def locate(x, y, height, width, config: tl.constexpr):
    """The `Samples` at (x, y) in pixels, [ROWS] float32 of any value, NaN included."""
    inside = (x > -1.0) & (x < width) & (y > -1.0) & (y < height)
    # What lies outside keeps to the border, so that its zeros are spread over many cells of the gradient.
    x = tl.where(x > -1.0, tl.where(x < width, x, width), -1.0)
    y = tl.where(y > -1.0, tl.where(y < height, y, height), -1.0)
    column, left, right, left_slope, right_slope = _floor_cell(x, width.to(tl.float32), config)
    line, top, bottom, top_slope, bottom_slope = _floor_cell(y, height.to(tl.float32), config)
    cell = line * width + column
    return Samples(inside, cell, left, right, top, bottom, left_slope, right_slope, top_slope, bottom_slope)


@triton.jit
def _floor_cell(position, size, config: tl.constexpr):
    """First of the two cells that a position in [-1, size] may reach, their weights, and the slopes of the weights.

    Unlike `sampling.axis_cell`, of any two cells that would do it takes those whose slopes belong to floor(position).
    """
    first = tl.minimum(tl.maximum(tl.floor(position), 0.0), size - 2.0)
    if config.THIN:
        first = tl.maximum(first, 0.0)
    t = position - first
    near = tent(t, config.PTX)
    far = tent(t - 1.0, config.PTX)
    near_slope = tl.where(t < 0.0, 1.0, tl.where(t < 1.0, -1.0, 0.0))
    far_slope = tl.where(t < 0.0, 0.0, tl.where(t < 1.0, 1.0, -1.0))
    if config.THIN:
        far = tl.where(size > 1.0, far, 0.0)
        far_slope = tl.where(size > 1.0, far_slope, 0.0)
    return first.to(tl.int32), near, far, near_slope, far_slope


@triton.jit
def corner_dots(samples, level, gradient, config: tl.constexpr):
    """<value[corner], g> of the upper left, upper right, lower left and lower right corners, each [ROWS]."""
    column, line = _steps(level, config)
    BYTES: tl.constexpr = level.value.dtype.element_ty.primitive_bitwidth // 8
    offset = _pin(cell_offset(samples.cell, config.ROW * BYTES, config.WIDE), config)
    upper = _gather_pointers(level.value, offset, config)
    lower = _gather_pointers(level.value + line * config.ROW, offset, config)
    top = tl.join(_corner_dot(upper, gradient, config), _corner_dot(upper + column * config.ROW, gradient, config))
    bottom = tl.join(_corner_dot(lower, gradient, config), _corner_dot(lower + column * config.ROW, gradient, config))
    dots = _sum_lanes(tl.join(top, bottom))
    left, right = tl.split(tl.permute(dots, (0, 2, 1)))
    top_left, bottom_left = tl.split(left)
    top_right, bottom_right = tl.split(right)
    return top_left, top_right, bottom_left, bottom_right


@triton.jit
def _sum_lanes(x):
    """[ROWS, LANES, 2, 2] to [ROWS, 2, 2]."""
    ROWS: tl.constexpr = x.shape[0]
    HALF: tl.constexpr = x.shape[1] // 2
    if HALF == 0:
        x = tl.reshape(x, [ROWS, 2, 2])
    else:
        even, odd = tl.split(tl.permute(tl.reshape(x, [ROWS, HALF, 2, 2, 2]), (0, 1, 3, 4, 2)))
        x = _sum_lanes(even + odd)
    return x


@triton.jit
def _gather_pointers(base, offset, config: tl.constexpr):
    """`sampling.cell_pointers` in the arrangement of gathers: [PARTS, ROWS, C]."""
    BYTES: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
    address = base.to(tl.int64, bitcast=True) + offset.to(tl.int64)[None, :, None]
    pointers = address.to(base.dtype, bitcast=True)
    pointers = tl.max_contiguous(pointers, [1, 1, config.VECTOR])
    return tl.multiple_of(pointers, [1, 1, config.VECTOR * BYTES])


@triton.jit
def _corner_dot(pointers, gradient, config: tl.constexpr):
    if config.BLOCK_D == config.D:
        corner = tl.load(pointers)
    else:
        corner = tl.load(pointers, mask=gather_channels(config) < config.D, other=0.0)
    return lane_dots(corner, gradient, config)


@triton.jit
def _steps(level, config: tl.constexpr):
    """Cells to the next in x and in y; zero where there is no next."""
    column = 1
    line = level.width
    if config.THIN:
        column = tl.minimum(level.width - 1, 1)
        line = tl.where(level.height > 1, line, 0)
    if config.WIDE:
        return column, line.to(tl.int64)
    return column, line


@triton.jit
def _pin(x, config: tl.constexpr):
    """x [ROWS], computed by one lane a row: the compiler cannot copy this instruction into every lane of the row."""
    if config.PTX:
        if x.dtype == tl.int64:
            x = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [x], dtype=tl.int64, is_pure=False, pack=1)
        elif x.dtype == tl.uint32:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.uint32, is_pure=False, pack=1)
        else:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=False, pack=1)
    return x


@triton.jit
def interpolate(samples, dots, attention):
    """attention * (<s, g>, <ds/dx, g>, <ds/dy, g>), each [ROWS], from the dots of the four corners."""
    top_left, top_right, bottom_left, bottom_right = dots
    # Attention first: what follows is then computed where attention is, by one lane a row.
    top = attention * samples.top
    bottom = attention * samples.bottom
    top_left = _finite(attention * top_left, top * samples.left)
    top_right = _finite(attention * top_right, top * samples.right)
    bottom_left = _finite(attention * bottom_left, bottom * samples.left)
    bottom_right = _finite(attention * bottom_right, bottom * samples.right)
    upper = samples.left * top_left + samples.right * top_right
    lower = samples.left * bottom_left + samples.right * bottom_right
    sample = samples.top * upper + samples.bottom * lower
    slope_y = samples.top_slope * upper + samples.bottom_slope * lower
    upper = samples.left_slope * top_left + samples.right_slope * top_right
    lower = samples.left_slope * bottom_left + samples.right_slope * bottom_right
    return sample, samples.top * upper + samples.bottom * lower, slope_y


@triton.jit
def _finite(product, weight):
    """What is not finite at a corner of weight zero counts as zero."""
    return tl.where((weight != 0.0) | (tl.abs(product) < float("inf")), product, 0.0)


@triton.jit
def scatter(samples, attention, level, gradient, config: tl.constexpr):
    """Add attention [ROWS] * corner weight * g to the value gradient at the four corners of each sample."""
    VECTOR: tl.constexpr = min(4, config.D & -config.D)
    BYTES: tl.constexpr = level.grad_value.dtype.element_ty.primitive_bitwidth // 8
    column, line = _steps(level, config)
    offset = _pin(cell_offset(samples.cell, config.GRAD_ROW * BYTES, config.WIDE), config)
    upper = cell_pointers(level.grad_value, offset, VECTOR)
    lower = cell_pointers(level.grad_value + line * config.GRAD_ROW, offset, VECTOR)
    top = attention * samples.top
    bottom = attention * samples.bottom
    _add_corner(upper, top * samples.left, gradient, config)
    _add_corner(upper + column * config.GRAD_ROW, top * samples.right, gradient, config)
    _add_corner(lower, bottom * samples.left, gradient, config)
    _add_corner(lower + column * config.GRAD_ROW, bottom * samples.right, gradient, config)


@triton.jit
def _add_corner(pointers, weight, gradient, config: tl.constexpr):
    addend = (gradient.scatter * _pin(weight, config)[:, None]).to(pointers.dtype.element_ty)
    if config.BLOCK_D == config.D:
        tl.atomic_add(pointers, addend, sem="relaxed")
    else:
        tl.atomic_add(pointers, addend, mask=scatter_channels(config) < config.D, sem="relaxed")
