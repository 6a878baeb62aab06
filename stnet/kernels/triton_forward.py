"""Forward kernels: spatial-temporal deformable attention and multi-scale deformable attention.

For a query and head, with samples s of logit a_s at pixel position (x_s, y_s) of a level of a frame,

    output = sum_s softmax(a)_s * sample(x_s, y_s),    lse = log sum_s exp(a_s),

where `sample` interpolates four cells and is zero outside the level (see `stnet.kernels.sampling`). The softmax spans
the own frame and all other frames. Nothing but output and lse is written: positions, weights and the other frames'
values exist only in registers.

A program holds `BLOCK` queries of one head, target frame and clip. What is one number per query (positions, weights,
softmax) is computed by one lane per query; only an index and the corner weights travel to the lanes that gather, which
read 16 bytes each. Largest logit first, then one pass over levels and, inside, frames; one division at the end.
Coordinates, weights and sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stnet.kernels.launch import (
    Candidate,
    KernelCall,
    alignment,
    architecture,
    choose,
    frame_offsets,
    is_nvidia,
    level_tables,
    padded_head_dim,
    query_order,
)
from stnet.kernels.problem import StdaProblem
from stnet.kernels.sampling import (
    LN_2,
    LOG2_E,
    add_by_matrix_unit,
    any_not_finite,
    axis_cell,
    column,
    exp2,
    interpolate_packed,
    level_size,
    matrix_identity,
    pack_pair,
    row_pointers,
    split_pairs,
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
def _add_samples(
    total,  # float32 [N, C]
    identity,
    upper,  # pointers [1, C] to cell 0 of the level
    lower,  # and to the cell below it
    step,  # elements from a cell to its right neighbour
    row_bytes,
    x,  # float32 [N, K] pixel positions minus 0.5
    y,
    probability,  # float32 [N, K]
    height,
    width,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    MASKED: tl.constexpr,
    THIN: tl.constexpr,
    PTX: tl.constexpr,
):
    """total + the bilinear samples at K (1 or 2) positions of each of N queries, times their probabilities."""
    K: tl.constexpr = x.shape[1]
    cell_x, left, right = axis_cell(x, width, THIN, PTX)
    cell_y, top, bottom = axis_cell(y, height, THIN, PTX)
    index = cell_y * width + cell_x
    top *= probability
    bottom *= probability
    top_left, top_right = top * left, top * right
    bottom_left, bottom_right = bottom * left, bottom * right
    if ARITHMETIC == "float32":
        for k in tl.static_range(K):
            row = column(index, k)
            above = row_pointers(upper, row, row_bytes, ROW, VECTOR, PTX)
            below = row_pointers(lower, row, row_bytes, ROW, VECTOR, PTX)
            total += _weighted_corner(above, column(top_left, k), D, MASKED)
            total += _weighted_corner(above + step, column(top_right, k), D, MASKED)
            total += _weighted_corner(below, column(bottom_left, k), D, MASKED)
            total += _weighted_corner(below + step, column(bottom_right, k), D, MASKED)
        return total
    BFLOAT: tl.constexpr = upper.dtype.element_ty == tl.bfloat16
    top_pair = pack_pair(top_left, top_right, BFLOAT)
    bottom_pair = pack_pair(bottom_left, bottom_right, BFLOAT)
    first = _packed_sample(
        upper, lower, step, row_bytes, column(index, 0), column(top_pair, 0), column(bottom_pair, 0), ROW, VECTOR, D
    )
    if ARITHMETIC == "packed":
        total += first.to(tl.float32)
    if K == 2:
        second = _packed_sample(
            upper, lower, step, row_bytes, column(index, 1), column(top_pair, 1), column(bottom_pair, 1), ROW, VECTOR, D
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
    upper,
    lower,
    step,
    row_bytes,
    row,
    top,
    bottom,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
):
    """One weighted sample per query, 16-bit [N, C]; top and bottom are `pack_pair` weights [N]."""
    above = row_pointers(upper, row, row_bytes, ROW, VECTOR, True)
    below = row_pointers(lower, row, row_bytes, ROW, VECTOR, True)
    return interpolate_packed(
        _load_corner(above, top, D, False),
        _load_corner(above + step, top, D, False),
        _load_corner(below, bottom, D, False),
        _load_corner(below + step, bottom, D, False),
        top[:, None],
        bottom[:, None],
    )


@triton.jit
def _attend_points(
    total,  # float32 [N, C], sum of exp(logit - largest) * sample
    mass,  # float32 [N], sum of exp(logit - largest)
    identity,
    upper,
    lower,
    step,
    row_bytes,
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
        total = _add_samples(
            total, identity, upper, lower, step, row_bytes, x, y, probability, height, width,
            ROW, VECTOR, D, ARITHMETIC, MASKED, THIN, PTX,
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
    row_bytes,
    reference_stride,
    other_reference_stride,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROW: tl.constexpr,
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
        step = ROW
        down = width * ROW
        if THIN:
            step = tl.minimum(width - 1, 1) * ROW
            down = tl.where(height > 1, down, 0)
        cells = channels + start.to(tl.int64) * ROW

        x, y, scale_x, scale_y = _origin(reference + level * reference_stride, height, width, COMPONENTS, POINTS)
        upper = cells + own_frame
        total, mass = _attend_points(
            total, mass, identity, upper, upper + down, step, row_bytes,
            offsets + level * (POINTS * 2), logits + level * POINTS,
            x, y, scale_x, scale_y, largest, height, width,
            POINTS, COMPONENTS == 4, ROW, VECTOR, D, ARITHMETIC, MASKED, THIN, PTX,
        )  # fmt: skip

        x, y, scale_x, scale_y = _origin(
            other_reference + level * other_reference_stride, height, width, COMPONENTS, OTHER_POINTS
        )
        for frame in tl.range(other_frames, loop_unroll_factor=UNROLL):
            upper = cells + tl.load(frames + 1 + frame)
            first = (frame * LEVELS + level) * OTHER_POINTS
            total, mass = _attend_points(
                total, mass, identity, upper, upper + down, step, row_bytes,
                other_offsets + first * 2, other_logits + first,
                x, y, scale_x, scale_y, largest, height, width,
                OTHER_POINTS, COMPONENTS == 4, ROW, VECTOR, D, ARITHMETIC, MASKED, THIN, PTX,
            )  # fmt: skip
    return total, mass


_STDA_NUMBERS = (
    "queries", "targets", "other_frames", "row_bytes", "value_b", "value_h", "value_d",
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
    row_bytes,
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
    CHANNEL: tl.constexpr,  # elements from channel to channel if that is 1, else 0
    VECTOR: tl.constexpr,  # channels that can be read at once
    ALIGN: tl.constexpr,  # bytes to which every query's offsets and logits are aligned
    D: tl.constexpr,
    C: tl.constexpr,  # D rounded up to a power of two
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    THIN: tl.constexpr,  # some level is one cell wide or high
    ORDERED: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, heads, clips * targets)."""
    head = tl.program_id(1).to(tl.int64)
    clip = (tl.program_id(2) // targets).to(tl.int64)
    target = (tl.program_id(2) % targets).to(tl.int64)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query = tl.minimum(slot, queries - 1)
    if ORDERED:
        query = tl.load(order + query)
    query = query.to(tl.int64)

    value += clip * value_b + head * value_h
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
        largest, other_frames, channel_stride, row_bytes, reference_l, other_reference_l,
        LEVELS, POINTS, OTHER_POINTS, COMPONENTS, ROW, VECTOR, D, C, UNROLL, ARITHMETIC, False, THIN, PTX,
    )  # fmt: skip
    if any_not_finite(total):
        total, mass = _attend(
            value, frames, shapes, starts, reference, other_reference, offsets, logits, other_offsets, other_logits,
            largest, other_frames, channel_stride, row_bytes, reference_l, other_reference_l,
            LEVELS, POINTS, OTHER_POINTS, COMPONENTS, ROW, VECTOR, D, C, 1, "float32", True, THIN, PTX,
        )  # fmt: skip
    total *= tl.where(mass == 0.0, 0.0, 1.0 / mass)[:, None]

    heads = tl.num_programs(1)
    row = (tl.program_id(2).to(tl.int64) * queries + query) * heads + head
    channels = tl.arange(0, C)[None, :]
    inside = slot < queries
    tl.store(lse + row, largest * LN_2 + tl.log(mass), mask=inside)
    tl.store(
        (output + row * D)[:, None] + channels, total.to(output.dtype.element_ty), mask=inside[:, None] & (channels < D)
    )


