"""How tensors lie in memory, as launches describe it to kernels."""

from collections.abc import Sequence
from functools import cache

from torch import Tensor


def alignment(tensor: Tensor, dims: Sequence[int], limit: int = 16) -> int:
    """Return the bytes, a power of two up to `limit`, to which every slice along `dims` of a tensor is aligned."""
    size, shape, stride = tensor.element_size(), tensor.shape, tensor.stride()
    bits = limit if tensor.is_meta else tensor.data_ptr() | limit
    for dim in dims:
        if shape[dim] > 1:
            bits |= stride[dim] * size
    return bits & -bits


def packed(tensor: Tensor, dims: int) -> Tensor:
    """Return the tensor, copied if its last `dims` dimensions are not contiguous among themselves."""
    if dims == 0:
        return tensor
    shape, stride, expected = tensor.shape, tensor.stride(), 1
    for dim in range(-1, -1 - dims, -1):
        if shape[dim] > 1 and stride[dim] != expected:
            return tensor.contiguous()
        expected *= shape[dim]
    return tensor


def pack_all(tensors: Sequence[Tensor | None], dims: Sequence[int]) -> tuple[Tensor | None, ...]:
    """Return the tensors, each `packed` along its number of dimensions."""
    return tuple([None if x is None else packed(x, count) for x, count in zip(tensors, dims, strict=True)])


def strides(name: str, tensor: Tensor, dims: tuple[int, ...], letters: str) -> dict[str, int]:
    """Return the strides of `dims` in elements, as the kernels name them: `{name}_{letter}`."""
    stride = tensor.stride()
    return {key: stride[dim] for key, dim in _keys(name, dims, letters)}


@cache
def _keys(name: str, dims: tuple[int, ...], letters: str) -> tuple[tuple[str, int], ...]:
    return tuple((f"{name}_{letter}", dim) for letter, dim in zip(letters, dims, strict=True))
