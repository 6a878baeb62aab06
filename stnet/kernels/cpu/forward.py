"""Forward pass of both operators on the CPU: one pass over the samples, softmax inside, nothing stored but the output.

A job takes some queries of one clip, head and target frame. `ms_deform_attn` is the same attention without softmax over
one frame: a location in [0, 1] is an offset from the reference box (0, 0, 2 P, 2 P).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stnet.kernels.cpu.jobs import next_job, run_jobs
from stnet.kernels.cpu.lanes import all_finite, exp, largest_of, multiply_add, spread, sum_of, where
from stnet.kernels.cpu.layout import at, dense, float_buffer, row_width, view
from stnet.kernels.cpu.samples import BLOCK, EIGHT, corner_steps, locate, place_frame, sample_table, view_table
from stnet.kernels.cpu.simd import helper, kernel, load, load_first, read, read_long, store, width_lanes, write
from stnet.kernels.cpu.team import on_team
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors, level_starts, read_levels

_SAMPLES_PER_JOB = 2048  # large against the cost of taking a job, small against the work of a layer


@helper
def largest(address, count, start):
    """The largest of `start` and `count` logits; a NaN may be passed over, for it makes the sum NaN anyway."""
    peaks = spread(EIGHT, start)
    for k in range(0, count, BLOCK):
        logits = load_first(EIGHT, address + 4 * k, count - k, start)
        peaks = where(logits > peaks, logits, peaks)
    return largest_of(peaks)


@helper
def exponentials(target, address, count, shift):
    """Write exp(logit - shift) of `count` logits to whole vectors; zeros follow. Returns the sum."""
    total = spread(EIGHT, np.float32(0.0))
    for k in range(0, count, BLOCK):
        powers = exp(load_first(EIGHT, address + 4 * k, count - k, np.float32(-np.inf)) - shift)
        store(target + 4 * k, powers)
        total = total + powers
    return sum_of(total)


@helper
def copy_floats(target, address, count):
    """Copy `count` numbers to whole vectors; zeros follow."""
    for k in range(0, count, BLOCK):
        store(target + 4 * k, load_first(EIGHT, address + 4 * k, count - k, np.float32(0.0)))


@helper
def find_corners(table, placed, offset, count, weights, cells, corners, line):
    """Write, for the samples of a frame, their first cells and four lines of weights of their corners.

    `weights` of the samples; they become part of those of the corners.
    """
    nothing = np.float32(0.0)
    for k in range(0, count, BLOCK):
        inside, along_x, along_y = locate(table, placed, offset, count, k, cells)
        weight = where(inside, load(EIGHT, weights + 4 * k), nothing)
        upper, lower = weight * along_y[0], weight * along_y[1]
        store(corners + 4 * k, upper * along_x[0])
        store(corners + 4 * (line + k), upper * along_x[1])
        store(corners + 4 * (2 * line + k), lower * along_x[0])
        store(corners + 4 * (3 * line + k), lower * along_x[1])


@helper
def add_corner(width, total, weight, address, careful):
    """Add weight * row; if `careful`, infinite rows of weight zero do not count."""
    if careful and weight == np.float32(0.0):
        return total
    return multiply_add(total, weight, load(width, address))


@helper
def add_frame(width, total, source, step, steps, steps_line, count, cells, corners, line, careful):
    """Add the samples of a frame."""
    for k in range(count):
        upper = source + read_long(cells, k) * step
        right = read_long(steps, k)
        lower = upper + read_long(steps, steps_line + k)
        total = add_corner(width, total, read(corners, k), upper, careful)
        total = add_corner(width, total, read(corners, line + k), upper + right, careful)
        total = add_corner(width, total, read(corners, 2 * line + k), lower, careful)
        total = add_corner(width, total, read(corners, 3 * line + k), lower + right, careful)
    return total


@helper
def add_frames(width, value, b, h, lane, frames, columns, groups, cells, corners, line, careful):
    """Sum the samples of a query's frames; those of a frame start at whole blocks."""
    total = spread(width, np.float32(0.0))
    start = 0
    for column in range(columns):
        count, steps, steps_line = groups[min(column, 1)]
        source = at(value, b, read_long(frames, column), 0, h) + lane * 4
        first_cell, first_corner = cells + 8 * start, corners + 4 * start
        total = add_frame(
            width, total, source, value[3], steps, steps_line, count, first_cell, first_corner, line, careful
        )
        start += steps_line
    return total