@triton.jit
def _sum_weighted(
    value,  # pointer to the batch item and head
    shapes,
    starts,
    locations,  # pointers [N] to level 0
    weights,
    levels,
    channel_stride,
    row_bytes,
    POINTS: tl.constexpr,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    MASKED: tl.constexpr,
    PTX: tl.constexpr,
):
    """Sum [N, C] of the weighted samples of N queries."""
    K: tl.constexpr = 1 if MASKED else 2 - POINTS % 2
    total = tl.zeros([locations.shape[0], C], tl.float32)
    identity = 0
    if ARITHMETIC == "matrix":
        identity = matrix_identity(value.dtype.element_ty == tl.bfloat16)
    channels = value + tl.arange(0, C)[None, :] * channel_stride
    for level in range(levels):
        height, width, start = level_size(shapes, starts, level)
        upper = channels + start.to(tl.int64) * ROW
        lower = upper + tl.where(height > 1, width * ROW, 0)
        step = tl.minimum(width - 1, 1) * ROW
        for point in range(0, POINTS, K):
            first = level * POINTS + point
            pairs = tl.load(locations[:, None] + 2 * first + tl.arange(0, 2 * K)[None, :]).to(tl.float32)
            weight = tl.load(weights[:, None] + first + tl.arange(0, K)[None, :]).to(tl.float32)
            x, y = split_pairs(pairs)
            x = x * width.to(tl.float32) - 1.0
            y = y * height.to(tl.float32) - 1.0
            total = _add_samples(
                total, identity, upper, lower, step, row_bytes, x, y, weight, height, width,
                ROW, VECTOR, D, ARITHMETIC, MASKED, True, PTX,
            )  # fmt: skip
    return total


