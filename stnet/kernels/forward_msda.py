"""Forward kernel of multi-scale deformable attention (Deformable DETR, equation 3).

    output = sum_s weight_s * sample(location_s * (width, height) - 0.5)

over all levels and points of a query and head, the weights used as they are. The levels' sizes are read on the device.
Programs and lanes share the work as in `stnet.kernels.forward_stda`.
"""

import triton
import triton.language as tl

from stnet.kernels.forward_samples import add_samples
from stnet.kernels.sampling import any_not_finite, level_size, matrix_identity, split_pairs


@triton.jit
def _sum_weighted(
    value,  # pointer to the batch item and head
    shapes,
    starts,
    locations,  # pointers [N] to level 0
    weights,
    levels,
    channel_stride,
    POINTS: tl.constexpr,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    MASKED: tl.constexpr,
    PTX: tl.constexpr,
):
    """Sum [N, C] of the weighted samples of N queries."""
    K: tl.constexpr = 1 if MASKED else 2 - POINTS % 2
    total = tl.zeros([locations.shape[0], C], tl.float32)
    identity = 0
    if ARITHMETIC == "matrix":
        identity = matrix_identity(value.dtype.element_ty == tl.bfloat16)
    channels = value + tl.arange(0, C)[None, :] * channel_stride
    for level in range(levels):
        height, width, start = level_size(shapes, starts, level)
        cells = channels + start.to(tl.int64) * ROW
        right = tl.minimum(width - 1, 1) * ROW
        down = tl.where(height > 1, width.to(tl.int64) * ROW, 0)
        for point in range(0, POINTS, K):
            first = level * POINTS + point
            pairs = tl.load(locations[:, None] + 2 * first + tl.arange(0, 2 * K)[None, :]).to(tl.float32)
            weight = tl.load(weights[:, None] + first + tl.arange(0, K)[None, :]).to(tl.float32)
            x, y = split_pairs(pairs)
            x = x * width.to(tl.float32) - 1.0
            y = y * height.to(tl.float32) - 1.0
            total = add_samples(
                total, identity, cells, right, down, x, y, weight, height, width,
                ROW, WIDE, VECTOR, D, ARITHMETIC, MASKED, True, PTX,
            )  # fmt: skip
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
    POINTS: tl.constexpr,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    CHANNEL: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGN: tl.constexpr,
    STORE: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks * batch, heads * channel blocks). The constants are those of `stda_forward_kernel`."""
    PARTS: tl.constexpr = (D + C - 1) // C
    head = (tl.program_id(1) // PARTS).to(tl.int64)
    channel = tl.minimum(tl.program_id(1) % PARTS * C, D - C if D > C else 0)
    blocks = tl.cdiv(queries, BLOCK)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    slot = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    query = tl.minimum(slot, queries - 1).to(tl.int64)

    value += item * value_b + head * value_h + channel.to(tl.int64) * value_d
    locations = tl.multiple_of(locations + item * locations_b + head * locations_h + query * locations_q, [ALIGN])
    weights = tl.multiple_of(weights + item * weights_b + head * weights_h + query * weights_q, [ALIGN])
    channel_stride = value_d
    if CHANNEL == 1:
        channel_stride = 1

    total = _sum_weighted(
        value, shapes, starts, locations, weights, levels, channel_stride,
        POINTS, ROW, WIDE, VECTOR, D, C, ARITHMETIC, False, PTX,
    )  # fmt: skip
    if any_not_finite(total):
        total = _sum_weighted(
            value, shapes, starts, locations, weights, levels, channel_stride,
            POINTS, ROW, WIDE, VECTOR, D, C, "float32", True, PTX,
        )  # fmt: skip

    row = (item * queries + query) * (tl.num_programs(1) // PARTS) + head
    channels = tl.arange(0, C)[None, :]
    inside = (slot < queries)[:, None] & (channels < D)
    result = (output + row * D + channel)[:, None] + channels
    SIZE: tl.constexpr = output.dtype.element_ty.primitive_bitwidth // 8
    result = tl.multiple_of(tl.max_contiguous(result, [1, STORE]), [1, STORE * SIZE])
    tl.store(result, total.to(output.dtype.element_ty), mask=inside)
