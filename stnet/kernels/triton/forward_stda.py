"""Forward kernel of spatial-temporal deformable attention (STNet, MICCAI 2023).

For a query and head, with samples s of logit a_s at pixel position (x_s, y_s) of a level of a frame,

    output = sum_s softmax(a)_s * sample(x_s, y_s),    lse = log sum_s exp(a_s),

where `sample` interpolates four cells and is zero outside the level (see `stnet.kernels.triton.sampling`). The softmax
spans the own frame and all other frames. Nothing but output and lse is written: positions, weights and the other
frames' values exist only in registers.

A program holds BLOCK_QUERIES queries of BLOCK_HEADS heads of one target frame and clip: a query of a head is a row of
its tile. What is one number per row (positions, weights, softmax) is computed by one lane per row; only an offset and
the corner weights travel to the lanes that gather, which read 16 bytes each. Largest logit first, then one pass over
levels and, inside, frames; one division at the end. Coordinates, weights and sums are float32.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from stnet.kernels.triton.forward_samples import (
    Level,
    add_samples,
    channel_pointers,
    first_channel,
    program_heads,
    store_output,
)
from stnet.kernels.triton.sampling import (
    LN_2,
    LOG2_E,
    any_not_finite,
    exp2,
    level_size,
    matrix_identity,
    split_pairs,
)


class Group(NamedTuple):
    """Where the queries find what places and weighs their samples in the own or the other frames: pointers [N]."""

    reference: tl.tensor  # to the reference points of level 0
    level_stride: tl.tensor  # elements from these to those of the next level
    offsets: tl.tensor  # to the first sample
    logits: tl.tensor


class Anchor(NamedTuple):
    """Where offset zero lies on a level, minus 0.5, and how far one unit of offset reaches, in pixels, [N]."""

    x: tl.tensor
    y: tl.tensor
    unit_x: tl.tensor  # unused with 2-component references
    unit_y: tl.tensor


@triton.jit
def _load_anchor(group, index, height, width, COMPONENTS: tl.constexpr, POINTS: tl.constexpr):
    """The `Anchor` of a group on the level of an index."""
    reference = group.reference + index * group.level_stride
    across, down = width.to(tl.float32), height.to(tl.float32)
    x = tl.load(reference) * across - 1.0
    y = tl.load(reference + 1) * down - 1.0
    if COMPONENTS == 2:
        return Anchor(x, y, x, y)
    unit_x = tl.load(reference + 2) * (across * (0.5 / POINTS))
    unit_y = tl.load(reference + 3) * (down * (0.5 / POINTS))
    return Anchor(x, y, unit_x, unit_y)


@triton.jit
def _attend_points(
    total,  # float32 [N, C], sum of exp(logit - largest) * sample
    mass,  # float32 [N], sum of exp(logit - largest)
    identity,
    level,
    offsets,  # pointers [N] to the first of POINTS offsets (x, y)
    logits,  # pointers [N] to the first of POINTS logits
    anchor,
    largest,  # float32 [N], base-2 logarithm
    config: tl.constexpr,
    COMPONENTS: tl.constexpr,
    POINTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the samples of one level of one frame."""
    # Two samples a step, unrolled or not; the rare masked repetition stays small.
    K: tl.constexpr = 1 if MASKED else 2 - POINTS % 2
    STEPS: tl.constexpr = 1 if MASKED or POINTS > 4 or not config.UNROLL_POINTS else POINTS // K
    for point in tl.range(0, POINTS, K, loop_unroll_factor=STEPS):
        pairs, logit = _load_points(offsets + 2 * point, logits + point, K)
        total, mass = _attend_step(
            total, mass, identity, level, pairs, logit, anchor, largest, config, COMPONENTS, MASKED
        )
    return total, mass


@triton.jit
def _load_points(offsets, logits, K: tl.constexpr):
    """The next K offsets [N, 2 K] and logits [N, K] of queries."""
    return tl.load(offsets[:, None] + tl.arange(0, 2 * K)[None, :]), tl.load(logits[:, None] + tl.arange(0, K)[None, :])


