"""Forward pass of both operators on the CPU: one pass over the samples, softmax inside, nothing stored but the output.

A job takes some queries of one clip, head and target frame. `ms_deform_attn` is the same attention without softmax over
one frame: a location in [0, 1] is an offset from the reference box (0, 0, 2 P, 2 P).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stnet.kernels.cpu.jobs import run_jobs
from stnet.kernels.cpu.layout import at, dense, float_buffer, level_table, pack_slab, place, row_width, view
from stnet.kernels.cpu.simd import (
    exp,
    floor,
    helper,
    kernel,
    load,
    multiply_add,
    read,
    reduction,
    scale,
    store,
    to_int,
    width_lanes,
    write,
    zeros,
)
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors, level_starts, read_levels

_SAMPLES_PER_JOB = 16384  # large against the cost of a call, small against the work of a layer


@kernel
def pack(width, job, value, frames, heads, levels, rows, dim, slabs):
    """Job (b, h, f): write the slab of one head and frame; True where its values are finite."""
    f = job % frames
    h = job // frames % heads
    b = job // (frames * heads)
    source = value[0] + b * value[1] + f * value[2] + h * value[4]
    return pack_slab(width, source, value[3], levels, dim, slabs + job * rows * dim * 4)


@reduction
def largest(address, count, start):
    """The largest of `start` and `count` logits; a NaN may be passed over, for it makes the sum NaN anyway."""
    peak = start
    for i in range(count):
        logit = read(address, i)
        peak = logit if logit > peak else peak
    return peak


@helper
def exponentials(target, first, address, count, shift):
    """target[first + i] = exp(logit i - shift)."""
    for i in range(count):
        target[first + i] = exp(read(address, i) - shift)


@reduction
def total_of(numbers):
    """Return the sum of an array of float32."""
    total = np.float32(0.0)
    for i in range(numbers.shape[0]):
        total += numbers[i]
    return total


@helper
def copy_floats(target, first, address, count):
    """Copy `count` numbers from an address to target[first], target[first + 1] ..."""
    for i in range(count):
        target[first + i] = read(address, i)


@helper
def add_corner(width, total, weight, address, all_finite):
    """Add weight * row. Infinite rows count only where their weight is not zero."""
    if all_finite or weight != np.float32(0.0):
        return multiply_add(total, weight, load(width, address))
    return total


@helper
def add_sample(width, total, slab, row_bytes, columns, x, y, weight, all_finite):
    """Add weight * sample(x, y) of a level with lines of `columns` cells; -1 < x < columns, -1 < y < height."""
    left, top = floor(x), floor(y)
    fx, fy = x - left, y - top
    gx, gy = np.float32(1.0) - fx, np.float32(1.0) - fy
    line = (columns + 1) * row_bytes
    upper = slab + (np.int64(to_int(top)) + 1) * line + (np.int64(to_int(left)) + 1) * row_bytes
    lower = upper + line
    above, below = weight * gy, weight * fy
    total = add_corner(width, total, above * gx, upper, all_finite)
    total = add_corner(width, total, above * fx, upper + row_bytes, all_finite)
    total = add_corner(width, total, below * gx, lower, all_finite)
    return add_corner(width, total, below * fx, lower + row_bytes, all_finite)


@helper
def attend_frame(
    width, total, slab, row_bytes, levels, components, reference, step, offset, points, weights, first, fin
):
    """Add the samples that one frame contributes to a query; `weights[first]` belongs to its first sample."""
    k = first
    for level in range(levels.shape[0]):
        height, columns = np.float32(levels[level, 0]), np.float32(levels[level, 1])
        start = slab + levels[level, 2] * row_bytes
        base_x, base_y, scale_x, scale_y = place(reference + level * step, components, columns, height, points)
        for _ in range(points):
            x = base_x + scale_x * read(offset, 0)
            y = base_y + scale_y * read(offset, 1)
            offset += 8
            weight = weights[k]
            k += 1
            inside = (x > np.float32(-1.0)) & (x < columns) & (y > np.float32(-1.0)) & (y < height)
            if inside & (weight != np.float32(0.0)):
                total = add_sample(width, total, start, row_bytes, levels[level, 1], x, y, weight, fin)
    return total


@kernel
def attend(
    width,
    job,
    sizes,
    softmax,
    all_finite,
    levels,
    table,
    slabs,
    own,  # views of reference points, offsets, logits
    others,
    output,
    lse,
):
    """Job (b, h, t, c): the output and log-sum-exp of the c-th part of the queries."""
    references, offsets, logits = own
    other_references, other_offsets, other_logits = others
    targets, queries, heads, points, other_frames, other_points, components, frames, dim, rows, part = sizes
    parts = (queries + part - 1) // part
    first = job % parts * part
    t = job // parts % targets
    h = job // (parts * targets) % heads
    b = job // (parts * targets * heads)
    level_count = levels.shape[0]
    row_bytes = dim * 4
    slab_bytes = rows * row_bytes
    head = slabs + (b * heads + h) * frames * slab_bytes
    own_count = level_count * points
    frame_count = level_count * other_points
    weights = np.empty(own_count + other_frames * frame_count, np.float32)
    for q in range(first, min(first + part, queries)):
        own_row = at(logits, b, t, q, h)
        other_row = at(other_logits, b, t, q, h)
        norm = np.float32(1.0)
        if softmax:
            peak = largest(own_row, own_count, np.float32(-np.inf))
            peak = largest(other_row, other_frames * frame_count, peak)
            shift = peak if peak != np.float32(-np.inf) else np.float32(0.0)
            exponentials(weights, 0, own_row, own_count, shift)
            exponentials(weights, own_count, other_row, other_frames * frame_count, shift)
            norm = total_of(weights)
            write(at(lse, b, t, q, h), 0, shift + np.log(norm))
            norm = np.float32(1.0) / norm if norm != np.float32(0.0) else np.float32(0.0)
        else:
            copy_floats(weights, 0, own_row, own_count)
        own_reference = at(references, b, t, q, 0)
        other_reference = at(other_references, b, t, q, 0)
        own_offset = at(offsets, b, t, q, h)
        other_offset = at(other_offsets, b, t, q, h)
        target = at(output, b, t, q, h)
        for lane in range(0, dim, width_lanes(width)):
            total = attend_frame(
                width,
                zeros(width),
                head + table[t, 0] * slab_bytes + lane * 4,
                row_bytes,
                levels,
                components,
                own_reference,
                references[4],
                own_offset,
                points,
                weights,
                0,
                all_finite,
            )
            for other in range(other_frames):
                total = attend_frame(
                    width,
                    total,
                    head + table[t, 1 + other] * slab_bytes + lane * 4,
                    row_bytes,
                    levels,
                    components,
                    other_reference,
                    other_references[4],
                    other_offset + other * frame_count * 8,
                    other_points,
                    weights,
                    own_count + other * frame_count,
                    all_finite,
                )
            store(target + lane * 4, scale(norm, total))


def run_attention(
    problem: StdaProblem, tensors: StdaTensors[Tensor], starts: Sequence[int], *, softmax: bool
) -> tuple[Tensor, Tensor]:
    """Return output [B, T, Q, H * D] in the dtype of value and log-sum-exp [B, T, Q, H] (empty without softmax).

    `starts` are the first positions of the levels, which may lie anywhere in a frame. Without `softmax` the logits are
    the weights.
    """
    p, dtype = problem, tensors.value.dtype
    dim, width = row_width(p.head_dim)
    output = float_buffer(p.clips, p.targets, p.queries, p.heads, dim)
    lse = float_buffer(p.clips, p.targets, p.queries, p.heads if softmax else 0)
    levels, rows = level_table(p.spatial_shapes, starts)
    tensors = dense(tensors, dim)
    slabs = float_buffer(p.clips, p.heads, p.source_frames, rows, dim)
    finite = [True] * (p.clips * p.heads * p.source_frames)
    value, slab = view(tensors.value), slabs.data_ptr()

    def pack_job(job: int) -> None:
        finite[job] = pack(width, job, value, p.source_frames, p.heads, levels, rows, dim, slab)

    run_jobs(pack_job, len(finite))
    part = max(1, min(p.queries, _SAMPLES_PER_JOB // p.samples))
    arguments = (
        (*kernel_sizes(p, dim, rows), part),
        softmax,
        all(finite),
        levels,
        np.array(p.frame_table, np.int64),
        slab,
        tuple(map(view, tensors.own)),
        tuple(map(view, tensors.others)),
        view(output),
        view(lse),
    )
    run_jobs(lambda job: attend(width, job, *arguments), p.clips * p.heads * p.targets * math.ceil(p.queries / part))
    return output[..., : p.head_dim].flatten(3).to(dtype), lse


def kernel_sizes(p: StdaProblem, dim: int, rows: int) -> tuple[int, ...]:
    """The sizes of a problem as the kernels unpack them."""
    query = (p.targets, p.queries, p.heads, p.points, p.other_frames, p.other_points, p.components)
    return (*query, p.source_frames, dim, rows)


def stda_forward(
    problem: StdaProblem, tensors: StdaTensors[Tensor]
) -> Callable[[StdaTensors[Tensor]], tuple[Tensor, Tensor]]:
    """Prepare spatial-temporal deformable attention; see `stnet.kernels.backends`."""
    return lambda tensors: run_attention(problem, tensors, problem.level_starts, softmax=True)


def msda_forward(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> Callable[[MsdaTensors[Tensor]], Tensor]:
    """Prepare multi-scale deformable attention; see `stnet.kernels.backends`.

    What it returns raises ValueError for levels that do not lie within the positions of value.
    """
    return lambda tensors: run_attention(*as_attention(problem, tensors), softmax=False)[0].squeeze(1)


def as_attention(
    problem: MsdaProblem, tensors: MsdaTensors[Tensor]
) -> tuple[StdaProblem, StdaTensors[Tensor], Sequence[int]]:
    """The arguments of `run_attention` that make it `ms_deform_attn`."""
    p = problem
    if p.spatial_shapes is None:
        shapes, starts = read_levels(problem, tensors)
    else:
        shapes, starts = p.spatial_shapes, level_starts(p.spatial_shapes)
    box = torch.tensor([0.0, 0.0, 2.0 * p.points, 2.0 * p.points], dtype=torch.float32, device="cpu")
    box = box.expand(p.clips, 1, p.queries, p.levels, 4)
    no_samples = (p.clips, 1, p.queries, p.heads, 0, p.levels, 1)
    tensors = StdaTensors(
        value=tensors.value.unsqueeze(1),
        reference_points=box,
        offsets=tensors.sampling_locations.unsqueeze(1),
        logits=tensors.attention_weights.unsqueeze(1),
        other_offsets=float_buffer(*no_samples, 2),
        other_logits=float_buffer(*no_samples),
        other_reference_points=box,
    )
    return StdaProblem.of(tensors, tuple(shapes), ((0,),)), tensors, starts