@kernel
def attend(
    me,
    jobs,
    width,
    sizes,
    part,
    softmax,
    frame_table,
    tables,
    value,
    own,  # views of reference points, offsets, logits
    others,
    output,
    lse,
):
    """Job (b, t, c): the output and log-sum-exp of the c-th part of the queries."""
    references, offsets, logits = own
    other_references, other_offsets, other_logits = others
    targets, queries, heads, levels, points, other_frames, other_points, components, _, dim = sizes
    table, other_table = tables
    own_count, frame_count = levels * points, levels * other_points
    own_line, other_line = table[1], other_table[1]
    line = own_line + other_frames * other_line
    numbers = np.empty(2 * (own_line + other_line) + line, np.int64)
    steps = np.int64(numbers.ctypes.data)
    other_steps = steps + 16 * own_line
    cells = other_steps + 16 * other_line
    corner_steps(table, value[3], steps)
    corner_steps(other_table, value[3], other_steps)
    floats = np.empty(4 * (own_line + other_line) + 5 * line + BLOCK, np.float32)
    placed = np.int64(floats.ctypes.data)
    other_placed = placed + 16 * own_line
    corners = other_placed + 16 * other_line
    weights = corners + 16 * line
    columns = 1 + other_frames
    groups = ((own_count, steps, own_line), (frame_count, other_steps, other_line))
    parts = (queries + part - 1) // part
    job = next_job(jobs, me)
    while job >= 0:
        first = job % parts * part
        t = job // parts % targets
        b = job // (parts * targets)
        for q in range(first, min(first + part, queries)):
            place_frame(table, at(references, b, t, q, 0), references[4], components, levels, points, placed)
            if other_frames:
                reference = at(other_references, b, t, q, 0)
                place_frame(other_table, reference, other_references[4], components, levels, other_points, other_placed)
            for h in range(heads):
                own_row = at(logits, b, t, q, h)
                own_offset = at(offsets, b, t, q, h)
                norm = np.float32(1.0)
                shift = np.float32(0.0)
                if softmax:
                    other_row = at(other_logits, b, t, q, h)
                    peak = largest(own_row, own_count, np.float32(-np.inf))
                    peak = largest(other_row, other_frames * frame_count, peak)
                    shift = peak if peak != np.float32(-np.inf) else np.float32(0.0)
                    norm = exponentials(weights, own_row, own_count, shift)
                    for i in range(other_frames):
                        start = 4 * (own_line + i * other_line)
                        norm += exponentials(weights + start, other_row + 4 * i * frame_count, frame_count, shift)
                    write(at(lse, b, t, q, h), 0, shift + np.log(norm))
                    norm = np.float32(1.0) / norm if norm != np.float32(0.0) else np.float32(0.0)
                else:
                    copy_floats(weights, own_row, own_count)
                find_corners(table, placed, own_offset, own_count, weights, cells, corners, line)
                for i in range(other_frames):
                    start = own_line + i * other_line
                    find_corners(
                        other_table,
                        other_placed,
                        at(other_offsets, b, t, q, h) + 8 * i * frame_count,
                        frame_count,
                        weights + 4 * start,
                        cells + 8 * start,
                        corners + 4 * start,
                        line,
                    )
                target = at(output, b, t, q, h)
                for lane in range(0, dim, width_lanes(width)):
                    frames = frame_table + 8 * t * columns
                    total = add_frames(width, value, b, h, lane, frames, columns, groups, cells, corners, line, False)
                    if not all_finite(total):
                        total = add_frames(
                            width, value, b, h, lane, frames, columns, groups, cells, corners, line, True
                        )
                    store(target + lane * 4, total * norm)
        job = next_job(jobs, me)
    # These are used by address only: name them once more, or they would be freed before.
    return floats[0], numbers[0]


@kernel
def attend_on_team(parallel, number, threads, jobs, width, *arguments):
    """`attend` on every thread; see `run_jobs`."""
    return on_team(parallel, number, threads, attend, (jobs, width, *arguments))


