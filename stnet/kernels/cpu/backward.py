"""Backward pass of both operators on the CPU.

A job owns one source frame of one clip and head: it alone adds to that part of the value gradient, target after target,
query after query. No atomics are needed, and the result has the same bits whatever the number of threads. A sample
belongs to one source frame, so its offset and logit gradients have one owner too. Those of reference points, to which
all heads and frames add, follow from the offset gradients in a second pass (`positions`).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from stnet.kernels.cpu.forward import as_attention, copy_floats, exponentials, kernel_sizes, levels_of, sample_tables
from stnet.kernels.cpu.jobs import next_job, run_jobs
from stnet.kernels.cpu.lanes import dot4, finite, interleave, multiply_add, sum_of, where
from stnet.kernels.cpu.layout import as_rows, at, by_heads, dense, float_buffer, row_width, view, zeros_like_rows
from stnet.kernels.cpu.positions import convert_position_gradients
from stnet.kernels.cpu.samples import BLOCK, EIGHT, corner_steps, locate, place_frame, view_table
from stnet.kernels.cpu.simd import helper, kernel, load, read, read_long, store, store_first, width_lanes, write
from stnet.kernels.cpu.team import on_team
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors

# Lines of what is known of the samples of a query in one frame, for each the numbers of the samples one after another.
_PLACED = 0  # four lines, see `place_frame`
_WEIGHTS = 4
_ACTIVE = 5  # 0 where a sample lies outside or is excluded
_ALONG_X, _ALONG_Y = 6, 10  # weights of the first and the next cell, and their slopes
_SCALED = 14  # four lines: weights of the corners with that of the sample
_PRODUCTS = 18  # four lines: products of the corners' rows with the output's gradient
_LINES = 22

_QUERIES_PER_JOB = 64

# Samples for each row of values from which it pays to arrange them by heads first: then a job, which takes one head,
# reads and adds to adjacent rows. The forward pass takes all heads of a query together and reads them where they are.
_SAMPLES_BY_HEADS = 4


@helper
def find_samples(table, offset, count, softmax, cells, lines, size):
    """Write cells, weights of corners, slopes, and which samples of a frame are active; `size` bytes are a line."""
    one, nothing = np.float32(1.0), np.float32(0.0)
    for k in range(0, count, BLOCK):
        here = lines + 4 * k
        inside, along_x, along_y = locate(table, lines + _PLACED * size, offset, count, k, cells)
        weight = load(EIGHT, here + _WEIGHTS * size)
        store(here + _ACTIVE * size, where(inside, weight, nothing) if softmax else where(inside, one, nothing))
        for i in range(4):
            store(here + (_ALONG_X + i) * size, along_x[i])
            store(here + (_ALONG_Y + i) * size, along_y[i])
        upper, lower = weight * along_y[0], weight * along_y[1]
        store(here + _SCALED * size, upper * along_x[0])
        store(here + (_SCALED + 1) * size, upper * along_x[1])
        store(here + (_SCALED + 2) * size, lower * along_x[0])
        store(here + (_SCALED + 3) * size, lower * along_x[1])


@helper
def careful_row(width, address, weight):
    """A row of values; one of bilinear weight zero counts as zero where it is not finite."""
    row = load(width, address)
    return finite(row) if weight == np.float32(0.0) else row


@helper
def corner_products(width, corners, dim, gradient):
    """The products of the four corner rows of a sample with the output's gradient."""
    s00 = s01 = s10 = s11 = np.float32(0.0)
    for lane in range(0, 4 * dim, 4 * width_lanes(width)):
        row = load(width, gradient + lane)
        part = dot4(
            load(width, corners[0] + lane),
            load(width, corners[1] + lane),
            load(width, corners[2] + lane),
            load(width, corners[3] + lane),
            row,
        )
        s00 += part[0]
        s01 += part[1]
        s10 += part[2]
        s11 += part[3]
    return s00, s01, s10, s11


