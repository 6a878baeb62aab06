"""The value gradient of a coarse level of spatial-temporal deformable attention, as a product of matrices.

Where a level has few cells, the samples of all queries add to the same memory again and again, and for these additions
the backward pass waits. For one level of a frame and one head they are a product: the transposed weights [queries,
cells] times the output gradient [queries, channels]. A program takes a share of the queries of every target that
samples the frame, computes their weights, has the matrix unit add the products in registers, and adds its sums to
memory once. `backward_stda.py` leaves such levels out.

Blocks of 8 x 8 cells cover the level, a power of two of them (K). One lane computes the 64 weights of a query in a
block: a sample there has eight tents along x and eight along y, and their products, all but four of them 0, are added
to the weights. These are rounded to the type of the output gradient, as the matrix unit wants them, when all samples
are added. Shapes here are [N, K, ...]: N queries times K blocks are the lanes of a program, and what follows lies
within a lane. So that the compiler leaves it there, dimensions are made by `join` and `reshape` alone (`expand_dims`
would move them).

What a weight of 0 multiplies must be finite: an output gradient or a log-sum-exp that is not (but -inf) reaches all
cells of its head and level, not those alone that its samples touch.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from stnet.kernels.triton.backward_stda import load_anchor
from stnet.kernels.triton.sampling import LOG2_E, exp2, level_size, tent

SIDE = tl.constexpr(8)  # cells along either side of a block
CELLS = tl.constexpr(64)  # of a block


class Config(NamedTuple):
    """What the sums depend on when a kernel is compiled."""

    D: int  # head width
    BLOCK_CHANNELS: int  # channels of a program, a power of two, at least 16 as the matrix unit wants
    BLOCKS: int  # of 8 x 8 cells, a power of two
    BLOCK_QUERIES: int  # queries taken at once: with BLOCKS they make the lanes of a program
    ALIGN: int  # bytes to which every query's output gradient is aligned
    CELL_STRIDE: int  # elements from cell to cell of the value gradient
    REDUCED: int  # channels of it that one reduction adds to
    SHIFT: int  # weights are rounded times 2^SHIFT: in float16, small ones would else lose bits
    PTX: bool  # inline assembly for NVIDIA GPUs


class Level(NamedTuple):
    """The level, and where the blocks begin on it."""

    height: tl.tensor
    width: tl.tensor
    x: tl.tensor  # float32 [1, K], first column
    y: tl.tensor  # and first line


class Samples(NamedTuple):
    """What places and weighs samples on the level in the own or another frame: pointers to query 0, and strides."""

    reference: tl.tensor
    reference_q: tl.tensor
    offsets: tl.tensor
    offsets_q: tl.tensor
    logits: tl.tensor
    logits_q: tl.tensor


class Queries(NamedTuple):
    """Queries of one clip, target and head: the program's share of them, pointers to query 0, and strides."""

    first: tl.tensor
    last: tl.tensor  # not one of them
    grad_output: tl.tensor
    grad_output_q: tl.tensor
    lse: tl.tensor
    lse_q: tl.tensor


@triton.jit
def _distances(position):
    """From cells 0 to 7 to positions [N, K] in pixels from cell 0: [N, K, 8], held by the lane of the position."""
    N: tl.constexpr = position.shape[0]
    K: tl.constexpr = position.shape[1]
    pair = tl.join(position, position - 4.0)
    four = tl.join(pair, pair - 2.0)
    return tl.reshape(tl.join(four, four - 1.0), [N, K, 8])


@triton.jit
def _add_sample(weights, x, y, attention, PTX: tl.constexpr):
    """Weights [N, K, 8, 8] + those of a sample of each query, at (x, y) [N, K] in pixels from a block's first cell."""
    N: tl.constexpr = x.shape[0]
    K: tl.constexpr = x.shape[1]
    across = tent(_distances(x), PTX)
    down = tent(_distances(y), PTX) * tl.reshape(attention, [N, K, 1])
    return weights + tl.reshape(down, [N, K, 8, 1]) * tl.reshape(across, [N, K, 1, 8])


@triton.jit
def _rounded(weights, dtype: tl.constexpr, PTX: tl.constexpr):
    """Weights in a type of 16 bits. The compiler cannot move this, so they, and not tents, go to the matrix unit."""
    if PTX and dtype == tl.float16:
        rounded = tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [weights], dtype=tl.float16, is_pure=False, pack=2
        )
    elif PTX:
        rounded = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [weights], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    else:
        rounded = weights.to(dtype)
    return rounded


