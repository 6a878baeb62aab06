"""Device functions of the backward kernels: the gradients of a chunk of samples.

A chunk has ROWS samples, one a row. Their positions, weights and gradients are vectors [ROWS], computed by one lane a
row. Channels are taken BLOCK (BLOCK_CHANNELS) at a time, a wide head in several turns. Corners are gathered as tiles
[PARTS, ROWS, C] with C (GATHER_CHANNELS) channels, at most 64 bytes, in four lanes of a row, and PARTS such pieces in
the registers of a lane; the value gradient is scattered from tiles [ROWS, BLOCK], 16 bytes of float32 a lane. The
output gradient is needed in both arrangements. (As tiles of one shape the compiler would give both the arrangement of
the gathers and move every product from one to the other.)
"""

from typing import NamedTuple

import triton
import triton.language as tl

from stnet.kernels.triton.sampling import cell_offset, tent


class Config(NamedTuple):
    """What the treatment of a sample depends on when a kernel is compiled."""

    D: int  # head width
    BLOCK_CHANNELS: int  # channels taken at a time, a power of two
    GATHER_CHANNELS: int  # of these, channels of a row that are gathered together
    HELD: bool  # the output gradient stays in registers (BLOCK_CHANNELS >= D), instead of being read for every chunk
    ALIGN: int  # bytes to which every query's output and its gradient are aligned
    CELL_STRIDE: int  # elements from cell to cell of value
    GRAD_CELL_STRIDE: int  # elements from cell to cell of its gradient
    VECTOR: int  # channels of value that can be read at once
    REDUCED: int  # channels of its gradient that one reduction adds to
    THIN: bool  # a level may be one cell wide or high
    WIDE: bool  # a frame may have 2^32 bytes or more
    PTX: bool  # inline assembly for NVIDIA GPUs
    NEED_VALUE: bool  # the gradient of value is asked for
    HEAD_AXIS: int  # of the grid; programs beside each other differ in axis 0


class Level(NamedTuple):
    """One level of one source frame."""

    height: tl.tensor
    width: tl.tensor
    value: tl.tensor  # pointers [PARTS, 1, C] to its first cell
    grad_value: tl.tensor  # pointer to its first cell


class OutputGradient(NamedTuple):
    """The output gradient of each row's query. Rows beyond the queries have the last one's, and weights of zero."""

    blocks: tl.tensor  # of a head
    row: tl.tensor  # pointers [ROWS] to channel 0
    scale: tl.tensor  # the fixed-point scale where there is one
    gather: tl.tensor  # if HELD, the gradient in float32: [PARTS, ROWS, C]
    scatter: tl.tensor  # and times the scale: [ROWS, BLOCK]


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
    """The first BLOCK channels in the arrangement of gathers: [PARTS, 1, C]."""
    PARTS: tl.constexpr = config.BLOCK_CHANNELS // config.GATHER_CHANNELS
    return (
        tl.arange(0, PARTS)[:, None, None] * config.GATHER_CHANNELS
        + tl.arange(0, config.GATHER_CHANNELS)[None, None, :]
    )


@triton.jit
def scatter_channels(config: tl.constexpr):
    """The first BLOCK channels in the arrangement of reductions: [1, BLOCK]."""
    return tl.arange(0, config.BLOCK_CHANNELS)[None, :]


@triton.jit
def output_gradient(row, scale, queries, config: tl.constexpr):
    """The `OutputGradient` at pointers [ROWS] to channel 0."""
    COUNT: tl.constexpr = (config.D + config.BLOCK_CHANNELS - 1) // config.BLOCK_CHANNELS
    # Were the number of several known when it is compiled, the assembler would unroll loops, and run out of registers.
    blocks = COUNT if COUNT == 1 else COUNT + (queries >> 31)
    gradient = OutputGradient(blocks, row, scale, 0.0, 0.0)
    if config.HELD:
        gather = _load_gather(row, 0, config).to(tl.float32)
        gradient = OutputGradient(blocks, row, scale, gather, _load_scatter(row, 0, config) * scale)
    return gradient