_MSDA_NUMBERS = (
    "queries", "levels", "row_bytes", "value_b", "value_h", "value_d",
    "locations_b", "locations_q", "locations_h", "weights_b", "weights_q", "weights_h",
)  # fmt: skip


@triton.jit(do_not_specialize=_MSDA_NUMBERS)
def msda_forward_kernel(
    value,  # [N, S, H, D]
    shapes,  # int32 or int64 [L, 2]
    starts,  # int32 or int64 [L]
    locations,  # [N, Q, H, L, P, 2] in [0, 1]
    weights,  # [N, Q, H, L, P]
    output,  # [N, Q, H, D]
    queries,
    levels,
    row_bytes,
    value_b, value_h, value_d,
    locations_b, locations_q, locations_h,
    weights_b, weights_q, weights_h,
    POINTS: tl.constexpr,
    ROW: tl.constexpr,
    CHANNEL: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * batch, heads). The constants are those of `stda_forward_kernel`."""
    head = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(queries, BLOCK)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    slot = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    query = tl.minimum(slot, queries - 1).to(tl.int64)

    value += item * value_b + head * value_h
    locations = tl.multiple_of(locations + item * locations_b + head * locations_h + query * locations_q, [ALIGN])
    weights = tl.multiple_of(weights + item * weights_b + head * weights_h + query * weights_q, [ALIGN])
    channel_stride = value_d
    if CHANNEL == 1:
        channel_stride = 1

    total = _sum_weighted(
        value, shapes, starts, locations, weights, levels, channel_stride, row_bytes,
        POINTS, ROW, VECTOR, D, C, ARITHMETIC, False, PTX,
    )  # fmt: skip
    if any_not_finite(total):
        total = _sum_weighted(
            value, shapes, starts, locations, weights, levels, channel_stride, row_bytes,
            POINTS, ROW, VECTOR, D, C, "float32", True, PTX,
        )  # fmt: skip

    row = (item * queries + query) * tl.num_programs(1) + head
    channels = tl.arange(0, C)[None, :]
    inside = (slot < queries)[:, None] & (channels < D)
    tl.store((output + row * D)[:, None] + channels, total.to(output.dtype.element_ty), mask=inside)


def stda_forward(
    value: Tensor,  # [B, F, S, H, D], any strides
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,  # [B, T, Q, L, R]
    offsets: Tensor,  # [B, T, Q, H, L, P, 2]
    logits: Tensor,  # [B, T, Q, H, L, P]
    other_offsets: Tensor,  # [B, T, Q, H, W, L, Pt, 2]
    other_logits: Tensor,  # [B, T, Q, H, W, L, Pt]
    frame_table: tuple[tuple[int, ...], ...],
    other_reference_points: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Spatial-temporal deformable attention for arguments that `check_stda` accepted.

    Offsets and logits may be strided over clips, targets, queries and heads; a tensor whose points are not contiguous
    is copied. Where the queries are the positions of a frame (the encoder), they are taken in 2-D tiles.

    Returns:
        output [B, T, Q, H * D] in the dtype of value, and lse float32 [B, T, Q, H]: the natural logarithm of the sum of
        the exponentials of all logits of a query and head, -inf where all are -inf.
    """
    clips, targets, queries, heads = logits.shape[:4]
    head_dim = value.shape[4]
    output = torch.empty((clips, targets, queries, heads * head_dim), dtype=value.dtype, device=value.device)
    lse = torch.empty((clips, targets, queries, heads), dtype=torch.float32, device=value.device)
    if lse.numel() == 0:
        return output, lse
    arch = architecture(value.device)
    candidate = choose("stda_forward", arch, value.dtype, head_dim, queries)
    stda_forward_call(
        value, spatial_shapes, reference_points, offsets, logits, other_offsets, other_logits, frame_table,
        reference_points if other_reference_points is None else other_reference_points,
        output, lse, candidate, arch,
    ).launch()  # fmt: skip
    return output, lse


