"""Backward pass of both operators on the CPU.

A job owns one source frame of one clip and head: it alone adds to that slab of the value gradient, target after
target, query after query. No atomics are needed, and the result has the same bits whatever the number of threads. A
sample belongs to one source frame, so its offset and logit gradients have one owner too. Those of reference points, to
which all heads and frames add, follow from the offset gradients in a second pass (`cpu_positions`).
"""

import numpy as np
from torch import Tensor

from stnet.kernels.cpu_forward import copy_floats, exponentials, msda_as_attention
from stnet.kernels.cpu_jobs import run_jobs
from stnet.kernels.cpu_layout import (
    as_rows,
    at,
    float_buffer,
    level_table,
    pack_slab,
    place,
    row_width,
    view,
    with_dense_tail,
)
from stnet.kernels.cpu_positions import convert_position_gradients
from stnet.kernels.cpu_simd import (
    dot,
    dot4,
    finite,
    floor,
    helper,
    kernel,
    load,
    multiply_add,
    read,
    store,
    to_int,
    width_lanes,
    write,
)
from stnet.kernels.problem import level_starts


@helper
def load_corner(width, address, weight, all_finite):
    """A row of values; one of bilinear weight zero counts as zero where it is not finite."""
    row = load(width, address)
    if all_finite or weight != np.float32(0.0):
        return row
    return finite(row)


@helper
def corner_products(width, slab, first, line, dim, gradient, weights, all_finite):
    """The products of the four corner rows of a sample with the output's gradient."""
    s00 = s01 = s10 = s11 = np.float32(0.0)
    row_bytes = dim * 4
    w00, w01, w10, w11 = weights
    for lane in range(0, dim, width_lanes(width)):
        corner = slab + first + lane * 4
        part = dot4(
            load_corner(width, corner, w00, all_finite),
            load_corner(width, corner + row_bytes, w01, all_finite),
            load_corner(width, corner + line, w10, all_finite),
            load_corner(width, corner + line + row_bytes, w11, all_finite),
            load(width, gradient + lane * 4),
        )
        s00 += part[0]
        s01 += part[1]
        s10 += part[2]
        s11 += part[3]
    return s00, s01, s10, s11


@helper
def add_row(width, address, weight, row):
    store(address, multiply_add(load(width, address), weight, row))


@helper
def add_corners(width, slab, first, line, dim, gradient, weights):
    """Add the output's gradient to the four corner rows of a sample."""
    row_bytes = dim * 4
    w00, w01, w10, w11 = weights
    for lane in range(0, dim, width_lanes(width)):
        corner = slab + first + lane * 4
        row = load(width, gradient + lane * 4)
        add_row(width, corner, w00, row)
        add_row(width, corner + row_bytes, w01, row)
        add_row(width, corner + line, w10, row)
        add_row(width, corner + line + row_bytes, w11, row)


@helper
def unpack_slab(width, slab, levels, dim, target, step):
    """Add the cells of a slab, borders left out, to rows `step` bytes apart: levels may overlap there."""
    one = np.float32(1.0)
    row_bytes = dim * 4
    for lane in range(0, dim, width_lanes(width)):
        for level in range(levels.shape[0]):
            height, columns = levels[level, 0], levels[level, 1]
            source = slab + (levels[level, 2] + columns + 1) * row_bytes + lane * 4
            cell = target + levels[level, 3] * step + lane * 4
            for _ in range(height):
                for _ in range(columns):
                    source += row_bytes
                    add_row(width, cell, one, load(width, source))
                    cell += step
                source += row_bytes


@kernel
def output_products(width, job, targets, queries, heads, dim, gradient, output, deltas):
    """Job (b, t): for every query and head the product of output and its gradient, which the softmax gradient needs."""
    t = job % targets
    b = job // targets
    for q in range(queries):
        for h in range(heads):
            left = at(gradient, b, t, q, h)
            right = at(output, b, t, q, h)
            total = np.float32(0.0)
            for lane in range(0, dim, width_lanes(width)):
                total += dot(load(width, left + lane * 4), load(width, right + lane * 4))
            write(at(deltas, b, t, q, h), 0, total)