@triton.jit
def _load_gather(row, block, config: tl.constexpr):
    """Channels of a block at pointers [ROWS] to channel 0, in the arrangement of gathers."""
    BYTES: tl.constexpr = row.dtype.element_ty.primitive_bitwidth // 8
    ALIGN: tl.constexpr = config.ALIGN  # Triton 3.6 takes no attribute of a tuple for a constant in these lists
    VECTOR: tl.constexpr = ALIGN // BYTES
    channels = block * config.BLOCK_CHANNELS + gather_channels(config)
    pointers = tl.max_contiguous(row[None, :, None] + channels, [1, 1, VECTOR])
    pointers = tl.multiple_of(pointers, [1, 1, ALIGN])
    if config.D % config.BLOCK_CHANNELS == 0:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=channels < config.D, other=0.0)
    return tile


@triton.jit
def _load_scatter(row, block, config: tl.constexpr):
    """The same in float32 in the arrangement of reductions."""
    BYTES: tl.constexpr = row.dtype.element_ty.primitive_bitwidth // 8
    # Not more than a reduction takes, or products would move from one arrangement to the other.
    VECTOR: tl.constexpr = min(config.REDUCED, config.ALIGN // BYTES)
    channels = block * config.BLOCK_CHANNELS + scatter_channels(config)
    pointers = tl.max_contiguous(row[:, None] + channels, [1, VECTOR])
    pointers = tl.multiple_of(pointers, [1, VECTOR * BYTES])
    if config.D % config.BLOCK_CHANNELS == 0:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=channels < config.D, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def _gather_block(gradient, block, config: tl.constexpr):
    if config.HELD:
        return gradient.gather
    return _load_gather(_pinned_row(gradient, config), block, config).to(tl.float32)


@triton.jit
def _scatter_block(gradient, block, config: tl.constexpr):
    if config.HELD:
        return gradient.scatter
    return _load_scatter(_pinned_row(gradient, config), block, config) * gradient.scale


@triton.jit
def _pinned_row(gradient, config: tl.constexpr):
    """Pointers [ROWS] that are held by one lane a row, not by every lane that reads the row."""
    row = pin(gradient.row.to(tl.int64, bitcast=True), config)
    return row.to(gradient.row.dtype, bitcast=True)


@triton.jit
def dot_with_gradient(row, gradient, config: tl.constexpr):
    """<x, g> [ROWS] of the rows x at pointers [ROWS] to channel 0."""
    total = _zero_dots(gradient, row.dtype.element_ty, config)
    for block in range(gradient.blocks):
        tile = _load_gather(row, block, config)
        total = _lane_dots(tile, _gather_block(gradient, block, config), total, config)
    return tl.sum(total, axis=1)


@triton.jit
def _zero_dots(gradient, dtype: tl.constexpr, config: tl.constexpr):
    """Zero for `_lane_dots` to add to: [ROWS, lanes of a row]."""
    LANE: tl.constexpr = min(config.GATHER_CHANNELS, 128 // dtype.primitive_bitwidth)
    LANES: tl.constexpr = config.GATHER_CHANNELS // LANE  # as in `_load_gather`
    return tl.zeros([gradient.row.shape[0], LANES], tl.float32)


@triton.jit
def _lane_dots(tile, gradient, total, config: tl.constexpr):
    """Total [ROWS, lanes of a row] + the sum over a lane's channels of tile * gradient, [PARTS, ROWS, C]."""
    # What a lane holds of a row: 16 bytes of each part. Summed in one chain of multiply-adds.
    COUNT: tl.constexpr = tile.shape[0] * min(tile.shape[2], 128 // tile.dtype.primitive_bitwidth)
    return _chain(_by_row(_widen(tile, config)), _by_row(gradient), total, COUNT)


@triton.jit
def _widen(tile, config: tl.constexpr):
    """Tile in float32; bfloat16 by shift and mask, half the instructions of the compiler's conversion."""
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
    """Total + a * b, [ROWS, N], summed over groups of COUNT columns."""
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
    dtype: tl.constexpr = level.value.dtype.element_ty
    offset = pin(cell_offset(samples.cell, config.CELL_STRIDE * dtype.primitive_bitwidth // 8, config.WIDE), config)
    upper = _gather_pointers(level.value, offset, config)
    lower = _gather_pointers(level.value + line * config.CELL_STRIDE, offset, config)
    right = column * config.CELL_STRIDE
    top_left = _zero_dots(gradient, dtype, config)
    top_right, bottom_left, bottom_right = top_left, top_left, top_left
    for block in range(gradient.blocks):
        tile = _gather_block(gradient, block, config)
        top_left = _corner_dot(upper, block, tile, top_left, config)
        top_right = _corner_dot(upper + right, block, tile, top_right, config)
        bottom_left = _corner_dot(lower, block, tile, bottom_left, config)
        bottom_right = _corner_dot(lower + right, block, tile, bottom_right, config)
    dots = _sum_lanes(tl.join(tl.join(top_left, top_right), tl.join(bottom_left, bottom_right)))
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
    VECTOR: tl.constexpr = config.VECTOR  # as in `_load_gather`
    pointers = address.to(base.dtype, bitcast=True)
    pointers = tl.max_contiguous(pointers, [1, 1, VECTOR])
    return tl.multiple_of(pointers, [1, 1, VECTOR * BYTES])


@triton.jit
def _corner_dot(pointers, block, gradient, total, config: tl.constexpr):
    pointers += block * config.BLOCK_CHANNELS
    if config.D % config.BLOCK_CHANNELS == 0:
        corner = tl.load(pointers)
    else:
        corner = tl.load(pointers, mask=gather_channels(config) < config.D - block * config.BLOCK_CHANNELS, other=0.0)
    return _lane_dots(corner, gradient, total, config)


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
def pin(x, config: tl.constexpr):
    """x, computed here by one lane a row: the compiler cannot copy or move this instruction."""
    if config.PTX:
        if x.dtype == tl.int64:
            x = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [x], dtype=tl.int64, is_pure=False, pack=1)
        elif x.dtype == tl.float32:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=False, pack=1)
        else:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1)
    return x


@triton.jit
def interpolate(samples, dots, attention):
    """Attention * (<s, g>, <ds/dx, g>, <ds/dy, g>), each [ROWS], from the dots of the four corners."""
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
    column, line = _steps(level, config)
    BYTES: tl.constexpr = level.grad_value.dtype.element_ty.primitive_bitwidth // 8
    right = column * config.GRAD_CELL_STRIDE
    down = line * config.GRAD_CELL_STRIDE
    top = attention * samples.top
    bottom = attention * samples.bottom
    for block in range(gradient.blocks):
        tile = _scatter_block(gradient, block, config)
        base = level.grad_value + block * config.BLOCK_CHANNELS
        cells = pin(cell_offset(samples.cell, config.GRAD_CELL_STRIDE * BYTES, config.WIDE), config)
        _add_corner(base, cells, block, top * samples.left, tile, config)
        _add_corner(base + right, cells, block, top * samples.right, tile, config)
        _add_corner(base + down, cells, block, bottom * samples.left, tile, config)
        _add_corner(base + down + right, cells, block, bottom * samples.right, tile, config)


@triton.jit
def _add_corner(base, cells, block, weight, gradient, config: tl.constexpr):
    """base: pointer to the block in cell 0; cells: `sampling.cell_offset` [ROWS]."""
    VECTOR: tl.constexpr = min(config.REDUCED, config.D & -config.D)
    BYTES: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
    # Extended to 64 bits as a tile, so that 32 bits a row travel to the lanes that add.
    offset = cells[:, None] + (scatter_channels(config) * BYTES).to(cells.dtype)
    pointers = (base.to(tl.int64, bitcast=True) + offset.to(tl.int64)).to(base.dtype, bitcast=True)
    pointers = tl.multiple_of(tl.max_contiguous(pointers, [1, VECTOR]), [1, VECTOR * BYTES])
    addend = (gradient * pin(weight, config)[:, None]).to(base.dtype.element_ty)
    if config.D % config.BLOCK_CHANNELS == 0:
        tl.atomic_add(pointers, addend, sem="relaxed")
    else:
        tl.atomic_add(
            pointers, addend, mask=scatter_channels(config) < config.D - block * config.BLOCK_CHANNELS, sem="relaxed"
        )