@triton.jit
def _weights(
    row, inside, queries, samples, level, config: tl.constexpr, COMPONENTS: tl.constexpr, POINTS: tl.constexpr
):
    """Weights [N, K, 8, 8] times 2^SHIFT of the queries `row` [N]; 0 where they are not `inside`."""
    N: tl.constexpr = config.BLOCK_QUERIES
    K: tl.constexpr = config.BLOCKS
    query = tl.broadcast_to(row[:, None], [N, K])
    reference = samples.reference + query * samples.reference_q
    anchor = load_anchor(reference, level.height, level.width, COMPONENTS, POINTS)
    log_sum = tl.load(queries.lse + query * queries.lse_q) * LOG2_E
    log_sum = tl.where(log_sum == -float("inf"), 0.0, log_sum) - config.SHIFT
    log_sum = tl.where(inside[:, None], log_sum, float("inf"))
    offsets = samples.offsets + query * samples.offsets_q
    logits = samples.logits + query * samples.logits_q
    weights = tl.zeros([N, K, 8, 8], tl.float32)
    for point in tl.static_range(POINTS):
        offset_x = tl.load(offsets + 2 * point).to(tl.float32)
        offset_y = tl.load(offsets + 2 * point + 1).to(tl.float32)
        attention = exp2(tl.load(logits + point).to(tl.float32) * LOG2_E - log_sum, config.PTX)
        x = anchor.x + offset_x * anchor.unit_x - level.x
        y = anchor.y + offset_y * anchor.unit_y - level.y
        weights = _add_sample(weights, x, y, attention, config.PTX)
    return weights


@triton.jit
def _add_queries(
    sums, queries, samples, level, channel, config: tl.constexpr, COMPONENTS: tl.constexpr, POINTS: tl.constexpr
):
    """Sums [C, K * 64] + the output gradients of the queries, channels [C], times their weights."""
    N: tl.constexpr = config.BLOCK_QUERIES
    WEIGHTS: tl.constexpr = config.BLOCKS * CELLS
    BYTES: tl.constexpr = queries.grad_output.dtype.element_ty.primitive_bitwidth // 8
    ALIGN: tl.constexpr = config.ALIGN  # Triton 3.6 takes no attribute of a tuple for a constant in lists
    VECTOR: tl.constexpr = ALIGN // BYTES
    for first in tl.range(queries.first, queries.last, N, num_stages=1):
        row = first + tl.arange(0, N)
        inside = row < queries.last
        row = tl.minimum(row, queries.last - 1).to(tl.int64)
        weights = _weights(row, inside, queries, samples, level, config, COMPONENTS, POINTS)
        pointers = queries.grad_output + row[:, None] * queries.grad_output_q + channel[None, :]
        pointers = tl.multiple_of(tl.max_contiguous(pointers, [1, VECTOR]), [1, ALIGN])
        gradient = tl.load(pointers, mask=inside[:, None] & (channel < config.D)[None, :], other=0.0)
        factors = _rounded(tl.reshape(weights, [N, WEIGHTS]), gradient.dtype, config.PTX)
        # With channels first: a product of so few lines is made by instructions that all NVIDIA GPUs have.
        sums = tl.dot(tl.trans(gradient), factors, sums)
    return sums


@triton.jit
def _add_to_memory(first_cell, sums, level, channel, config: tl.constexpr):
    """Add sums [C, K * 64] to the level whose first cell is at a pointer."""
    VECTOR: tl.constexpr = min(config.REDUCED, config.D & -config.D)
    index = tl.arange(0, config.BLOCKS * CELLS)
    across = tl.cdiv(level.width, SIDE)
    block = index // CELLS
    x = block % across * SIDE + index % SIDE
    y = block // across * SIDE + index % CELLS // SIDE
    exists = (x < level.width) & (y < level.height)
    cell = tl.where(exists, y * level.width + x, 0)
    pointers = first_cell + cell[:, None] * config.CELL_STRIDE + channel[None, :]
    pointers = tl.multiple_of(tl.max_contiguous(pointers, [1, VECTOR]), [1, VECTOR * 4])
    scale: tl.constexpr = 2.0**-config.SHIFT
    mask = exists[:, None] & (channel < config.D)[None, :]
    tl.atomic_add(pointers, tl.trans(sums) * scale, mask=mask, sem="relaxed")