@helper
def query_backward(
    width,
    slab,
    slab_gradient,
    levels,
    dim,
    components,
    softmax,
    all_finite,
    wants,
    reference,
    step,
    offset,
    points,
    weights,
    gradient,
    delta,
    offset_gradient,
    logit_gradient,
):
    """One query in one frame: add to the slab's gradient, write the gradients of positions (by pixels) and logits."""
    want_value, want_position, want_logit = wants
    one, nothing = np.float32(1.0), np.float32(0.0)
    row_bytes = dim * 4
    k = 0
    for level in range(levels.shape[0]):
        height, columns = np.float32(levels[level, 0]), np.float32(levels[level, 1])
        start = levels[level, 2] * row_bytes
        line = (levels[level, 1] + 1) * row_bytes
        base_x, base_y, scale_x, scale_y = place(reference + level * step, components, columns, height, points)
        for _ in range(points):
            x = base_x + scale_x * read(offset, 2 * k)
            y = base_y + scale_y * read(offset, 2 * k + 1)
            weight = weights[k]
            included = (weight != nothing) | (not softmax)
            inside = (x > -one) & (x < columns) & (y > -one) & (y < height)
            sample = gradient_x = gradient_y = nothing
            if included & inside:
                left, top = floor(x), floor(y)
                fx, fy = x - left, y - top
                gx, gy = one - fx, one - fy
                first = start + (np.int64(to_int(top)) + 1) * line + (np.int64(to_int(left)) + 1) * row_bytes
                corners = (gy * gx, gy * fx, fy * gx, fy * fx)
                if want_position | want_logit:
                    s00, s01, s10, s11 = corner_products(width, slab, first, line, dim, gradient, corners, all_finite)
                    sample = gy * (gx * s00 + fx * s01) + fy * (gx * s10 + fx * s11)
                    gradient_x = weight * (gy * (s01 - s00) + fy * (s11 - s10))
                    gradient_y = weight * (gx * (s10 - s00) + fx * (s11 - s01))
                if want_value:
                    above, below = weight * gy, weight * fy
                    scaled = (above * gx, above * fx, below * gx, below * fx)
                    add_corners(width, slab_gradient, first, line, dim, gradient, scaled)
            if want_position:
                write(offset_gradient, 2 * k, gradient_x)
                write(offset_gradient, 2 * k + 1, gradient_y)
            if want_logit:
                if softmax:
                    sample = weight * (sample - delta) if included else nothing
                write(logit_gradient, k, sample)
            k += 1


@kernel
def slab_backward(
    width,
    job,
    sizes,
    softmax,
    wants,
    levels,
    table,
    value,
    gradient,
    deltas,
    lse,
    references,
    offsets,
    logits,
    other_references,
    other_offsets,
    other_logits,
    value_gradient,
    offset_gradient,
    logit_gradient,
    other_offset_gradient,
    other_logit_gradient,
):
    """Job (b, h, f): all gradients that flow through the values of one head in one frame."""
    targets, queries, heads, points, others, other_points, components, frames, dim, rows = sizes
    want_value, want_position, want_logit = wants
    f = job % frames
    h = job // frames % heads
    b = job // (frames * heads)
    level_count = levels.shape[0]
    slab_floats = rows * dim
    slabs = np.empty(2 * slab_floats, np.float32)
    slab = np.int64(slabs.ctypes.data)
    slab_gradient = slab + slab_floats * 4
    all_finite = True
    if want_position | want_logit:
        source = value[0] + b * value[1] + f * value[2] + h * value[4]
        all_finite = pack_slab(width, source, value[3], levels, dim, slab)
    if want_value:
        slabs[slab_floats:] = np.float32(0.0)
    weights = np.empty(level_count * max(points, other_points), np.float32)
    for t in range(targets):
        for column in range(1 + others):
            if table[t, column] != f:
                continue
            own = column == 0
            count = level_count * (points if own else other_points)
            first = 0 if own else (column - 1) * count
            for q in range(queries):
                source_logits = (at(logits, b, t, q, h) if own else at(other_logits, b, t, q, h)) + first * 4
                delta = np.float32(0.0)
                if softmax:
                    shift = read(at(lse, b, t, q, h), 0)
                    # A row of only -inf: any finite shift gives weights of zero.
                    shift = shift if shift != np.float32(-np.inf) else np.float32(0.0)
                    exponentials(weights, 0, source_logits, count, shift)
                    delta = read(at(deltas, b, t, q, h), 0)
                else:
                    copy_floats(weights, 0, source_logits, count)
                query_backward(
                    width,
                    slab,
                    slab_gradient,
                    levels,
                    dim,
                    components,
                    softmax,
                    all_finite,
                    wants,
                    at(references, b, t, q, 0) if own else at(other_references, b, t, q, 0),
                    references[4] if own else other_references[4],
                    (at(offsets, b, t, q, h) if own else at(other_offsets, b, t, q, h)) + first * 8,
                    points if own else other_points,
                    weights,
                    at(gradient, b, t, q, h),
                    delta,
                    (at(offset_gradient, b, t, q, h) if own else at(other_offset_gradient, b, t, q, h)) + first * 8,
                    (at(logit_gradient, b, t, q, h) if own else at(other_logit_gradient, b, t, q, h)) + first * 4,
                )
    if want_value:
        target = value_gradient[0] + b * value_gradient[1] + f * value_gradient[2] + h * value_gradient[4]
        unpack_slab(width, slab_gradient, levels, dim, target, value_gradient[3])
    # The slabs are used by address only: name them once more, or they would be freed before.
    return slabs[0]


