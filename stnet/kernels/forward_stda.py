"""Forward kernel of spatial-temporal deformable attention (STNet, MICCAI 2023).

For a query and head, with samples s of logit a_s at pixel position (x_s, y_s) of a level of a frame,

    output = sum_s softmax(a)_s * sample(x_s, y_s),    lse = log sum_s exp(a_s),

where `sample` interpolates four cells and is zero outside the level (see `stnet.kernels.sampling`). The softmax spans
the own frame and all other frames. Nothing but output and lse is written: positions, weights and the other frames'
values exist only in registers.

A program holds BLOCK queries of one head, target frame and clip. What is one number per query (positions, weights,
softmax) is computed by one lane per query; only an offset and the corner weights travel to the lanes that gather, which
read 16 bytes each. Largest logit first, then one pass over levels and, inside, frames; one division at the end.
Coordinates, weights and sums are float32.
"""

import triton
import triton.language as tl

from stnet.kernels.forward_samples import add_samples
from stnet.kernels.sampling import LN_2, LOG2_E, any_not_finite, exp2, level_size, matrix_identity, split_pairs


@triton.jit
def _attend_points(
    total,  # float32 [N, C], sum of exp(logit - largest) * sample
    mass,  # float32 [N], sum of exp(logit - largest)
    identity,
    cells,
    right,
    down,
    offsets,  # pointers [N] to the first of POINTS offsets (x, y)
    logits,  # pointers [N] to the first of POINTS logits
    origin_x,  # float32 [N], pixel position minus 0.5 of offset 0
    origin_y,
    scale_x,  # pixels per unit of offset (unused with 2-component references)
    scale_y,
    largest,  # float32 [N], base-2 logarithm
    height,
    width,
    POINTS: tl.constexpr,
    SCALED: tl.constexpr,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    MASKED: tl.constexpr,
    THIN: tl.constexpr,
    PTX: tl.constexpr,
):
    """Add the samples of one level of one frame."""
    # Two samples a step, all steps unrolled; the rare masked repetition stays small.
    K: tl.constexpr = 1 if MASKED else 2 - POINTS % 2
    STEPS: tl.constexpr = 1 if MASKED or POINTS > 4 else POINTS // K
    for point in tl.range(0, POINTS, K, loop_unroll_factor=STEPS):
        pairs = tl.load(offsets[:, None] + 2 * point + tl.arange(0, 2 * K)[None, :]).to(tl.float32)
        logit = tl.load(logits[:, None] + point + tl.arange(0, K)[None, :]).to(tl.float32)
        x, y = split_pairs(pairs)
        if SCALED:
            x *= scale_x[:, None]
            y *= scale_y[:, None]
        x += origin_x[:, None]
        y += origin_y[:, None]
        probability = exp2(logit * LOG2_E - largest[:, None], PTX)
        mass += tl.sum(probability, axis=1)
        total = add_samples(
            total, identity, cells, right, down, x, y, probability, height, width,
            ROW, WIDE, VECTOR, D, ARITHMETIC, MASKED, THIN, PTX,
        )  # fmt: skip
    return total, mass


