"""Values as the CPU kernels read them, and the sampling positions they compute.

A slab holds the values of one head in one frame, head rows of D float32 one after another. Every level is surrounded
by zero rows: one column left of it (which is also the column right of the row above), one line above and below, one row
after the end. A sample that lies less than one cell outside thus needs no test of its corners. What the kernels know of
a level is a line of `level_table`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stnet.kernels.cpu.simd import Width, dot, helper, load, multiply_add, read, store, width_lanes, zeros
from stnet.kernels.problem import STDA_DENSE_DIMS, StdaTensors

_LANES = (32, 16, 8)


def level_table(shapes, starts) -> tuple[np.ndarray, int]:
    """Lines (height, width, first row in a slab, first position in a frame) and the number of rows of a slab."""
    lines, rows = [], 0
    for (height, width), start in zip(shapes, starts, strict=True):
        lines.append((height, width, rows, start))
        rows += (height + 2) * (width + 1) + 1
    return np.array(lines, np.int64), rows


def row_width(head_dim: int) -> tuple[int, Width]:
    """Channels of a padded head row, and the vector width that divides it."""
    padded = -(-head_dim // _LANES[-1]) * _LANES[-1]
    return padded, Width(next(lanes for lanes in _LANES if padded % lanes == 0))


def as_rows(x: Tensor, head_dim: int) -> Tensor:
    """float32 with the last dimension contiguous and padded to `head_dim`; the same tensor where it is that already."""
    x = F.pad(x.float(), (0, head_dim - x.shape[-1])) if x.shape[-1] != head_dim else x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def with_dense_tail(x: Tensor, dims: int) -> Tensor:
    """float32 with the last `dims` dimensions contiguous; slices of a packed projection are left in place."""
    x, expected = x.float(), 1
    for size, stride in zip(x.shape[: -dims - 1 : -1], x.stride()[: -dims - 1 : -1], strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def dense(tensors: StdaTensors[Tensor], dim: int) -> StdaTensors[Tensor]:
    """float32, rows of values padded to `dim` channels, and the samples of a query and head contiguous."""
    others = zip(tensors[1:], STDA_DENSE_DIMS[1:], strict=True)
    return StdaTensors(as_rows(tensors.value, dim), *(with_dense_tail(x, dims) for x, dims in others))


def float_buffer(*shape: int) -> Tensor:
    """float32 memory on the CPU, whatever dtype and device PyTorch takes by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def view(x: Tensor, dims: int = 4) -> tuple[int, ...]:
    """Address and byte strides of the first `dims` dimensions: how kernels get their tensors."""
    size = x.element_size()
    return (x.data_ptr(), *[stride * size for stride in x.stride()[:dims]])


@helper
def at(view, i, j, k, m):
    """Address of element [i, j, k, m] of a tensor given by `view`."""
    return view[0] + i * view[1] + j * view[2] + k * view[3] + m * view[4]


@helper
def pack_slab(width, source, step, levels, dim, slab):
    """Copy positions `source`, `step` bytes apart, to a slab with zero borders; True where all of them are finite."""
    row_bytes = dim * 4
    suspicion = zeros(width)
    for lane in range(0, dim, width_lanes(width)):
        for level in range(levels.shape[0]):
            height, columns = levels[level, 0], levels[level, 1]
            target = slab + levels[level, 2] * row_bytes + lane * 4
            origin = source + levels[level, 3] * step + lane * 4
            for _ in range(columns + 1):
                store(target, zeros(width))
                target += row_bytes
            for _ in range(height):
                store(target, zeros(width))
                target += row_bytes
                for _ in range(columns):
                    row = load(width, origin)
                    suspicion = multiply_add(suspicion, np.float32(0.0), row)
                    store(target, row)
                    target += row_bytes
                    origin += step
            for _ in range(columns + 2):
                store(target, zeros(width))
                target += row_bytes
    # 0 times a value is 0 where it is finite, NaN elsewhere.
    return dot(suspicion, suspicion) == np.float32(0.0)


@helper
def place(reference, components, size_x, size_y, points):
    """Base and scale of x and y in pixels: a sample lies at base + scale * offset."""
    base_x = read(reference, 0) * size_x - np.float32(0.5)
    base_y = read(reference, 1) * size_y - np.float32(0.5)
    if components == 2:
        return base_x, base_y, np.float32(1.0), np.float32(1.0)
    half = np.float32(0.5)
    count = np.float32(points)
    return base_x, base_y, read(reference, 2) * half * size_x / count, read(reference, 3) * half * size_y / count