def run_backward(
    grad_output: Tensor,  # [B, T, Q, H * D]
    output: Tensor | None,
    lse: Tensor | None,
    value: Tensor,  # [B, F, S, H, D]
    shapes: list[tuple[int, int]],
    starts: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: list[list[int]],
    other_reference_points: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients in the dtypes of the inputs; None where not needed. Without `lse` the weights are taken as they are."""
    inputs = (value, reference_points, offsets, logits, other_offsets, other_logits, other_reference_points)
    grads = [float_buffer(*x.shape).zero_() if need else None for x, need in zip(inputs, needs, strict=True)]
    if grad_output.numel() == 0:
        return _in_dtypes(grads, inputs)
    clips, frames, positions, heads, head_dim = value.shape
    _, targets, queries, _, _, points, _ = offsets.shape
    others, other_points = other_logits.shape[4], other_logits.shape[6]
    components = reference_points.shape[-1]
    softmax = lse is not None
    dim, width = row_width(head_dim)
    levels, rows = level_table(shapes, starts)
    want_value, want_reference, _, _, _, _, want_other_reference = needs
    wants = (want_value, any(needs[i] for i in (1, 2, 4, 6)), needs[3] or needs[5])

    gradient = as_rows(grad_output.unflatten(3, (heads, head_dim)), dim)
    deltas = float_buffer(clips, targets, queries, heads)
    if softmax and wants[2]:
        products = as_rows(output.unflatten(3, (heads, head_dim)), dim)
        sizes = (targets, queries, heads, dim)
        views = (view(gradient), view(products), view(deltas))
        run_jobs(lambda job: output_products(width, job, *sizes, *views), clips * targets)

    value_gradient = grads[0]
    if want_value and dim != head_dim:
        value_gradient = float_buffer(clips, frames, positions, heads, dim).zero_()
    nothing = float_buffer(0, 0, 0, 0, 0)
    offset_gradient = float_buffer(*offsets.shape) if wants[1] else nothing
    other_offset_gradient = float_buffer(*other_offsets.shape) if wants[1] else nothing
    logit_gradient = float_buffer(*logits.shape) if wants[2] else nothing
    other_logit_gradient = float_buffer(*other_logits.shape) if wants[2] else nothing
    rows_of_value = as_rows(value, dim)
    references, other_references = (with_dense_tail(x, 1) for x in (reference_points, other_reference_points))
    dense_offsets, dense_other_offsets = with_dense_tail(offsets, 3), with_dense_tail(other_offsets, 4)
    tensors = (
        rows_of_value,
        gradient,
        deltas,
        lse if softmax else deltas,
        references,
        dense_offsets,
        with_dense_tail(logits, 2),
        other_references,
        dense_other_offsets,
        with_dense_tail(other_logits, 3),
        value_gradient if want_value else nothing,
        offset_gradient,
        logit_gradient,
        other_offset_gradient,
        other_logit_gradient,
    )
    sizes = (targets, queries, heads, points, others, other_points, components, frames, dim, rows)
    table = np.array(frame_table, np.int64)
    views = [view(tensor) for tensor in tensors]
    run_jobs(
        lambda job: slab_backward(width, job, sizes, softmax, wants, levels, table, *views),
        clips * heads * frames,
    )
    if want_value and dim != head_dim:
        grads[0] = value_gradient[..., :head_dim]

    for wanted, index, group_points, group_offsets, pixel_gradient, group_references in (
        (want_reference, 1, points, dense_offsets, offset_gradient, references),
        (want_other_reference, 6, other_points, dense_other_offsets, other_offset_gradient, other_references),
    ):
        if not wants[1] or not (wanted or components == 4):
            continue
        convert_position_gradients(levels, group_points, group_references, group_offsets, pixel_gradient, grads[index])

    for index, computed in (
        (2, offset_gradient),
        (3, logit_gradient),
        (4, other_offset_gradient),
        (5, other_logit_gradient),
    ):
        grads[index] = computed if needs[index] else None
    return _in_dtypes(grads, inputs)


def _in_dtypes(grads, inputs) -> tuple[Tensor | None, ...]:
    return tuple(None if grad is None else grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True))


def stda_backward(
    grad_output,
    value,
    spatial_shapes,
    reference_points,
    offsets,
    logits,
    other_offsets,
    other_logits,
    frame_table,
    other_reference_points,
    output,
    lse,
    needs,
    deterministic,
) -> tuple[Tensor | None, ...]:
    """Gradients of value, reference points, offsets, logits, other offsets, other logits and other reference points.

    The same bits in every run, whatever `deterministic` says. `needs` tells which gradients are wanted; the others are
    None.
    """
    return run_backward(
        grad_output,
        output,
        lse,
        value,
        spatial_shapes,
        level_starts(spatial_shapes),
        reference_points,
        offsets,
        logits,
        other_offsets,
        other_logits,
        frame_table,
        other_reference_points,
        needs,
    )


def msda_backward(
    grad_output,
    value,
    spatial_shapes,
    level_start_index,
    sampling_locations,
    attention_weights,
    needs,
    deterministic,
) -> tuple[Tensor | None, ...]:
    """Gradients of value, sampling locations and attention weights; the same bits in every run."""
    problem = msda_as_attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    want_value, want_locations, want_weights = needs
    needs = (want_value, False, want_locations, want_weights, False, False, False)
    grads = run_backward(grad_output.unsqueeze(1), None, None, **problem, needs=needs)
    return tuple(None if grads[i] is None else grads[i].squeeze(1) for i in (0, 2, 3))
