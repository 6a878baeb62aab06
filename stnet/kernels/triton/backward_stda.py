"""The gradient kernel of spatial-temporal deformable attention.

With attention weights a = softmax(logits), samples s_i and the output o = sum a_i s_i, an output gradient g gives

    d logit_i = a_i (<s_i, g> - <o, g>)            d value[corner] += a_i c g       for the four corners of s_i,
    d x_i     = a_i sum over corners (dc/dx) <value[corner], g>                     and d y_i alike,

where c are the tent weights of `reference.py`. Saved from the forward pass are only the inputs, the output and the
log-sum-exp of the logits, so that a_i = exp(logit_i - lse). Arithmetic is float32 throughout. At integer positions,
where d x jumps, it belongs to the cell that begins there, as in the reference and in `grid_sample`.

One program owns BLOCK_QUERIES queries of one head. It walks over the levels, and on each over chunks of STEP samples a
query, that is ROWS = BLOCK_QUERIES * STEP samples, which `backward_samples.py` differentiates. The value gradient
collects in float32 by relaxed (from sm_90 on vectorized) reductions or, deterministic, in fixed point
(`fixed_point.py`).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from stnet.kernels.triton.backward_samples import (
    Level,
    corner_dots,
    dot_with_gradient,
    gather_channels,
    interpolate,
    locate,
    output_gradient,
    pin,
    scatter,
)
from stnet.kernels.triton.sampling import LOG2_E, exp2, level_size


class Anchor(NamedTuple):
    """Where offset zero lies on a level and how far one unit of offset reaches, in pixels, [ROWS]."""

    x: tl.tensor
    y: tl.tensor
    unit_x: tl.tensor
    unit_y: tl.tensor


class Group(NamedTuple):
    """Offsets and logits of the own or the other frames and their gradients: pointers [ROWS] to the first sample."""

    offsets: tl.tensor
    logits: tl.tensor
    grad_offsets: tl.tensor
    grad_logits: tl.tensor


class Rows(NamedTuple):
    """Of each row's query: whether it counts, its log-sum-exp (base 2, infinite where it does not) and <o, g>."""

    mask: tl.tensor
    lse: tl.tensor
    delta: tl.tensor


class ReferenceSums(NamedTuple):
    """Sums over the samples of a level, [ROWS]: d x, d y, and both times offset / (2 points)."""

    x: tl.tensor
    y: tl.tensor
    stretch_x: tl.tensor
    stretch_y: tl.tensor


@triton.jit
def _group(
    offsets,  # pointers to query 0 of the clip, target and head; the next alike
    logits,
    grad_offsets,  # pointers to the first sample of all; the next alike
    grad_logits,
    offsets_q,
    logits_q,
    samples,  # of a query
    query,  # [ROWS]
    item,  # [ROWS], of a contiguous [B, T, Q, H]
    point,  # [ROWS], the sample that is a row's first
):
    """The `Group` of the queries."""
    first = item * samples + point
    return Group(
        offsets + query * offsets_q + 2 * point, logits + query * logits_q + point,
        grad_offsets + 2 * first, grad_logits + first,
    )  # fmt: skip


@triton.jit
def load_anchor(reference, height, width, COMPONENTS: tl.constexpr, POINTS: tl.constexpr):
    """reference: pointers [ROWS] to component 0 of the level's reference points."""
    x = tl.load(reference).to(tl.float32) * width - 0.5
    y = tl.load(reference + 1).to(tl.float32) * height - 0.5
    unit_x = tl.full(x.shape, 1.0, tl.float32)
    unit_y = unit_x
    if COMPONENTS == 4:
        unit_x = tl.load(reference + 2).to(tl.float32) * (0.5 / POINTS) * width
        unit_y = tl.load(reference + 3).to(tl.float32) * (0.5 / POINTS) * height
    return Anchor(x, y, unit_x, unit_y)


@triton.jit
def _zero_sums(ROWS: tl.constexpr):
    zero = tl.zeros([ROWS], tl.float32)
    return ReferenceSums(zero, zero, zero, zero)


