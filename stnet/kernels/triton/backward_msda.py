"""The gradient kernel of multi-scale deformable attention: given weights a_i, no softmax, levels read on the device.

d a_i = <s_i, g>,    d location_i = a_i (w, h) * (<ds_i/dx, g>, <ds_i/dy, g>),    d value as in `backward_stda.py`.
"""

import triton
import triton.language as tl

from stnet.kernels.triton.backward_samples import (
    Level,
    corner_dots,
    gather_channels,
    interpolate,
    locate,
    output_gradient,
    scatter,
)
from stnet.kernels.triton.sampling import level_size

_NUMBERS = (
    "queries", "heads", "levels", "grad_output_b", "grad_output_q", "value_b", "value_h",
    "locations_b", "locations_q", "locations_h", "weights_b", "weights_q", "weights_h", "grad_value_b",
)  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def msda_backward_kernel(
    grad_output,  # [N, Q, H * D]
    value,  # [N, S, H, D]
    locations,  # [N, Q, H, L, P, 2]
    weights,  # [N, Q, H, L, P]
    shapes,  # int32 or int64 [L, 2]
    starts,  # int32 or int64 [L]
    scale,  # float32 [1] of the fixed-point value gradient
    grad_value,  # float32 or int64 [N, S, H, D] of zeros, contiguous
    grad_locations,  # like locations, contiguous
    grad_weights,  # like weights, contiguous
    queries,
    heads,
    levels,
    grad_output_b, grad_output_q,
    value_b, value_h,
    locations_b, locations_q, locations_h,
    weights_b, weights_q, weights_h,
    grad_value_b,
    config: tl.constexpr,  # Config
    POINTS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    STEP: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    NEED_LOCATIONS: tl.constexpr,
    NEED_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * batch, heads), or the other way round."""
    ROWS: tl.constexpr = BLOCK_QUERIES * STEP
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    item = (tl.program_id(1 - config.HEAD_AXIS) // blocks).to(tl.int64)
    head = tl.program_id(config.HEAD_AXIS).to(tl.int64)
    row = tl.arange(0, ROWS)
    point = row % STEP
    query = tl.program_id(1 - config.HEAD_AXIS) % blocks * BLOCK_QUERIES + row // STEP
    mask = query < queries
    query = tl.minimum(query, queries - 1).to(tl.int64)

    fixed_scale = 1.0
    if FIXED_POINT:
        fixed_scale = tl.load(scale)
    grad_output += item * grad_output_b + head * config.D + query * grad_output_q
    gradient = output_gradient(grad_output, fixed_scale, queries, config)
    locations += item * locations_b + head * locations_h + query * locations_q + 2 * point
    weights += item * weights_b + head * weights_h + query * weights_q + point
    first_sample = ((item * queries + query) * heads + head) * levels * POINTS + point
    grad_locations += 2 * first_sample
    grad_weights += first_sample
    value += item * value_b + head * value_h + gather_channels(config)
    grad_value += item * grad_value_b + head * config.D

    for level_index in range(levels):
        height, width, start = level_size(shapes, starts, level_index)
        start = start.to(tl.int64)
        level = Level(height, width, value + start * config.CELL_STRIDE, grad_value + start * config.GRAD_CELL_STRIDE)
        for step in range(POINTS // STEP):
            sample = level_index * POINTS + step * STEP
            x = tl.load(locations + 2 * sample, mask=mask, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + 2 * sample + 1, mask=mask, other=0.0).to(tl.float32) * height - 0.5
            samples = locate(x, y, height, width, config)
            if NEED_LOCATIONS or NEED_WEIGHTS:
                dots = corner_dots(samples, level, gradient, config)
            weight = tl.load(weights + sample, mask=mask, other=0.0).to(tl.float32)
            if config.NEED_VALUE:
                scatter(samples, tl.where(samples.inside, weight, 0.0), level, gradient, config)
            if NEED_LOCATIONS or NEED_WEIGHTS:
                dot, slope_x, slope_y = interpolate(samples, dots, tl.where(samples.inside, 1.0, 0.0))
                if NEED_WEIGHTS:
                    tl.store(grad_weights + sample, dot, mask=mask)
                if NEED_LOCATIONS:
                    tl.store(grad_locations + 2 * sample, weight * slope_x * width, mask=mask)
                    tl.store(grad_locations + 2 * sample + 1, weight * slope_y * height, mask=mask)
