"""How tensors lie in memory, as launches describe it to kernels."""

from collections.abc import Sequence

from torch import Tensor


def alignment(tensor: Tensor, dims: Sequence[int], limit: int = 16) -> int:
    """Bytes, a power of two up to `limit`, to which every slice along `dims` of a tensor is aligned."""
    size = tensor.element_size()
    bits = limit if tensor.is_meta else tensor.data_ptr() | limit
    for dim in dims:
        if tensor.shape[dim] > 1:
            bits |= tensor.stride(dim) * size
    return bits & -bits


def packed(tensor: Tensor, dims: int) -> Tensor:
    """The tensor, copied if its last `dims` dimensions are not contiguous among themselves."""
    expected = 1
    for dim in range(tensor.dim() - 1, tensor.dim() - 1 - dims, -1):
        if tensor.shape[dim] > 1 and tensor.stride(dim) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[dim]
    return tensor


def strides(name: str, tensor: Tensor, dims: tuple[int, ...], letters: str) -> dict[str, int]:
    """Strides of `dims` in elements, as the kernels name them: `{name}_{letter}`."""
    return {f"{name}_{letter}": tensor.stride(dim) for letter, dim in zip(letters, dims, strict=True)}