@triton.jit
def _frame_gradients(
    group,
    sample,  # samples of a row before this level of this frame
    anchor,
    sums,
    rows,
    level,
    adds_value,  # whether the value gradient of the level is added to here
    gradient,
    config: tl.constexpr,
    COMPONENTS: tl.constexpr,
    POINTS: tl.constexpr,
    STEP: tl.constexpr,
    NEED_OFFSETS: tl.constexpr,
    NEED_LOGITS: tl.constexpr,
    NEED_REFERENCE: tl.constexpr,
):
    """Gradients of all points on one level of one frame; returns `sums` with their share added."""
    NEED_SAMPLE: tl.constexpr = NEED_OFFSETS or NEED_LOGITS or NEED_REFERENCE
    for _ in range(POINTS // STEP):
        pair = tl.arange(0, 2)[None, :]
        offset_x, offset_y = tl.split(tl.load((group.offsets + 2 * sample)[:, None] + pair).to(tl.float32))
        x = anchor.x + offset_x * anchor.unit_x
        y = anchor.y + offset_y * anchor.unit_y
        samples = locate(x, y, level.height, level.width, config)
        if NEED_SAMPLE:
            dots = corner_dots(samples, level, gradient, config)
        # Loaded this late, attention makes the compiler compute all that follows by one lane a row.
        logit = tl.load(group.logits + sample).to(tl.float32)
        attention = exp2(logit * LOG2_E - rows.lse, config.PTX)
        visible = tl.where(samples.inside, attention, 0.0)
        if adds_value:
            scatter(samples, visible, level, gradient, config)
        if NEED_SAMPLE:
            dot, slope_x, slope_y = interpolate(samples, dots, visible)
            unit_x, unit_y = anchor.unit_x, anchor.unit_y
            if COMPONENTS == 4:  # the slopes of a position that is not finite are 0, but these may be infinite
                unit_x = tl.where(samples.inside, unit_x, 0.0)
                unit_y = tl.where(samples.inside, unit_y, 0.0)
                offset_x = tl.where(samples.inside, offset_x, 0.0)
                offset_y = tl.where(samples.inside, offset_y, 0.0)
            if NEED_LOGITS:
                tl.store(group.grad_logits + sample, dot - attention * rows.delta, mask=rows.mask)
            if NEED_OFFSETS:
                grad_offset = tl.join(slope_x * unit_x, slope_y * unit_y)
                tl.store((group.grad_offsets + 2 * sample)[:, None] + pair, grad_offset, mask=rows.mask[:, None])
            if NEED_REFERENCE:
                sums = ReferenceSums(
                    sums.x + slope_x,
                    sums.y + slope_y,
                    sums.stretch_x + slope_x * offset_x * (0.5 / POINTS),
                    sums.stretch_y + slope_y * offset_y * (0.5 / POINTS),
                )
        sample += STEP
    return sums


@triton.jit
def _write_reference_gradient(
    gradient,  # float32 [B, T, Q, L, R] if ATOMIC, else [B, T, Q, H, L, R]
    sums,
    pair,  # clip * targets + target
    first_query,
    queries,
    head,
    heads,
    level,
    height,
    width,
    config: tl.constexpr,
    LEVELS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    STEP: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    query = pin(first_query + tl.arange(0, BLOCK_QUERIES), config)
    mask = query < queries
    item = pair.to(tl.int64) * queries + query
    if not ATOMIC:
        item = item * heads + head
    pointers = gradient + (item * LEVELS + level) * COMPONENTS
    _write_component(pointers, sums.x * width, mask, STEP, ATOMIC)
    _write_component(pointers + 1, sums.y * height, mask, STEP, ATOMIC)
    if COMPONENTS == 4:
        _write_component(pointers + 2, sums.stretch_x * width, mask, STEP, ATOMIC)
        _write_component(pointers + 3, sums.stretch_y * height, mask, STEP, ATOMIC)


@triton.jit
def _write_component(pointers, gradient, mask, STEP: tl.constexpr, ATOMIC: tl.constexpr):
    """Sum gradient [ROWS] over the STEP rows of a query and add it, or as the only writer store it, to pointers [Q]."""
    gradient = tl.sum(tl.reshape(gradient, [pointers.shape[0], STEP]), axis=1)
    if ATOMIC:
        tl.atomic_add(pointers, gradient, mask=mask, sem="relaxed")
    else:
        tl.store(pointers, gradient, mask=mask)


_STDA_NUMBERS = (
    "queries", "targets", "heads", "other_frames",
    "grad_output_b", "grad_output_t", "grad_output_q", "value_b", "value_h",
    "reference_points_b", "reference_points_t", "reference_points_q", "reference_points_l",
    "other_reference_points_b", "other_reference_points_t", "other_reference_points_q", "other_reference_points_l",
    "offsets_b", "offsets_t", "offsets_q", "offsets_h", "logits_b", "logits_t", "logits_q", "logits_h",
    "other_offsets_b", "other_offsets_t", "other_offsets_q", "other_offsets_h",
    "other_logits_b", "other_logits_t", "other_logits_q", "other_logits_h", "grad_value_b",
)  # fmt: skip


@triton.jit(do_not_specialize=_STDA_NUMBERS)
def stda_backward_kernel(
    grad_output,  # [B, T, Q, H * D]
    value,  # [B, F, S, H, D]
    reference_points,  # [B, T, Q, L, R]
    other_reference_points,  # [B, T, Q, L, R]
    offsets,  # [B, T, Q, H, L, P, 2]
    logits,  # [B, T, Q, H, L, P]
    other_offsets,  # [B, T, Q, H, W, L, Pt, 2]
    other_logits,  # [B, T, Q, H, W, L, Pt]
    output,  # [B, T, Q, H * D], contiguous
    lse,  # float32 [B, T, Q, H], contiguous
    shapes,  # int32 [L, 2]
    starts,  # int32 [L]
    frames,  # int64 [T, 1 + W], where the frames begin in a clip of value
    grad_frames,  # int64 [T, 1 + W], and in a clip of its gradient
    scale,  # float32 [1] of the fixed-point value gradient
    grad_value,  # float32 or int64 [B, F, S, H, D] of zeros, contiguous
    grad_reference_points,  # float32 [B, T, Q, L, R] of zeros if ATOMIC_REFERENCE, else [B, T, Q, H, L, R]; contiguous
    grad_other_reference_points,
    grad_offsets,  # like offsets, contiguous; the next three alike
    grad_logits,
    grad_other_offsets,
    grad_other_logits,
    queries,
    targets,
    heads,
    other_frames,
    grad_output_b, grad_output_t, grad_output_q,
    value_b, value_h,
    reference_points_b, reference_points_t, reference_points_q, reference_points_l,
    other_reference_points_b, other_reference_points_t, other_reference_points_q, other_reference_points_l,
    offsets_b, offsets_t, offsets_q, offsets_h,
    logits_b, logits_t, logits_q, logits_h,
    other_offsets_b, other_offsets_t, other_offsets_q, other_offsets_h,
    other_logits_b, other_logits_t, other_logits_q, other_logits_h,
    grad_value_b,
    config: tl.constexpr,  # Config
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    OTHER_POINTS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    STEP: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    SUMMED: tl.constexpr,  # a bit for each level whose value gradient `backward_coarse.py` sums
    ATOMIC_REFERENCE: tl.constexpr,
    NEEDS: tl.constexpr,  # StdaTensors of bools: which gradients are asked for
):  # fmt: skip
    """Grid (query blocks * targets * clips, heads), or the other way round."""
    ROWS: tl.constexpr = BLOCK_QUERIES * STEP
    head = tl.program_id(config.HEAD_AXIS).to(tl.int64)
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    pair = tl.program_id(1 - config.HEAD_AXIS) // blocks
    first_query = tl.program_id(1 - config.HEAD_AXIS) % blocks * BLOCK_QUERIES
    clip = (pair // targets).to(tl.int64)
    target = (pair % targets).to(tl.int64)
    row = tl.arange(0, ROWS)
    point = row % STEP
    query = first_query + row // STEP
    mask = query < queries
    near_query = tl.minimum(query, queries - 1)
    query = near_query.to(tl.int64)
    item = ((clip * targets + target) * queries + query) * heads + head  # of a contiguous [B, T, Q, H]

    fixed_scale = 1.0
    if FIXED_POINT:
        fixed_scale = tl.load(scale)
    grad_output += clip * grad_output_b + target * grad_output_t + head * config.D + query * grad_output_q
    gradient = output_gradient(grad_output, fixed_scale, queries, config)
    delta = dot_with_gradient(output + item * config.D, gradient, config)
    log_sum = tl.load(lse + item, mask=mask, other=float("inf")) * LOG2_E
    rows = Rows(mask, tl.where(log_sum == -float("inf"), 0.0, log_sum), delta)

    reference_points += clip * reference_points_b + target * reference_points_t
    other_reference_points += clip * other_reference_points_b + target * other_reference_points_t
    own_samples: tl.constexpr = LEVELS * POINTS
    other_samples = other_frames * (LEVELS * OTHER_POINTS)
    offsets += clip * offsets_b + target * offsets_t + head * offsets_h
    logits += clip * logits_b + target * logits_t + head * logits_h
    own = _group(
        offsets, logits, grad_offsets, grad_logits, offsets_q, logits_q, own_samples, query, item, point
    )  # fmt: skip
    other_offsets += clip * other_offsets_b + target * other_offsets_t + head * other_offsets_h
    other_logits += clip * other_logits_b + target * other_logits_t + head * other_logits_h
    others = _group(
        other_offsets, other_logits, grad_other_offsets, grad_other_logits, other_offsets_q, other_logits_q,
        other_samples, query, item, point,
    )  # fmt: skip
    value += clip * value_b + head * value_h + gather_channels(config)
    grad_value += clip * grad_value_b + head * config.D
    frames += target * (1 + other_frames)
    grad_frames += target * (1 + other_frames)

    for level in range(LEVELS):
        height, width, start = level_size(shapes, starts, level)
        first = value + start.to(tl.int64) * config.CELL_STRIDE
        grad_first = grad_value + start.to(tl.int64) * config.GRAD_CELL_STRIDE
        adds_value = config.NEED_VALUE
        if SUMMED != 0:
            adds_value = (SUMMED >> level) & 1 == 0

        # Computed anew for every level, what is rarely needed takes no registers meanwhile.
        row_query = pin(near_query, config).to(tl.int64)
        anchor = load_anchor(
            reference_points + row_query * reference_points_q + level * reference_points_l,
            height,
            width,
            COMPONENTS,
            POINTS,
        )
        level_own = own
        if not config.HELD:  # likewise; where the gradient is held, the few instructions count for more
            row_item = ((clip * targets + target) * queries + row_query) * heads + head
            level_own = _group(
                offsets, logits, grad_offsets, grad_logits, offsets_q, logits_q, own_samples, row_query, row_item, point
            )
        place = Level(height, width, first + tl.load(frames), grad_first + tl.load(grad_frames))
        sums = _frame_gradients(
            level_own, level * POINTS, anchor, _zero_sums(ROWS), rows, place, adds_value, gradient, config,
            COMPONENTS, POINTS, STEP, NEEDS.offsets, NEEDS.logits, NEEDS.reference_points,
        )  # fmt: skip
        if NEEDS.reference_points:
            _write_reference_gradient(
                grad_reference_points, sums, pair, first_query, queries, head, heads, level, height, width,
                config, LEVELS, COMPONENTS, BLOCK_QUERIES, STEP, ATOMIC_REFERENCE,
            )  # fmt: skip

        row_query = pin(near_query, config).to(tl.int64)
        anchor = load_anchor(
            other_reference_points + row_query * other_reference_points_q + level * other_reference_points_l,
            height, width, COMPONENTS, OTHER_POINTS,
        )  # fmt: skip
        level_others = others
        if not config.HELD:
            row_item = ((clip * targets + target) * queries + row_query) * heads + head
            level_others = _group(
                other_offsets, other_logits, grad_other_offsets, grad_other_logits, other_offsets_q, other_logits_q,
                other_samples, row_query, row_item, point,
            )  # fmt: skip
        sums = _zero_sums(ROWS)
        for frame in range(other_frames):
            place = Level(
                height, width, first + tl.load(frames + 1 + frame), grad_first + tl.load(grad_frames + 1 + frame)
            )
            sums = _frame_gradients(
                level_others, (frame * LEVELS + level) * OTHER_POINTS, anchor, sums, rows, place, adds_value, gradient,
                config, COMPONENTS, OTHER_POINTS, STEP, NEEDS.other_offsets, NEEDS.other_logits,
                NEEDS.other_reference_points,
            )  # fmt: skip
        if NEEDS.other_reference_points:
            _write_reference_gradient(
                grad_other_reference_points, sums, pair, first_query, queries, head, heads, level, height, width,
                config, LEVELS, COMPONENTS, BLOCK_QUERIES, STEP, ATOMIC_REFERENCE,
            )  # fmt: skip