@helper
def careful_products(width, corners, dim, gradient, sample, size):
    """`corner_products` where a product is not finite: rows that do not count must not make it so."""
    x0, x1 = read(sample, _ALONG_X * size // 4), read(sample, (_ALONG_X + 1) * size // 4)
    y0, y1 = read(sample, _ALONG_Y * size // 4), read(sample, (_ALONG_Y + 1) * size // 4)
    s00 = s01 = s10 = s11 = np.float32(0.0)
    for lane in range(0, 4 * dim, 4 * width_lanes(width)):
        row = load(width, gradient + lane)
        s00 += sum_of(row * careful_row(width, corners[0] + lane, y0 * x0))
        s01 += sum_of(row * careful_row(width, corners[1] + lane, y0 * x1))
        s10 += sum_of(row * careful_row(width, corners[2] + lane, y1 * x0))
        s11 += sum_of(row * careful_row(width, corners[3] + lane, y1 * x1))
    return s00, s01, s10, s11


@helper
def add_row(width, target, dim, weight, gradient):
    """Add weight * gradient to a row; a row of weight zero does not see a gradient that is not finite."""
    if weight != np.float32(0.0):
        for lane in range(0, 4 * dim, 4 * width_lanes(width)):
            row = load(width, gradient + lane)
            store(target + lane, multiply_add(load(width, target + lane), weight, row))


@helper
def corner_rows(source, step, cell, right, below):
    """The addresses of the four rows of a sample."""
    upper = source + cell * step
    lower = upper + below
    return upper, upper + right, lower, lower + right


@helper
def visit_samples(
    width, wants, count, dim, source, step, steps, target, target_step, target_steps, cells, gradient, lines, size
):
    """Read the corners of the samples of a frame for their products; add the output's gradient to the value's."""
    want_value, want_position, want_logit = wants
    steps_line = size // 4
    for k in range(count):
        sample = lines + 4 * k
        s00 = s01 = s10 = s11 = np.float32(0.0)
        if read(sample, _ACTIVE * size // 4) != np.float32(0.0):
            cell = read_long(cells, k)
            if want_position | want_logit:
                corners = corner_rows(source, step, cell, read_long(steps, k), read_long(steps, steps_line + k))
                s00, s01, s10, s11 = corner_products(width, corners, dim, gradient)
                if not math.isfinite(s00 + s01 + s10 + s11):
                    s00, s01, s10, s11 = careful_products(width, corners, dim, gradient, sample, size)
            if want_value:
                rows = corner_rows(
                    target, target_step, cell, read_long(target_steps, k), read_long(target_steps, steps_line + k)
                )
                for i in range(4):
                    add_row(width, rows[i], dim, read(sample, (_SCALED + i) * size // 4), gradient)
        write(sample, _PRODUCTS * size // 4, s00)
        write(sample, (_PRODUCTS + 1) * size // 4, s01)
        write(sample, (_PRODUCTS + 2) * size // 4, s10)
        write(sample, (_PRODUCTS + 3) * size // 4, s11)


@helper
def write_gradients(count, softmax, wants, delta, lines, size, offset_gradient, logit_gradient):
    """Write the gradients of positions (by pixels) and logits of the samples of a frame."""
    _, want_position, want_logit = wants
    nothing = np.float32(0.0)
    for k in range(0, count, BLOCK):
        here = lines + 4 * k
        weight, active = load(EIGHT, here + _WEIGHTS * size), load(EIGHT, here + _ACTIVE * size)
        x0, x1 = load(EIGHT, here + _ALONG_X * size), load(EIGHT, here + (_ALONG_X + 1) * size)
        y0, y1 = load(EIGHT, here + _ALONG_Y * size), load(EIGHT, here + (_ALONG_Y + 1) * size)
        s00, s01 = load(EIGHT, here + _PRODUCTS * size), load(EIGHT, here + (_PRODUCTS + 1) * size)
        s10, s11 = load(EIGHT, here + (_PRODUCTS + 2) * size), load(EIGHT, here + (_PRODUCTS + 3) * size)
        upper, lower = x0 * s00 + x1 * s01, x0 * s10 + x1 * s11
        if want_position:
            dx0, dx1 = load(EIGHT, here + (_ALONG_X + 2) * size), load(EIGHT, here + (_ALONG_X + 3) * size)
            dy0, dy1 = load(EIGHT, here + (_ALONG_Y + 2) * size), load(EIGHT, here + (_ALONG_Y + 3) * size)
            gradient_x = weight * (y0 * (dx0 * s00 + dx1 * s01) + y1 * (dx0 * s10 + dx1 * s11))
            gradient_y = weight * (dy0 * upper + dy1 * lower)
            gradient_x = where(active == nothing, nothing, gradient_x)
            gradient_y = where(active == nothing, nothing, gradient_y)
            store_first(offset_gradient + 8 * k, interleave(gradient_x, gradient_y), 2 * (count - k))
        if want_logit:
            sample = y0 * upper + y1 * lower
            if softmax:
                sample = where(weight == nothing, nothing, weight * (sample - delta))
            store_first(logit_gradient + 4 * k, sample, count - k)


@kernel
def output_products(me, jobs, width, targets, queries, heads, dim, gradient, output, deltas):
    """Job (b, t, c): for queries and heads the product of output and its gradient, which the softmax gradient needs."""
    parts = (queries + _QUERIES_PER_JOB - 1) // _QUERIES_PER_JOB
    job = next_job(jobs, me)
    while job >= 0:
        first = job % parts * _QUERIES_PER_JOB
        t = job // parts % targets
        b = job // (parts * targets)
        for q in range(first, min(first + _QUERIES_PER_JOB, queries)):
            for h in range(heads):
                left = at(gradient, b, t, q, h)
                right = at(output, b, t, q, h)
                total = np.float32(0.0)
                for lane in range(0, 4 * dim, 4 * width_lanes(width)):
                    total += sum_of(load(width, left + lane) * load(width, right + lane))
                write(at(deltas, b, t, q, h), 0, total)
        job = next_job(jobs, me)


@kernel
def output_products_on_team(parallel, number, threads, jobs, width, *arguments):
    """`output_products` on every thread; see `run_jobs`."""
    return on_team(parallel, number, threads, output_products, (jobs, width, *arguments))


@kernel
def frame_backward(
    me,
    jobs,
    width,
    sizes,
    softmax,
    wants,
    frame_table,
    tables,
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
    targets, queries, heads, levels, points, other_frames, other_points, components, frames, dim = sizes
    most = max(tables[0][1], tables[1][1])
    columns = 1 + other_frames
    floats = np.empty(_LINES * most, np.float32)
    numbers = np.empty(9 * most, np.int64)
    lines, cells = np.int64(floats.ctypes.data), np.int64(numbers.ctypes.data)
    for i in range(2):
        corner_steps(tables[i], value[3], cells + (1 + 4 * i) * 8 * most)
        corner_steps(tables[i], value_gradient[3], cells + (3 + 4 * i) * 8 * most)
    job = next_job(jobs, me)
    while job >= 0:
        f = job % frames
        h = job // frames % heads
        b = job // (frames * heads)
        source = at(value, b, f, 0, h)
        target = at(value_gradient, b, f, 0, h)
        for t in range(targets):
            for column in range(columns):
                if read_long(frame_table, t * columns + column) != f:
                    continue
                group = min(column, 1)
                references, offsets, logits = own if group == 0 else others
                offset_gradient, logit_gradient = own_gradients if group == 0 else other_gradients
                table = tables[group]
                frame_points = points if group == 0 else other_points
                count = levels * frame_points
                first = 0 if group == 0 else (column - 1) * count
                size = 4 * table[1]
                steps = cells + (1 + 4 * group) * 8 * most
                target_steps = cells + (3 + 4 * group) * 8 * most
                for q in range(queries):
                    source_logits = at(logits, b, t, q, h) + first * 4
                    delta = np.float32(0.0)
                    if softmax:
                        shift = read(at(lse, b, t, q, h), 0)
                        # A row of only -inf: any finite shift gives weights of zero.
                        shift = shift if shift != np.float32(-np.inf) else np.float32(0.0)
                        exponentials(lines + _WEIGHTS * size, source_logits, count, shift)
                        delta = read(at(deltas, b, t, q, h), 0)
                    else:
                        copy_floats(lines + _WEIGHTS * size, source_logits, count)
                    reference = at(references, b, t, q, 0)
                    place_frame(table, reference, references[4], components, levels, frame_points, lines)
                    find_samples(table, at(offsets, b, t, q, h) + first * 8, count, softmax, cells, lines, size)
                    visit_samples(
                        width,
                        wants,
                        count,
                        dim,
                        source,
                        value[3],
                        steps,
                        target,
                        value_gradient[3],
                        target_steps,
                        cells,
                        at(gradient, b, t, q, h),
                        lines,
                        size,
                    )
                    write_gradients(
                        count,
                        softmax,
                        wants,
                        delta,
                        lines,
                        size,
                        at(offset_gradient, b, t, q, h) + first * 8,
                        at(logit_gradient, b, t, q, h) + first * 4,
                    )
        job = next_job(jobs, me)
    # These are used by address only: name them once more, or they would be freed before.
    return floats[0], numbers[0]


@kernel
def frame_backward_on_team(parallel, number, threads, jobs, width, *arguments):
    """`frame_backward` on every thread; see `run_jobs`."""
    return on_team(parallel, number, threads, frame_backward, (jobs, width, *arguments))


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
            count = p.clips * p.targets * math.ceil(p.queries / _QUERIES_PER_JOB)
            run_jobs(output_products, output_products_on_team, (width, *sizes, *views), count)

    tensors = dense(tensors, dim)
    if p.targets * p.queries * p.samples >= _SAMPLES_BY_HEADS * p.source_frames * p.positions:
        tensors = tensors._replace(value=by_heads(tensors.value))
    nothing = float_buffer(0, 0, 0, 0, 0)
    written = StdaTensors(
        value=zeros_like_rows(tensors.value) if needs.value else nothing,
        reference_points=None,
        offsets=float_buffer(*tensors.offsets.shape) if positions else nothing,
        logits=float_buffer(*tensors.logits.shape) if wants[2] else nothing,
        other_offsets=float_buffer(*tensors.other_offsets.shape) if positions else nothing,
        other_logits=float_buffer(*tensors.other_logits.shape) if wants[2] else nothing,
        other_reference_points=None,
    )
    frame_table, tables = np.array(p.frame_table, np.int64), sample_tables(p, starts)
    arguments = (
        kernel_sizes(p, dim),
        softmax is not None,
        wants,
        frame_table.ctypes.data,
        tuple(map(view_table, tables)),
        *map(view, (tensors.value, gradient, deltas, lse)),
        tuple(map(view, tensors.own)),
        tuple(map(view, tensors.others)),
        view(written.value),
        tuple(map(view, written.own[1:])),
        tuple(map(view, written.others[1:])),
    )
    run_jobs(frame_backward, frame_backward_on_team, (width, *arguments), p.clips * p.heads * p.source_frames)
    sizes = np.array(p.spatial_shapes, np.int64).reshape(-1, 2)
    references, other_references = (
        _position_gradients(sizes, group, pixels, need, p.components)
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
    sizes: np.ndarray, group: tuple[Tensor, Tensor, Tensor], pixel_gradient: Tensor, need: bool, components: int
) -> Tensor | None:
    """The gradient of reference points, if needed, from that by pixels, which becomes the gradient of offsets."""
    references, offsets, _ = group
    gradient = float_buffer(*references.shape).zero_() if need else None
    if pixel_gradient.shape == offsets.shape and (need or components == 4):
        convert_position_gradients(sizes, offsets.shape[-2], references, offsets, pixel_gradient, gradient)
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

    convert = as_attention(problem)
    known = None if problem.spatial_shapes is None else levels_of(problem, tensors)

    def run(tensors: MsdaTensors[Tensor], grad_output: Tensor) -> MsdaTensors[Tensor | None]:
        same, starts = known or levels_of(problem, tensors)
        gradients = run_backward(same, convert(tensors), starts, grad_output.unsqueeze(1), wanted)
        found = (gradients.value, gradients.offsets, gradients.logits)
        return MsdaTensors(*(None if x is None else x.squeeze(1) for x in found))

    return run
