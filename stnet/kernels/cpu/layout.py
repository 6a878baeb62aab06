"""How the CPU kernels get their tensors: by address and strides, in float32, read where they lie."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stnet.kernels.cpu.simd import Width, helper
from stnet.kernels.problem import STDA_DENSE_DIMS, StdaTensors

_LANES = (32, 16, 8)


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


def by_heads(x: Tensor) -> Tensor:
    """The same values [B, F, S, H, D] with the rows of a head one after another in memory."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def float_buffer(*shape: int) -> Tensor:
    """float32 memory on the CPU, whatever dtype and device PyTorch takes by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros_like_rows(x: Tensor) -> Tensor:
    """Zeros like values [B, F, S, H, D], with the rows in the same order in memory."""
    if x.stride(2) < x.stride(3):
        return torch.zeros_like(x.transpose(2, 3), memory_format=torch.contiguous_format).transpose(2, 3)
    return torch.zeros_like(x, memory_format=torch.contiguous_format)


def view(x: Tensor, dims: int = 4) -> tuple[int, ...]:
    """Address and byte strides of the first `dims` dimensions: how kernels get their tensors."""
    size = x.element_size()
    return (x.data_ptr(), *[stride * size for stride in x.stride()[:dims]])


@helper
def at(view, i, j, k, m):
    """Address of element [i, j, k, m] of a tensor given by `view`."""
    return view[0] + i * view[1] + j * view[2] + k * view[3] + m * view[4]
