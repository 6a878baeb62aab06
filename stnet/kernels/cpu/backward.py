"""Backward pass of both operators on the CPU.

A job owns one source frame of one clip and head: it alone adds to that slab of the value gradient, target after
target, query after query. No atomics are needed, and the result has the same bits whatever the number of threads. A
sample belongs to one source frame, so its offset and logit gradients have one owner too. Those of reference points, to
which all heads and frames add, follow from the offset gradients in a second pass (`positions`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from stnet.kernels.cpu.forward import as_attention, copy_floats, exponentials, kernel_sizes
from stnet.kernels.cpu.jobs import run_jobs
from stnet.kernels.cpu.layout import as_rows, at, dense, float_buffer, level_table, pack_slab, place, row_width, view
from stnet.kernels.cpu.positions import convert_position_gradients
from stnet.kernels.cpu.simd import (
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
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors


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
    """Add weight * row to the numbers at an address."""
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
    own,  # views of reference points, offsets, logits
    others,
    value_gradient,
    own_gradients,  # of offsets and logits
    other_gradients,
):
    """Job (b, h, f): all gradients that flow through the values of one head in one frame."""
    targets, queries, heads, points, other_frames, other_points, components, frames, dim, rows = sizes
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
        for column in range(1 + other_frames):
            if table[t, column] != f:
                continue
            references, offsets, logits = own if column == 0 else others
            offset_gradient, logit_gradient = own_gradients if column == 0 else other_gradients
            frame_points = points if column == 0 else other_points
            count = level_count * frame_points
            first = 0 if column == 0 else (column - 1) * count
            for q in range(queries):
                source_logits = at(logits, b, t, q, h) + first * 4
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
                    at(references, b, t, q, 0),
                    references[4],
                    at(offsets, b, t, q, h) + first * 8,
                    frame_points,
                    weights,
                    at(gradient, b, t, q, h),
                    delta,
                    at(offset_gradient, b, t, q, h) + first * 8,
                    at(logit_gradient, b, t, q, h) + first * 4,
                )
    if want_value:
        target = value_gradient[0] + b * value_gradient[1] + f * value_gradient[2] + h * value_gradient[4]
        unpack_slab(width, slab_gradient, levels, dim, target, value_gradient[3])
    # The slabs are used by address only: name them once more, or they would be freed before.
    return slabs[0]


def run_backward(
    problem: StdaProblem,
    tensors: StdaTensors[Tensor],
    starts: Sequence[int],
    grad_output: Tensor,  # [B, T, Q, H * D]
    needs: StdaTensors[bool],
    softmax: tuple[Tensor, Tensor] | None = None,
) -> StdaTensors[Tensor | None]:
    """Return gradients in the dtypes of the tensors; None where not needed.

    `starts` are the first positions of the levels, which may lie anywhere in a frame; `softmax` is output and
    log-sum-exp of the forward pass, without which the logits are the weights.
    """
    p, dtypes = problem, [x.dtype for x in tensors]
    dim, width = row_width(p.head_dim)
    levels, rows = level_table(p.spatial_shapes, starts)
    positions = needs.reference_points or needs.offsets or needs.other_offsets or needs.other_reference_points
    wants = (needs.value, positions, needs.logits or needs.other_logits)

    gradient = as_rows(grad_output.unflatten(3, (p.heads, p.head_dim)), dim)
    deltas = float_buffer(p.clips, p.targets, p.queries, p.heads)
    lse = deltas
    if softmax is not None:
        output, lse = softmax
        if wants[2]:
            products = as_rows(output.unflatten(3, (p.heads, p.head_dim)), dim)
            views = (view(gradient), view(products), view(deltas))
            sizes = (p.targets, p.queries, p.heads, dim)
            run_jobs(lambda job: output_products(width, job, *sizes, *views), p.clips * p.targets)

    tensors = dense(tensors, dim)
    nothing = float_buffer(0, 0, 0, 0, 0)
    written = StdaTensors(
        value=float_buffer(*tensors.value.shape).zero_() if needs.value else nothing,
        reference_points=None,
        offsets=float_buffer(*tensors.offsets.shape) if positions else nothing,
        logits=float_buffer(*tensors.logits.shape) if wants[2] else nothing,
        other_offsets=float_buffer(*tensors.other_offsets.shape) if positions else nothing,
        other_logits=float_buffer(*tensors.other_logits.shape) if wants[2] else nothing,
        other_reference_points=None,
    )
    arguments = (
        kernel_sizes(p, dim, rows),
        softmax is not None,
        wants,
        levels,
        np.array(p.frame_table, np.int64),
        *map(view, (tensors.value, gradient, deltas, lse)),
        tuple(map(view, tensors.own)),
        tuple(map(view, tensors.others)),
        view(written.value),
        tuple(map(view, written.own[1:])),
        tuple(map(view, written.others[1:])),
    )
    run_jobs(lambda job: slab_backward(width, job, *arguments), p.clips * p.heads * p.source_frames)
    references, other_references = (
        _position_gradients(levels, group, pixels, need, p.components)
        for group, pixels, need in (
            (tensors.own, written.offsets, needs.reference_points),
            (tensors.others, written.other_offsets, needs.other_reference_points),
        )
    )
    written = written._replace(
        value=written.value[..., : p.head_dim], reference_points=references, other_reference_points=other_references
    )
    return StdaTensors(*(x.to(dtype) if need else None for x, dtype, need in zip(written, dtypes, needs, strict=True)))


def _position_gradients(
    levels: np.ndarray, group: tuple[Tensor, Tensor, Tensor], pixel_gradient: Tensor, need: bool, components: int
) -> Tensor | None:
    """The gradient of reference points, if needed, from that by pixels, which becomes the gradient of offsets."""
    references, offsets, _ = group
    gradient = float_buffer(*references.shape).zero_() if need else None
    if pixel_gradient.shape == offsets.shape and (need or components == 4):
        convert_position_gradients(levels, offsets.shape[-2], references, offsets, pixel_gradient, gradient)
    return gradient


def stda_backward(
    problem: StdaProblem,
    tensors: StdaTensors[Tensor],
    grad_output: Tensor,
    output: Tensor,
    lse: Tensor,
    needs: StdaTensors[bool],
    deterministic: bool,
) -> Callable[[StdaTensors[Tensor], Tensor, Tensor, Tensor], StdaTensors[Tensor | None]]:
    """Prepare gradients of spatial-temporal deformable attention; see `stnet.kernels.backends`.

    They have the same bits in every run, whatever `deterministic` says.
    """
    return lambda tensors, grad_output, *saved: run_backward(
        problem, tensors, problem.level_starts, grad_output, needs, saved
    )


def msda_backward(
    problem: MsdaProblem,
    tensors: MsdaTensors[Tensor],
    grad_output: Tensor,
    needs: MsdaTensors[bool],
    deterministic: bool,
) -> Callable[[MsdaTensors[Tensor], Tensor], MsdaTensors[Tensor | None]]:
    """Prepare gradients of multi-scale deformable attention; the same bits in every run."""
    wanted = StdaTensors(*[False] * 7)._replace(
        value=needs.value, offsets=needs.sampling_locations, logits=needs.attention_weights
    )

    def run(tensors: MsdaTensors[Tensor], grad_output: Tensor) -> MsdaTensors[Tensor | None]:
        gradients = run_backward(*as_attention(problem, tensors), grad_output.unsqueeze(1), wanted)
        found = (gradients.value, gradients.offsets, gradients.logits)
        return MsdaTensors(*(None if x is None else x.squeeze(1) for x in found))

    return run
