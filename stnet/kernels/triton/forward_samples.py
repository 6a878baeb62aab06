"""Device functions of the forward kernels: add weighted bilinear samples to a tile of sums."""

from typing import NamedTuple

import triton
import triton.language as tl

from stnet.kernels.triton.sampling import (
    add_by_matrix_unit,
    axis_cell,
    cell_offset,
    cell_pointers,
    column,
    interpolate_packed,
    pack_pair,
)


class Config(NamedTuple):
    """What the treatment of a sample depends on when a kernel is compiled."""

    D: int  # head width
    BLOCK_CHANNELS: int  # channels of a program, more than D only if D is below a power of two
    BLOCK_HEADS: int  # heads of a program; its rows are (query, head), heads fastest
    CELL_STRIDE: int  # elements from cell to cell of value
    UNIT_CHANNEL_STRIDE: bool  # the channels of value are contiguous
    VECTOR: int  # channels of value that can be read at once
    STORE: int  # channels of output that can be written at once
    ARITHMETIC: str  # see `launch_table.Candidate`
    UNROLL_POINTS: bool  # see `launch_table.Candidate`
    LOAD_AHEAD: bool  # see `launch_table.Candidate`
    THIN: bool  # a level may be one cell wide or high
    WIDE: bool  # a frame may have 2^32 bytes or more
    PTX: bool  # inline assembly for NVIDIA GPUs


class Level(NamedTuple):
    """One level of one source frame."""

    height: tl.tensor
    width: tl.tensor
    cells: tl.tensor  # pointers [1, C] to its first cell
    right: tl.tensor  # elements from a cell to its right neighbour, 0 in a level one cell wide
    down: tl.tensor  # and to the one below
    head: tl.tensor  # bytes from the program's first head to that of each row [N], if a program has several


@triton.jit
def first_channel(config: tl.constexpr):
    """Where the channels of a program begin: the last block may overlap the one before, both write the same numbers."""
    COUNT: tl.constexpr = (config.D + config.BLOCK_CHANNELS - 1) // config.BLOCK_CHANNELS
    last: tl.constexpr = config.D - config.BLOCK_CHANNELS if config.D > config.BLOCK_CHANNELS else 0
    return tl.minimum(tl.program_id(1) % COUNT * config.BLOCK_CHANNELS, last)


@triton.jit
def program_heads(line, head_stride, SIZE: tl.constexpr, config: tl.constexpr):
    """The heads of a program whose rows are `line` [N]; the grid's second axis has blocks of heads and of channels.

    Returns:
        (its first head int64, the head of each row int64, `Level.head` as `cell_offset` counts, heads of the problem).
    """
    HEADS: tl.constexpr = config.BLOCK_HEADS
    PARTS: tl.constexpr = (config.D + config.BLOCK_CHANNELS - 1) // config.BLOCK_CHANNELS
    first = (tl.program_id(1) // PARTS * HEADS).to(tl.int64)
    head, shift = first, 0
    if HEADS > 1:
        inner = line % HEADS
        head += inner
        if config.WIDE:
            shift = inner.to(tl.int64) * (head_stride * SIZE)
        else:
            shift = (inner * head_stride.to(tl.int32) * SIZE).to(tl.uint32, bitcast=True)
    return first, head, shift, tl.num_programs(1) // PARTS * HEADS


@triton.jit
def channel_pointers(value, channel_stride, config: tl.constexpr):
    """Pointers [1, C] to the channels of a program from the first of them."""
    stride = channel_stride
    if config.UNIT_CHANNEL_STRIDE:
        stride = 1
    return value + tl.arange(0, config.BLOCK_CHANNELS)[None, :] * stride


@triton.jit
def store_output(output, row, channel, total, inside, config: tl.constexpr):
    """Write sums [N, C] to rows [N] of D channels, from `channel` on, where `inside` [N]."""
    channels = tl.arange(0, config.BLOCK_CHANNELS)[None, :]
    pointers = (output + row * config.D + channel)[:, None] + channels
    STORE: tl.constexpr = config.STORE  # Triton 3.6 takes no attribute of a tuple for a constant in these lists
    SIZE: tl.constexpr = output.dtype.element_ty.primitive_bitwidth // 8
    pointers = tl.multiple_of(tl.max_contiguous(pointers, [1, STORE]), [1, STORE * SIZE])
    tl.store(pointers, total.to(output.dtype.element_ty), mask=inside[:, None] & (channels < config.D))


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
    level,
    x,  # float32 [N, K] pixel positions minus 0.5
    y,
    probability,  # float32 [N, K]
    config: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Total + the bilinear samples at K (1 or 2) positions of each of N queries, times their probabilities."""
    K: tl.constexpr = x.shape[1]
    ARITHMETIC: tl.constexpr = "float32" if MASKED else config.ARITHMETIC
    cells, right, down = level.cells, level.right, level.down
    cell_x, west, east = axis_cell(x, level.width, config.THIN, config.PTX)
    cell_y, north, south = axis_cell(y, level.height, config.THIN, config.PTX)
    BYTES: tl.constexpr = config.CELL_STRIDE * cells.dtype.element_ty.primitive_bitwidth // 8
    offset = cell_offset(cell_y * level.width + cell_x, BYTES, config.WIDE)
    if config.BLOCK_HEADS > 1:
        offset += level.head[:, None]
    north *= probability
    south *= probability
    top_left, top_right = north * west, north * east
    bottom_left, bottom_right = south * west, south * east
    if ARITHMETIC == "float32":
        for k in tl.static_range(K):
            row = column(offset, k)
            above = cell_pointers(cells, row, config.VECTOR)
            below = cell_pointers(cells + down, row, config.VECTOR)
            total += _weighted_corner(above, column(top_left, k), config.D, MASKED)
            total += _weighted_corner(above + right, column(top_right, k), config.D, MASKED)
            total += _weighted_corner(below, column(bottom_left, k), config.D, MASKED)
            total += _weighted_corner(below + right, column(bottom_right, k), config.D, MASKED)
    else:
        BFLOAT: tl.constexpr = cells.dtype.element_ty == tl.bfloat16
        top_pair = pack_pair(top_left, top_right, BFLOAT)
        bottom_pair = pack_pair(bottom_left, bottom_right, BFLOAT)
        first = _packed_sample(level, column(offset, 0), column(top_pair, 0), column(bottom_pair, 0), config)
        if ARITHMETIC == "packed":
            total += first.to(tl.float32)
        if K == 2:
            second = _packed_sample(level, column(offset, 1), column(top_pair, 1), column(bottom_pair, 1), config)
            if ARITHMETIC == "packed":
                total += second.to(tl.float32)
            else:
                total = add_by_matrix_unit(total, first, second, identity)
        elif ARITHMETIC == "matrix":
            total = add_by_matrix_unit(total, first, tl.zeros_like(first), identity)
    return total


@triton.jit
def _packed_sample(
    level,
    row,  # `cell_offset` [N]
    top,
    bottom,
    config: tl.constexpr,
):
    """One weighted sample per query, 16-bit [N, C]; top and bottom are `pack_pair` weights [N]."""
    above = cell_pointers(level.cells, row, config.VECTOR)
    below = cell_pointers(level.cells + level.down, row, config.VECTOR)
    return interpolate_packed(
        _load_corner(above, top, config.D, False),
        _load_corner(above + level.right, top, config.D, False),
        _load_corner(below, bottom, config.D, False),
        _load_corner(below + level.right, bottom, config.D, False),
        top[:, None],
        bottom[:, None],
    )