@triton.jit
def _origin(reference, height, width, COMPONENTS: tl.constexpr, POINTS: tl.constexpr):
    """Where offset 0 lies (pixel position minus 0.5) and how many pixels a unit of offset is, each [N] and x before y.

    reference: pointers [N] to (x, y) or (cx, cy, w, h).
    """
    across, down = width.to(tl.float32), height.to(tl.float32)
    origin_x = tl.load(reference) * across - 1.0
    origin_y = tl.load(reference + 1) * down - 1.0
    if COMPONENTS == 2:
        return origin_x, origin_y, origin_x, origin_y
    scale_x = tl.load(reference + 2) * (across * (0.5 / POINTS))
    scale_y = tl.load(reference + 3) * (down * (0.5 / POINTS))
    return origin_x, origin_y, scale_x, scale_y


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
def _attend(
    value,  # pointer to the clip and head
    frames,  # int64 [1 + W], where the frames begin
    shapes,
    starts,
    reference,  # pointers [N] to level 0
    other_reference,
    offsets,  # pointers [N] to level 0 (and other frame 0)
    logits,
    other_offsets,
    other_logits,
    largest,
    other_frames,
    channel_stride,
    reference_stride,
    other_reference_stride,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    UNROLL: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    MASKED: tl.constexpr,
    THIN: tl.constexpr,
    PTX: tl.constexpr,
):
    """Unnormalized output [N, C] and softmax mass [N] of N queries."""
    total = tl.zeros([largest.shape[0], C], tl.float32)
    mass = tl.zeros_like(largest)
    identity = 0
    if ARITHMETIC == "matrix":
        identity = matrix_identity(value.dtype.element_ty == tl.bfloat16)
    channels = value + tl.arange(0, C)[None, :] * channel_stride
    own_frame = tl.load(frames)
    for level in range(LEVELS):
        height, width, start = level_size(shapes, starts, level)
        right = ROW
        down = width.to(tl.int64) * ROW
        if THIN:
            right = tl.minimum(width - 1, 1) * ROW
            down = tl.where(height > 1, width.to(tl.int64) * ROW, 0)
        first_cell = channels + start.to(tl.int64) * ROW

        x, y, scale_x, scale_y = _origin(reference + level * reference_stride, height, width, COMPONENTS, POINTS)
        cells = first_cell + own_frame
        total, mass = _attend_points(
            total, mass, identity, cells, right, down,
            offsets + level * (POINTS * 2), logits + level * POINTS,
            x, y, scale_x, scale_y, largest, height, width,
            POINTS, COMPONENTS == 4, ROW, WIDE, VECTOR, D, ARITHMETIC, MASKED, THIN, PTX,
        )  # fmt: skip

        x, y, scale_x, scale_y = _origin(
            other_reference + level * other_reference_stride, height, width, COMPONENTS, OTHER_POINTS
        )
        for frame in tl.range(other_frames, loop_unroll_factor=UNROLL):
            cells = first_cell + tl.load(frames + 1 + frame)
            first = (frame * LEVELS + level) * OTHER_POINTS
            total, mass = _attend_points(
                total, mass, identity, cells, right, down,
                other_offsets + first * 2, other_logits + first,
                x, y, scale_x, scale_y, largest, height, width,
                OTHER_POINTS, COMPONENTS == 4, ROW, WIDE, VECTOR, D, ARITHMETIC, MASKED, THIN, PTX,
            )  # fmt: skip
    return total, mass


_STDA_NUMBERS = (
    "queries", "targets", "other_frames", "value_b", "value_h", "value_d",
    "reference_b", "reference_t", "reference_q", "reference_l",
    "other_reference_b", "other_reference_t", "other_reference_q", "other_reference_l",
    "offsets_b", "offsets_t", "offsets_q", "offsets_h", "logits_b", "logits_t", "logits_q", "logits_h",
    "other_offsets_b", "other_offsets_t", "other_offsets_q", "other_offsets_h",
    "other_logits_b", "other_logits_t", "other_logits_q", "other_logits_h",
)  # fmt: skip