def msda_forward(
    value: Tensor,  # [N, S, H, D], any strides
    spatial_shapes: Tensor,  # int32 or int64 [L, 2] on the device of value
    level_start_index: Tensor,  # int32 or int64 [L]
    sampling_locations: Tensor,  # [N, Q, H, L, P, 2] in [0, 1]
    attention_weights: Tensor,  # [N, Q, H, L, P]
) -> Tensor:
    """Multi-scale deformable attention for arguments that `check_msda` accepted: [N, Q, H * D] in the dtype of value."""
    batch, queries, heads = attention_weights.shape[:3]
    output = torch.empty((batch, queries, heads * value.shape[3]), dtype=value.dtype, device=value.device)
    if output.numel() == 0:
        return output
    arch = architecture(value.device)
    candidate = choose("msda_forward", arch, value.dtype, value.shape[3], queries)
    msda_forward_call(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, output, candidate, arch
    ).launch()
    return output


def stda_forward_call(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: tuple[tuple[int, ...], ...],
    other_reference_points: Tensor,
    output: Tensor,
    lse: Tensor,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """The launch behind `stda_forward`, writing to `output` and `lse` with a given candidate."""
    device = value.device
    offsets, other_offsets = _packed(offsets, 3), _packed(other_offsets, 4)
    logits, other_logits = _packed(logits, 2), _packed(other_logits, 3)
    reference_points, other_reference_points = _packed(reference_points, 1), _packed(other_reference_points, 1)
    clips, targets, queries, heads, levels, points = logits.shape
    other_frames, other_points = other_logits.shape[4], other_logits.shape[6]
    shapes, starts = level_tables(spatial_shapes, device)
    ordered = queries == value.shape[2] and queries > candidate.block_queries
    arguments = {
        "value": value,
        "reference": reference_points,
        "other_reference": other_reference_points,
        "offsets": offsets,
        "logits": logits,
        "other_offsets": other_offsets,
        "other_logits": other_logits,
        "shapes": shapes,
        "starts": starts,
        "frames": frame_offsets(frame_table, value.stride(1), device),
        "order": query_order(spatial_shapes, candidate.block_queries, device) if ordered else starts,
        "output": output,
        "lse": lse,
        "queries": queries,
        "targets": targets,
        "other_frames": other_frames if other_points else 0,
        "row_bytes": value.stride(2) * value.element_size(),
        **_strides("value", value, (0, 3, 4), "bhd"),
        **_strides("reference", reference_points, (0, 1, 2, 3), "btql"),
        **_strides("other_reference", other_reference_points, (0, 1, 2, 3), "btql"),
        **_strides("offsets", offsets, (0, 1, 2, 3), "btqh"),
        **_strides("logits", logits, (0, 1, 2, 3), "btqh"),
        **_strides("other_offsets", other_offsets, (0, 1, 2, 3), "btqh"),
        **_strides("other_logits", other_logits, (0, 1, 2, 3), "btqh"),
    }
    query_tensors = (offsets, logits, other_offsets, other_logits)
    constants = {
        "LEVELS": levels,
        "POINTS": points,
        "OTHER_POINTS": max(1, other_points),
        "COMPONENTS": reference_points.shape[4],
        **_value_constants(value, (0, 1, 2, 3), 2, candidate, arch),
        "ALIGN": min(alignment(tensor, (0, 1, 2, 3)) for tensor in query_tensors),
        "UNROLL": candidate.unroll,
        "THIN": min(map(min, spatial_shapes)) == 1,
        "ORDERED": ordered,
    }
    grid = (-(-queries // candidate.block_queries), heads, clips * targets)
    return KernelCall(
        kernel=stda_forward_kernel, grid=grid, arguments=arguments, constants=constants, options=candidate.options(arch)
    )


def msda_forward_call(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    output: Tensor,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """The launch behind `msda_forward`, writing to `output` with a given candidate."""
    locations, weights = _packed(sampling_locations, 3), _packed(attention_weights, 2)
    batch, queries, heads, levels, points = weights.shape
    arguments = {
        "value": value,
        "shapes": spatial_shapes.contiguous(),
        "starts": level_start_index.contiguous(),
        "locations": locations,
        "weights": weights,
        "output": output,
        "queries": queries,
        "levels": levels,
        "row_bytes": value.stride(1) * value.element_size(),
        **_strides("value", value, (0, 2, 3), "bhd"),
        **_strides("locations", locations, (0, 1, 2), "bqh"),
        **_strides("weights", weights, (0, 1, 2), "bqh"),
    }
    constants = {
        "POINTS": points,
        **_value_constants(value, (0, 1, 2), 1, candidate, arch),
        "ALIGN": min(alignment(tensor, (0, 1, 2)) for tensor in (locations, weights)),
    }
    grid = (-(-queries // candidate.block_queries) * batch, heads, 1)
    return KernelCall(
        kernel=msda_forward_kernel, grid=grid, arguments=arguments, constants=constants, options=candidate.options(arch)
    )


def _packed(tensor: Tensor, dims: int) -> Tensor:
    """The tensor, copied if its last `dims` dimensions are not contiguous among themselves."""
    expected = 1
    for dim in range(tensor.dim() - 1, tensor.dim() - 1 - dims, -1):
        if tensor.shape[dim] > 1 and tensor.stride(dim) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[dim]
    return tensor


def _strides(name: str, tensor: Tensor, dims: tuple[int, ...], letters: str) -> dict[str, int]:
    return {f"{name}_{letter}": tensor.stride(dim) for letter, dim in zip(letters, dims, strict=True)}


def _value_constants(
    value: Tensor, dims: tuple[int, ...], cell_dim: int, candidate: Candidate, arch: str
) -> dict[str, object]:
    """Constants that say how values are stored and read; `dims` are all dimensions but the channels."""
    head_dim, element = value.shape[-1], value.element_size()
    contiguous = value.stride(-1) == 1
    packs = is_nvidia(arch) and element == 2
    return {
        "ROW": value.stride(cell_dim),
        "CHANNEL": int(contiguous),
        "VECTOR": alignment(value, dims) // element if contiguous else 1,
        "D": head_dim,
        "C": padded_head_dim(head_dim),
        "BLOCK": candidate.block_queries,
        "ARITHMETIC": candidate.arithmetic if packs else "float32",
        "PTX": is_nvidia(arch),
    }


def example_calls(
    kernel: str, candidate: Candidate, dtype: torch.dtype, head_dim: int, problem: StdaProblem, arch: str
) -> list[KernelCall]:
    """Launches for contiguous `meta` tensors of a problem's sizes; see `stnet.kernels.launch.ast_sources`."""
    p = problem
    device = torch.device("meta")

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    query = (p.clips, p.targets, p.queries)
    if kernel == "msda_forward":
        rows = (p.clips, p.queries, p.heads)
        shapes, starts = level_tables(p.spatial_shapes, device)
        call = msda_forward_call(
            empty(p.clips, p.heads, p.positions, head_dim).transpose(1, 2),
            shapes,
            starts,
            empty(*rows, p.levels, p.points, 2, dtype=torch.float32),
            empty(*rows, p.levels, p.points),
            empty(p.clips, p.queries, p.heads * head_dim),
            candidate,
            arch,
        )
        return [call]
    reference = empty(*query, p.levels, p.components, dtype=torch.float32)
    call = stda_forward_call(
        empty(p.clips, p.source_frames, p.heads, p.positions, head_dim).transpose(2, 3),
        p.spatial_shapes,
        reference,
        empty(*query, p.heads, p.levels, p.points, 2),
        empty(*query, p.heads, p.levels, p.points),
        empty(*query, p.heads, p.other_frames, p.levels, p.other_points, 2),
        empty(*query, p.heads, p.other_frames, p.levels, p.other_points),
        p.frame_table,
        reference,
        empty(*query, p.heads * head_dim),
        empty(*query, p.heads, dtype=torch.float32),
        candidate,
        arch,
    )
    return [call]
