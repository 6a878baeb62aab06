"""Gradients of reference points, and of offsets that are multiples of a box, from gradients by pixels."""

import math

import numpy as np
from torch import Tensor

from stnet.kernels.cpu.jobs import next_job, run_jobs
from stnet.kernels.cpu.layout import at, float_buffer, view
from stnet.kernels.cpu.samples import place
from stnet.kernels.cpu.simd import kernel, read, read_long, write
from stnet.kernels.cpu.team import on_team

_QUERIES_PER_JOB = 64


@kernel
def position_backward(
    me, jobs, sizes, want_reference, levels, references, offsets, offset_gradient, reference_gradient
):
    """Job (b, t, c): reference-point gradients of some queries; gradients by pixels become gradients by offsets."""
    targets, queries, heads, groups, points, components, part = sizes
    parts = (queries + part - 1) // part
    half = np.float32(0.5)
    levels, level_count = levels
    job = next_job(jobs, me)
    while job >= 0:
        first = job % parts * part
        t = job // parts % targets
        b = job // (parts * targets)
        for q in range(first, min(first + part, queries)):
            for level in range(level_count):
                size_y, size_x = np.float32(read_long(levels, 2 * level)), np.float32(read_long(levels, 2 * level + 1))
                reference = at(references, b, t, q, level)
                _, _, scale_x, scale_y = place(reference, components, size_x, size_y, points)
                centre_x = centre_y = box_w = box_h = np.float32(0.0)
                for h in range(heads):
                    offset_row = at(offsets, b, t, q, h)
                    gradient_row = at(offset_gradient, b, t, q, h)
                    for group in range(groups):
                        start = (group * level_count + level) * points * 2
                        for k in range(start, start + 2 * points, 2):
                            pixel_x, pixel_y = read(gradient_row, k), read(gradient_row, k + 1)
                            centre_x += pixel_x
                            centre_y += pixel_y
                            if components == 4:
                                # A sample that was skipped has gradient zero, and perhaps an infinite offset.
                                if pixel_x != np.float32(0.0):
                                    box_w += pixel_x * read(offset_row, k)
                                    write(gradient_row, k, pixel_x * scale_x)
                                if pixel_y != np.float32(0.0):
                                    box_h += pixel_y * read(offset_row, k + 1)
                                    write(gradient_row, k + 1, pixel_y * scale_y)
                if want_reference:
                    target = at(reference_gradient, b, t, q, level)
                    write(target, 0, centre_x * size_x)
                    write(target, 1, centre_y * size_y)
                    if components == 4:
                        write(target, 2, box_w * half * size_x / np.float32(points))
                        write(target, 3, box_h * half * size_y / np.float32(points))
        job = next_job(jobs, me)


@kernel
def position_backward_on_team(parallel, number, threads, *arguments):
    """`position_backward` on every thread; see `run_jobs`."""
    return on_team(parallel, number, threads, position_backward, arguments)


def convert_position_gradients(
    levels: np.ndarray,
    points: int,
    references: Tensor,  # [B, T, Q, L, R]
    offsets: Tensor,  # [B, T, Q, H, ..., L, P, 2]
    pixel_gradient: Tensor,  # like offsets; becomes the gradient by offsets
    reference_gradient: Tensor | None,  # like references; written
) -> None:
    """Sum the gradients of sampling positions over heads, frames and points, in a fixed order."""
    clips, targets, queries, _, components = references.shape
    heads, groups = offsets.shape[3], math.prod(offsets.shape[4:-3])
    part = min(queries, _QUERIES_PER_JOB)
    sizes = (targets, queries, heads, groups, points, components, part)
    wanted = reference_gradient is not None
    target = reference_gradient if wanted else float_buffer(0, 0, 0, 0)
    views = [view(x) for x in (references, offsets, pixel_gradient, target)]
    run_jobs(
        position_backward,
        position_backward_on_team,
        (sizes, wanted, (levels.ctypes.data, len(levels)), *views),
        clips * targets * math.ceil(queries / part),
    )