_NUMBERS = (
    "level", "queries", "share", "targets", "heads", "source_frames",
    "grad_output_b", "grad_output_t", "grad_output_q",
    "reference_points_b", "reference_points_t", "reference_points_q", "reference_points_l",
    "other_reference_points_b", "other_reference_points_t", "other_reference_points_q", "other_reference_points_l",
    "offsets_b", "offsets_t", "offsets_q", "offsets_h", "logits_b", "logits_t", "logits_q", "logits_h",
    "other_offsets_b", "other_offsets_t", "other_offsets_q", "other_offsets_h",
    "other_logits_b", "other_logits_t", "other_logits_q", "other_logits_h", "grad_value_b", "grad_value_f",
)  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def stda_coarse_kernel(
    grad_output,  # [B, T, Q, H * D]
    reference_points,  # [B, T, Q, L, R]
    other_reference_points,  # [B, T, Q, L, R]
    offsets,  # [B, T, Q, H, L, P, 2]
    logits,  # [B, T, Q, H, L, P]
    other_offsets,  # [B, T, Q, H, W, L, Pt, 2]
    other_logits,  # [B, T, Q, H, W, L, Pt]
    lse,  # float32 [B, T, Q, H], contiguous
    shapes,  # int32 [L, 2]
    starts,  # int32 [L]
    columns,  # int32 [F, T], where the row of a target names a frame: 0 as its own, -1 not at all
    grad_value,  # float32 [B, F, S, H, D], contiguous, to add to
    level,
    queries,
    share,  # queries of a target that a program takes
    targets,
    heads,
    source_frames,
    grad_output_b, grad_output_t, grad_output_q,
    reference_points_b, reference_points_t, reference_points_q, reference_points_l,
    other_reference_points_b, other_reference_points_t, other_reference_points_q, other_reference_points_l,
    offsets_b, offsets_t, offsets_q, offsets_h,
    logits_b, logits_t, logits_q, logits_h,
    other_offsets_b, other_offsets_t, other_offsets_q, other_offsets_h,
    other_logits_b, other_logits_t, other_logits_q, other_logits_h,
    grad_value_b, grad_value_f,
    config: tl.constexpr,  # Config
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
):  # fmt: skip
    """Grid (shares * source frames * clips, heads, blocks of channels)."""
    head = tl.program_id(1).to(tl.int64)
    shares = tl.cdiv(queries, share)
    first = tl.program_id(0) % shares * share
    frame = tl.program_id(0) // shares % source_frames
    clip = (tl.program_id(0) // shares // source_frames).to(tl.int64)
    last = tl.minimum(first + share, queries)

    height, width, start = level_size(shapes, starts, level)
    block = tl.arange(0, config.BLOCKS)[None, :]
    across = tl.cdiv(width, SIDE)
    place = Level(height, width, (block % across * SIDE).to(tl.float32), (block // across * SIDE).to(tl.float32))
    channel = tl.program_id(2) * config.BLOCK_CHANNELS + tl.arange(0, config.BLOCK_CHANNELS)

    grad_output += clip * grad_output_b + head * config.D
    reference_points += clip * reference_points_b + level * reference_points_l
    other_reference_points += clip * other_reference_points_b + level * other_reference_points_l
    offsets += clip * offsets_b + head * offsets_h + level * (POINTS * 2)
    logits += clip * logits_b + head * logits_h + level * POINTS
    other_offsets += clip * other_offsets_b + head * other_offsets_h + level * (OTHER_POINTS * 2)
    other_logits += clip * other_logits_b + head * other_logits_h + level * OTHER_POINTS
    lse += clip * targets * queries * heads + head

    CHANNELS: tl.constexpr = config.BLOCK_CHANNELS
    WEIGHTS: tl.constexpr = config.BLOCKS * CELLS
    sums = tl.zeros([CHANNELS, WEIGHTS], tl.float32)
    for index in range(targets):
        column = tl.load(columns + frame * targets + index)
        target = tl.cast(index, tl.int64)
        rows = Queries(
            first, last, grad_output + target * grad_output_t, grad_output_q, lse + target * queries * heads, heads
        )
        if column == 0:
            samples = Samples(
                reference_points + target * reference_points_t, reference_points_q,
                offsets + target * offsets_t, offsets_q, logits + target * logits_t, logits_q,
            )  # fmt: skip
            sums = _add_queries(sums, rows, samples, place, channel, config, COMPONENTS, POINTS)
        elif column > 0:
            sample = (column - 1) * (LEVELS * OTHER_POINTS)
            other_samples = Samples(
                other_reference_points + target * other_reference_points_t, other_reference_points_q,
                other_offsets + target * other_offsets_t + 2 * sample, other_offsets_q,
                other_logits + target * other_logits_t + sample, other_logits_q,
            )  # fmt: skip
            sums = _add_queries(sums, rows, other_samples, place, channel, config, COMPONENTS, OTHER_POINTS)
    grad_value += clip * grad_value_b + frame.to(tl.int64) * grad_value_f + head * config.D
    grad_value += start.to(tl.int64) * config.CELL_STRIDE
    _add_to_memory(grad_value, sums, place, channel, config)