@triton.jit
def _attend_step(
    total, mass, identity, level, pairs, logit, anchor, largest, config: tl.constexpr, COMPONENTS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add the samples of what `_load_points` loaded."""
    x, y = split_pairs(pairs.to(tl.float32))
    if COMPONENTS == 4:
        x *= anchor.unit_x[:, None]
        y *= anchor.unit_y[:, None]
    x += anchor.x[:, None]
    y += anchor.y[:, None]
    probability = exp2(logit.to(tl.float32) * LOG2_E - largest[:, None], config.PTX)
    mass += tl.sum(probability, axis=1)
    return add_samples(total, identity, level, x, y, probability, config, MASKED), mass


@triton.jit
def _largest(logits, count, largest, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """Maximum of `largest` [N] and `count` logits from pointers [N]; EVEN: count is a multiple of CHUNK."""
    lane = tl.arange(0, CHUNK)[None, :]
    for first in range(0, count, CHUNK):
        if EVEN:
            chunk = tl.load(logits[:, None] + first + lane)
        else:
            chunk = tl.load(logits[:, None] + first + lane, mask=first + lane < count, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(chunk.to(tl.float32), axis=1))
    return largest


@triton.jit
def _attend_ahead(
    total, mass, identity, level, frames, others, index, anchor, largest, other_frames,
    config: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, COMPONENTS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Add the samples of one level of all other frames, each frame's offsets loaded before the gathers of the last.

    `level` is that of a clip's beginning.
    """
    if other_frames > 0:
        pairs, logit = _load_points(others.offsets + index * (POINTS * 2), others.logits + index * POINTS, POINTS)
        for frame in tl.range(other_frames, loop_unroll_factor=UNROLL):
            first = (tl.minimum(frame + 1, other_frames - 1) * LEVELS + index) * POINTS
            next_pairs, next_logit = _load_points(others.offsets + first * 2, others.logits + first, POINTS)
            cells = level.cells + tl.load(frames + 1 + frame)
            here = Level(level.height, level.width, cells, level.right, level.down, level.head)
            total, mass = _attend_step(
                total, mass, identity, here, pairs, logit, anchor, largest, config, COMPONENTS, False
            )
            pairs, logit = next_pairs, next_logit
    return total, mass


@triton.jit
def _attend(
    value,  # pointer to the clip, the first head and channel
    channel_stride,
    row_head,  # see `Level.head`
    frames,  # int64 [1 + W], where the frames begin
    shapes,
    starts,
    own,
    others,
    largest,
    other_frames,
    config: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    UNROLL: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Unnormalized output [N, C] and softmax mass [N] of N queries."""
    CHANNELS: tl.constexpr = config.BLOCK_CHANNELS  # Triton 3.6 takes no attribute of a tuple for a constant in lists
    AHEAD: tl.constexpr = config.LOAD_AHEAD and OTHER_POINTS <= 2 and not MASKED
    total = tl.zeros([largest.shape[0], CHANNELS], tl.float32)
    mass = tl.zeros_like(largest)
    identity = 0
    if config.ARITHMETIC == "matrix" and not MASKED:
        identity = matrix_identity(value.dtype.element_ty == tl.bfloat16)
    channels = channel_pointers(value, channel_stride, config)
    own_frame = tl.load(frames)
    for index in range(LEVELS):
        height, width, start = level_size(shapes, starts, index)
        right = config.CELL_STRIDE
        down = width.to(tl.int64) * config.CELL_STRIDE
        if config.THIN:
            right = tl.minimum(width - 1, 1) * config.CELL_STRIDE
            down = tl.where(height > 1, width.to(tl.int64) * config.CELL_STRIDE, 0)
        first_cell = channels + start.to(tl.int64) * config.CELL_STRIDE

        anchor = _load_anchor(own, index, height, width, COMPONENTS, POINTS)
        level = Level(height, width, first_cell + own_frame, right, down, row_head)
        total, mass = _attend_points(
            total, mass, identity, level, own.offsets + index * (POINTS * 2), own.logits + index * POINTS,
            anchor, largest, config, COMPONENTS, POINTS, MASKED,
        )  # fmt: skip

        anchor = _load_anchor(others, index, height, width, COMPONENTS, OTHER_POINTS)
        if AHEAD:
            level = Level(height, width, first_cell, right, down, row_head)
            total, mass = _attend_ahead(
                total, mass, identity, level, frames, others, index, anchor, largest, other_frames,
                config, LEVELS, OTHER_POINTS, COMPONENTS, UNROLL,
            )  # fmt: skip
        else:
            for frame in tl.range(other_frames, loop_unroll_factor=UNROLL):
                level = Level(height, width, first_cell + tl.load(frames + 1 + frame), right, down, row_head)
                first = (frame * LEVELS + index) * OTHER_POINTS
                total, mass = _attend_points(
                    total, mass, identity, level, others.offsets + first * 2, others.logits + first,
                    anchor, largest, config, COMPONENTS, OTHER_POINTS, MASKED,
                )  # fmt: skip
    return total, mass


_STDA_NUMBERS = (
    "queries", "targets", "other_frames", "value_b", "value_h", "value_d",
    "reference_points_b", "reference_points_t", "reference_points_q", "reference_points_l",
    "other_reference_points_b", "other_reference_points_t", "other_reference_points_q", "other_reference_points_l",
    "offsets_b", "offsets_t", "offsets_q", "offsets_h", "logits_b", "logits_t", "logits_q", "logits_h",
    "other_offsets_b", "other_offsets_t", "other_offsets_q", "other_offsets_h",
    "other_logits_b", "other_logits_t", "other_logits_q", "other_logits_h",
)  # fmt: skip


@triton.jit(do_not_specialize=_STDA_NUMBERS)
def stda_forward_kernel(
    value,  # [B, F, S, H, D]
    reference_points,  # float32 [B, T, Q, L, R]
    other_reference_points,  # float32 [B, T, Q, L, R]
    offsets,  # [B, T, Q, H, L, P, 2]
    logits,  # [B, T, Q, H, L, P]
    other_offsets,  # [B, T, Q, H, W, L, Pt, 2]
    other_logits,  # [B, T, Q, H, W, L, Pt]
    shapes,  # int32 [L, 2]
    starts,  # int32 [L]
    frames,  # int64 [T, 1 + W], where the frames begin in a clip of value
    order,  # int32 [Q], a permutation of the queries, if ORDERED
    output,  # [B, T, Q, H, D]
    lse,  # float32 [B, T, Q, H]
    queries,
    targets,
    other_frames,
    value_b, value_h, value_d,
    reference_points_b, reference_points_t, reference_points_q, reference_points_l,
    other_reference_points_b, other_reference_points_t, other_reference_points_q, other_reference_points_l,
    offsets_b, offsets_t, offsets_q, offsets_h,
    logits_b, logits_t, logits_q, logits_h,
    other_offsets_b, other_offsets_t, other_offsets_q, other_offsets_h,
    other_logits_b, other_logits_t, other_logits_q, other_logits_h,
    config: tl.constexpr,  # Config
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ALIGN: tl.constexpr,  # bytes to which every query's offsets and logits are aligned
    BLOCK_QUERIES: tl.constexpr,
    UNROLL: tl.constexpr,
    ORDERED: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * targets * clips, head blocks * channel blocks)."""
    HEADS: tl.constexpr = config.BLOCK_HEADS  # Triton 3.6 takes no attribute of a tuple for a constant in lists
    line = tl.arange(0, BLOCK_QUERIES * HEADS)  # queries, and fastest heads
    SIZE: tl.constexpr = value.dtype.element_ty.primitive_bitwidth // 8
    first, head, row_head, heads = program_heads(line, value_h, SIZE, config)
    channel = first_channel(config)
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    pair = tl.program_id(0) // blocks
    clip = (pair // targets).to(tl.int64)
    target = (pair % targets).to(tl.int64)
    slot = tl.program_id(0) % blocks * BLOCK_QUERIES + line // HEADS
    query = tl.minimum(slot, queries - 1)
    if ORDERED:
        query = tl.load(order + query)
    query = query.to(tl.int64)

    value += clip * value_b + first * value_h + channel.to(tl.int64) * value_d
    reference_points += clip * reference_points_b + target * reference_points_t + query * reference_points_q
    other_reference_points += (
        clip * other_reference_points_b + target * other_reference_points_t + query * other_reference_points_q
    )
    offsets += clip * offsets_b + target * offsets_t + head * offsets_h + query * offsets_q
    logits += clip * logits_b + target * logits_t + head * logits_h + query * logits_q
    other_offsets += clip * other_offsets_b + target * other_offsets_t + head * other_offsets_h
    other_offsets += query * other_offsets_q
    other_logits += clip * other_logits_b + target * other_logits_t + head * other_logits_h
    other_logits += query * other_logits_q
    offsets, logits = tl.multiple_of(offsets, [ALIGN]), tl.multiple_of(logits, [ALIGN])
    other_offsets = tl.multiple_of(other_offsets, [ALIGN])
    other_logits = tl.multiple_of(other_logits, [ALIGN])
    own = Group(reference_points, reference_points_l, offsets, logits)
    others = Group(other_reference_points, other_reference_points_l, other_offsets, other_logits)
    frames += target * (1 + other_frames)

    CHUNK: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    largest = tl.full([BLOCK_QUERIES * HEADS], float("-inf"), tl.float32)
    largest = _largest(logits, LEVELS * POINTS, largest, CHUNK, LEVELS * POINTS % CHUNK == 0)
    count = other_frames * (LEVELS * OTHER_POINTS)
    largest = _largest(other_logits, count, largest, CHUNK, LEVELS * OTHER_POINTS % CHUNK == 0)
    largest = tl.where(largest == float("-inf"), 0.0, largest * LOG2_E)

    total, mass = _attend(
        value, value_d, row_head, frames, shapes, starts, own, others, largest, other_frames,
        config, LEVELS, POINTS, OTHER_POINTS, COMPONENTS, UNROLL, False,
    )  # fmt: skip
    if any_not_finite(total):
        total, mass = _attend(
            value, value_d, row_head, frames, shapes, starts, own, others, largest, other_frames,
            config, LEVELS, POINTS, OTHER_POINTS, COMPONENTS, 1, True,
        )  # fmt: skip
    total *= tl.where(mass == 0.0, 0.0, 1.0 / mass)[:, None]

    row = (pair.to(tl.int64) * queries + query) * heads + head
    inside = slot < queries
    tl.store(lse + row, largest * LN_2 + tl.log(mass), mask=inside)
    store_output(output, row, channel, total, inside, config)
