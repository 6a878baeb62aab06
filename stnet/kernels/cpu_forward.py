"""Forward pass of both operators on the CPU: one pass over the samples, softmax inside, nothing stored but the output.

A job takes some queries of one clip, head and target frame. `ms_deform_attn` is the same attention without softmax over
one frame: a location in [0, 1] is an offset from the reference box (0, 0, 2 P, 2 P).
"""

import math

import numpy as np
import torch
from torch import Tensor

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
from stnet.kernels.cpu_simd import (
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
from stnet.kernels.problem import check_levels_inside, level_starts

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
    total = np.float32(0.0)
    for i in range(numbers.shape[0]):
        total += numbers[i]
    return total


@helper
def copy_floats(target, first, address, count):
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
    references,
    offsets,
    logits,
    other_references,
    other_offsets,
    other_logits,
    output,
    lse,
):
    """Job (b, h, t, c): the output and log-sum-exp of the c-th part of the queries."""
    targets, queries, heads, points, others, other_points, components, frames, dim, rows, part = sizes
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
    weights = np.empty(own_count + others * frame_count, np.float32)
    for q in range(first, min(first + part, queries)):
        own_logits = at(logits, b, t, q, h)
        rest_logits = at(other_logits, b, t, q, h)
        norm = np.float32(1.0)
        if softmax:
            peak = largest(own_logits, own_count, np.float32(-np.inf))
            peak = largest(rest_logits, others * frame_count, peak)
            shift = peak if peak != np.float32(-np.inf) else np.float32(0.0)
            exponentials(weights, 0, own_logits, own_count, shift)
            exponentials(weights, own_count, rest_logits, others * frame_count, shift)
            norm = total_of(weights)
            write(at(lse, b, t, q, h), 0, shift + np.log(norm))
            norm = np.float32(1.0) / norm if norm != np.float32(0.0) else np.float32(0.0)
        else:
            copy_floats(weights, 0, own_logits, own_count)
        own_reference = at(references, b, t, q, 0)
        rest_reference = at(other_references, b, t, q, 0)
        own_offset = at(offsets, b, t, q, h)
        rest_offset = at(other_offsets, b, t, q, h)
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
            for other in range(others):
                total = attend_frame(
                    width,
                    total,
                    head + table[t, 1 + other] * slab_bytes + lane * 4,
                    row_bytes,
                    levels,
                    components,
                    rest_reference,
                    other_references[4],
                    rest_offset + other * frame_count * 8,
                    other_points,
                    weights,
                    own_count + other * frame_count,
                    all_finite,
                )
            store(target + lane * 4, scale(norm, total))


def run_attention(
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
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """The output [B, T, Q, H * D] in the dtype of value and the log-sum-exp [B, T, Q, H] (empty without softmax)."""
    clips, frames, _, heads, head_dim = value.shape
    _, targets, queries, _, _, points, _ = offsets.shape
    others, other_points = other_logits.shape[4], other_logits.shape[6]
    dim, width = row_width(head_dim)
    output = float_buffer(clips, targets, queries, heads, dim)
    lse = float_buffer(clips, targets, queries, heads if softmax else 0)
    if output.numel() == 0:
        return output.new_empty(clips, targets, queries, heads * head_dim, dtype=value.dtype), lse

    levels, rows = level_table(shapes, starts)
    rows_of_value = as_rows(value, dim)
    slabs = float_buffer(clips, heads, frames, rows, dim)
    finite = [True] * (clips * heads * frames)

    def pack_job(job: int) -> None:
        finite[job] = pack(width, job, view(rows_of_value), frames, heads, levels, rows, dim, slabs.data_ptr())

    run_jobs(pack_job, len(finite))

    tensors = (
        with_dense_tail(reference_points, 1),
        with_dense_tail(offsets, 3),
        with_dense_tail(logits, 2),
        with_dense_tail(other_reference_points, 1),
        with_dense_tail(other_offsets, 4),
        with_dense_tail(other_logits, 3),
        output,
        lse,
    )
    samples = len(shapes) * (points + others * other_points)
    part = max(1, min(queries, _SAMPLES_PER_JOB // samples))
    components = reference_points.shape[-1]
    sizes = (targets, queries, heads, points, others, other_points, components, frames, dim, rows, part)
    arguments = (
        sizes,
        softmax,
        all(finite),
        levels,
        np.array(frame_table, np.int64),
        slabs.data_ptr(),
        *(view(tensor) for tensor in tensors),
    )
    run_jobs(lambda job: attend(width, job, *arguments), clips * heads * targets * math.ceil(queries / part))
    return output[..., :head_dim].flatten(3).to(value.dtype), lse


def stda_forward(
    value,
    spatial_shapes,
    reference_points,
    offsets,
    logits,
    other_offsets,
    other_logits,
    frame_table,
    other_reference_points,
) -> tuple[Tensor, Tensor]:
    """Spatial-temporal deformable attention of checked CPU tensors.

    Returns the output [B, T, Q, H * D] in the dtype of value and the natural log-sum-exp of the logits [B, T, Q, H] in
    float32, -inf for rows of only -inf.
    """
    return run_attention(
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
        softmax=True,
    )


def msda_forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights) -> Tensor:
    """Multi-scale deformable attention of checked CPU tensors: [N, Q, H * D] in the dtype of value.

    Raises:
        ValueError: levels that do not lie within the positions of value.
    """
    problem = msda_as_attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return run_attention(**problem, softmax=False)[0].squeeze(1)


def msda_as_attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights) -> dict:
    """The arguments of `run_attention` that make it `ms_deform_attn`."""
    shapes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    check_levels_inside(shapes, starts, value.shape[1])
    batch, queries, heads, levels, points = attention_weights.shape
    box = torch.tensor([0.0, 0.0, 2.0 * points, 2.0 * points], dtype=torch.float32, device="cpu")
    box = box.expand(batch, 1, queries, levels, 4)
    return {
        "value": value.unsqueeze(1),
        "shapes": shapes,
        "starts": starts,
        "reference_points": box,
        "offsets": sampling_locations.unsqueeze(1),
        "logits": attention_weights.unsqueeze(1),
        "other_offsets": sampling_locations.new_empty(batch, 1, queries, heads, 0, levels, 1, 2),
        "other_logits": attention_weights.new_empty(batch, 1, queries, heads, 0, levels, 1),
        "frame_table": [[0]],
        "other_reference_points": box,
    }