def prepare_attention(
    problem: StdaProblem, starts: Sequence[int], *, softmax: bool
) -> Callable[[StdaTensors[Tensor]], tuple[Tensor, Tensor]]:
    """Return what computes output [B, T, Q, H * D] in the dtype of value and log-sum-exp [B, T, Q, H].

    `starts` are the first positions of the levels, which may lie anywhere in a frame. Without `softmax` the logits are
    the weights, and the log-sum-exp is empty.
    """
    p = problem
    dim, width = row_width(p.head_dim)
    part = max(1, min(p.queries, _SAMPLES_PER_JOB // (p.heads * p.samples)))
    frame_table, tables = np.array(p.frame_table, np.int64), sample_tables(p, starts)
    known = (width, kernel_sizes(p, dim), part, softmax)
    jobs = p.clips * p.targets * math.ceil(p.queries / part)

    def run(tensors: StdaTensors[Tensor]) -> tuple[Tensor, Tensor]:
        dtype, tensors = tensors.value.dtype, dense(tensors, dim)
        output = float_buffer(p.clips, p.targets, p.queries, p.heads, dim)
        lse = float_buffer(p.clips, p.targets, p.queries, p.heads if softmax else 0)
        arguments = (
            *known,
            frame_table.ctypes.data,
            tuple(map(view_table, tables)),
            view(tensors.value),
            tuple(map(view, tensors.own)),
            tuple(map(view, tensors.others)),
            view(output),
            view(lse),
        )
        run_jobs(attend, attend_on_team, arguments, jobs)
        return output[..., : p.head_dim].flatten(3).to(dtype), lse

    return run


def sample_tables(p: StdaProblem, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The sample tables of the own frame and of another one."""
    starts = tuple(starts)
    return tuple(sample_table(p.spatial_shapes, starts, points) for points in (p.points, p.other_points))


def kernel_sizes(p: StdaProblem, dim: int) -> tuple[int, ...]:
    """The sizes of a problem as the kernels unpack them."""
    samples = (p.levels, p.points, p.other_frames, p.other_points, p.components)
    return (p.targets, p.queries, p.heads, *samples, p.source_frames, dim)


def stda_forward(
    problem: StdaProblem, tensors: StdaTensors[Tensor]
) -> Callable[[StdaTensors[Tensor]], tuple[Tensor, Tensor]]:
    """Prepare spatial-temporal deformable attention; see `stnet.kernels.backends`."""
    return prepare_attention(problem, problem.level_starts, softmax=True)


def msda_forward(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> Callable[[MsdaTensors[Tensor]], Tensor]:
    """Prepare multi-scale deformable attention; see `stnet.kernels.backends`.

    What it returns raises ValueError for levels that do not lie within the positions of value.
    """
    convert = as_attention(problem)

    def prepare(tensors: MsdaTensors[Tensor]) -> Callable[[StdaTensors[Tensor]], tuple[Tensor, Tensor]]:
        return prepare_attention(*levels_of(problem, tensors), softmax=False)

    # Shapes in a tensor: the next call may bring other numbers.
    known = None if problem.spatial_shapes is None else prepare(tensors)
    return lambda tensors: (known or prepare(tensors))(convert(tensors))[0].squeeze(1)


def levels_of(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> tuple[StdaProblem, Sequence[int]]:
    """The problem whose solution without softmax is `ms_deform_attn`, and the first positions of its levels."""
    if problem.spatial_shapes is None:
        shapes, starts = read_levels(problem, tensors)
    else:
        shapes, starts = problem.spatial_shapes, level_starts(problem.spatial_shapes)
    return StdaProblem.of(as_attention(problem)(tensors), tuple(map(tuple, shapes)), ((0,),)), starts


def as_attention(problem: MsdaProblem) -> Callable[[MsdaTensors[Tensor]], StdaTensors[Tensor]]:
    """What turns the tensors of `ms_deform_attn` into those of an attention without softmax over one frame."""
    p = problem
    box = torch.tensor([0.0, 0.0, 2.0 * p.points, 2.0 * p.points], dtype=torch.float32, device="cpu")
    box = box.expand(p.clips, 1, p.queries, p.levels, 4)
    no_samples = (p.clips, 1, p.queries, p.heads, 0, p.levels, 1)
    others = (float_buffer(*no_samples, 2), float_buffer(*no_samples), box)

    def convert(tensors: MsdaTensors[Tensor]) -> StdaTensors[Tensor]:
        value, locations, weights = tensors.value, tensors.sampling_locations, tensors.attention_weights
        return StdaTensors(value.unsqueeze(1), box, locations.unsqueeze(1), weights.unsqueeze(1), *others)

    return convert
