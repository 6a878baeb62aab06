"""Forward kernel of multi-scale deformable attention (Deformable DETR, equation 3).

    output = sum_s weight_s * sample(location_s * (width, height) - 0.5)

over all levels and points of a query and head, the weights used as they are. The levels' sizes are read on the device.
Programs and lanes share the work as in `stnet.kernels.triton.forward_stda`.
"""

import triton
import triton.language as tl

from stnet.kernels.triton.forward_samples import (
    Level,
    add_samples,
    channel_pointers,
    first_channel,
    program_heads,
    store_output,
)
from stnet.kernels.triton.sampling import any_not_finite, level_size, matrix_identity, split_pairs


@triton.jit
def _sum_weighted(
    value,  # pointer to the item, the first head and channel
    channel_stride,
    row_head,  # see `Level.head`
    shapes,
    starts,
    locations,  # pointers [N] to level 0
    weights,
    levels,
    config: tl.constexpr,
    POINTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Sum [N, C] of the weighted samples of N queries."""
    K: tl.constexpr = 1 if MASKED else 2 - POINTS % 2
    CHANNELS: tl.constexpr = config.BLOCK_CHANNELS  # Triton 3.6 takes no attribute of a tuple for a constant in lists
    total = tl.zeros([locations.shape[0], CHANNELS], tl.float32)
    identity = 0
    if config.ARITHMETIC == "matrix" and not MASKED:
        identity = matrix_identity(value.dtype.element_ty == tl.bfloat16)
    channels = channel_pointers(value, channel_stride, config)
    for index in range(levels):
        height, width, start = level_size(shapes, starts, index)
        cells = channels + start.to(tl.int64) * config.CELL_STRIDE
        right = tl.minimum(width - 1, 1) * config.CELL_STRIDE
        down = tl.where(height > 1, width.to(tl.int64) * config.CELL_STRIDE, 0)
        level = Level(height, width, cells, right, down, row_head)
        for point in range(0, POINTS, K):
            first = index * POINTS + point
            pairs = tl.load(locations[:, None] + 2 * first + tl.arange(0, 2 * K)[None, :]).to(tl.float32)
            weight = tl.load(weights[:, None] + first + tl.arange(0, K)[None, :]).to(tl.float32)
            x, y = split_pairs(pairs)
            x = x * width.to(tl.float32) - 1.0
            y = y * height.to(tl.float32) - 1.0
            total = add_samples(total, identity, level, x, y, weight, config, MASKED)
    return total


_MSDA_NUMBERS = (
    "queries", "levels", "value_b", "value_h", "value_d",
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
    value_b, value_h, value_d,
    locations_b, locations_q, locations_h,
    weights_b, weights_q, weights_h,
    config: tl.constexpr,  # Config
    POINTS: tl.constexpr,
    ALIGN: tl.constexpr,  # bytes to which every query's locations and weights are aligned
    BLOCK_QUERIES: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * batch, head blocks * channel blocks)."""
    HEADS: tl.constexpr = config.BLOCK_HEADS  # Triton 3.6 takes no attribute of a tuple for a constant in lists
    line = tl.arange(0, BLOCK_QUERIES * HEADS)  # queries, and fastest heads
    SIZE: tl.constexpr = value.dtype.element_ty.primitive_bitwidth // 8
    first, head, row_head, heads = program_heads(line, value_h, SIZE, config)
    channel = first_channel(config)
    blocks = tl.cdiv(queries, BLOCK_QUERIES)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    slot = tl.program_id(0) % blocks * BLOCK_QUERIES + line // HEADS
    query = tl.minimum(slot, queries - 1).to(tl.int64)

    value += item * value_b + first * value_h + channel.to(tl.int64) * value_d
    locations = tl.multiple_of(locations + item * locations_b + head * locations_h + query * locations_q, [ALIGN])
    weights = tl.multiple_of(weights + item * weights_b + head * weights_h + query * weights_q, [ALIGN])
    total = _sum_weighted(value, value_d, row_head, shapes, starts, locations, weights, levels, config, POINTS, False)
    if any_not_finite(total):
        total = _sum_weighted(
            value, value_d, row_head, shapes, starts, locations, weights, levels, config, POINTS, True
        )

    row = (item * queries + query) * heads + head
    store_output(output, row, channel, total, slot < queries, config)