@triton.jit(do_not_specialize=_STDA_NUMBERS)
def stda_forward_kernel(
    value,  # [B, F, S, H, D]
    reference,  # float32 [B, T, Q, L, R]
    other_reference,  # float32 [B, T, Q, L, R]
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
    reference_b, reference_t, reference_q, reference_l,
    other_reference_b, other_reference_t, other_reference_q, other_reference_l,
    offsets_b, offsets_t, offsets_q, offsets_h,
    logits_b, logits_t, logits_q, logits_h,
    other_offsets_b, other_offsets_t, other_offsets_q, other_offsets_h,
    other_logits_b, other_logits_t, other_logits_q, other_logits_h,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROW: tl.constexpr,  # elements from cell to cell of value
    WIDE: tl.constexpr,  # a frame of value spans 2^32 bytes or more
    CHANNEL: tl.constexpr,  # elements from channel to channel if that is 1, else 0
    VECTOR: tl.constexpr,  # channels that can be read at once
    ALIGN: tl.constexpr,  # bytes to which every query's offsets and logits are aligned
    STORE: tl.constexpr,  # channels of output that can be written at once
    D: tl.constexpr,
    C: tl.constexpr,  # channels of a program, more than D only if D is below a power of two
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    THIN: tl.constexpr,  # some level is one cell wide or high
    ORDERED: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * targets * clips, heads * channel blocks)."""
    PARTS: tl.constexpr = (D + C - 1) // C
    head = (tl.program_id(1) // PARTS).to(tl.int64)
    # The last block of channels ends with the head and may overlap the one before: both write the same numbers.
    channel = tl.minimum(tl.program_id(1) % PARTS * C, D - C if D > C else 0)
    blocks = tl.cdiv(queries, BLOCK)
    pair = tl.program_id(0) // blocks
    clip = (pair // targets).to(tl.int64)
    target = (pair % targets).to(tl.int64)
    slot = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    query = tl.minimum(slot, queries - 1)
    if ORDERED:
        query = tl.load(order + query)
    query = query.to(tl.int64)

    value += clip * value_b + head * value_h + channel.to(tl.int64) * value_d
    reference += clip * reference_b + target * reference_t + query * reference_q
    other_reference += clip * other_reference_b + target * other_reference_t + query * other_reference_q
    offsets += clip * offsets_b + target * offsets_t + head * offsets_h + query * offsets_q
    logits += clip * logits_b + target * logits_t + head * logits_h + query * logits_q
    other_offsets += clip * other_offsets_b + target * other_offsets_t + head * other_offsets_h
    other_offsets += query * other_offsets_q
    other_logits += clip * other_logits_b + target * other_logits_t + head * other_logits_h
    other_logits += query * other_logits_q
    offsets = tl.multiple_of(offsets, [ALIGN])
    logits = tl.multiple_of(logits, [ALIGN])
    other_offsets = tl.multiple_of(other_offsets, [ALIGN])
    other_logits = tl.multiple_of(other_logits, [ALIGN])
    frames += target * (1 + other_frames)
    channel_stride = value_d
    if CHANNEL == 1:
        channel_stride = 1

    CHUNK: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    largest = _largest(logits, LEVELS * POINTS, largest, CHUNK, LEVELS * POINTS % CHUNK == 0)
    others = other_frames * (LEVELS * OTHER_POINTS)
    largest = _largest(other_logits, others, largest, CHUNK, LEVELS * OTHER_POINTS % CHUNK == 0)
    largest = tl.where(largest == float("-inf"), 0.0, largest * LOG2_E)

    total, mass = _attend(
        value, frames, shapes, starts, reference, other_reference, offsets, logits, other_offsets, other_logits,
        largest, other_frames, channel_stride, reference_l, other_reference_l,
        LEVELS, POINTS, OTHER_POINTS, COMPONENTS, ROW, WIDE, VECTOR, D, C, UNROLL, ARITHMETIC, False, THIN, PTX,
    )  # fmt: skip
    if any_not_finite(total):
        total, mass = _attend(
            value, frames, shapes, starts, reference, other_reference, offsets, logits, other_offsets, other_logits,
            largest, other_frames, channel_stride, reference_l, other_reference_l,
            LEVELS, POINTS, OTHER_POINTS, COMPONENTS, ROW, WIDE, VECTOR, D, C, 1, "float32", True, THIN, PTX,
        )  # fmt: skip
    total *= tl.where(mass == 0.0, 0.0, 1.0 / mass)[:, None]

    heads = tl.num_programs(1) // PARTS
    row = (pair.to(tl.int64) * queries + query) * heads + head
    channels = tl.arange(0, C)[None, :]
    inside = slot < queries
    tl.store(lse + row, largest * LN_2 + tl.log(mass), mask=inside)
    result = (output + row * D + channel)[:, None] + channels
    SIZE: tl.constexpr = output.dtype.element_ty.primitive_bitwidth // 8
    result = tl.multiple_of(tl.max_contiguous(result, [1, STORE]), [1, STORE * SIZE])
    tl.store(result, total.to(output.dtype.element_ty), mask=inside[:, None] & (channels < D))
