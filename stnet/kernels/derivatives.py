"""What PyTorch is doing with a call besides running it: differentiating, mapping or tracing it."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad


def values_are_readable(x: Tensor) -> bool:
    """Whether a program may depend on the numbers of a tensor: not in a graph, on no device, or under a transform."""
    return not (
        torch.compiler.is_compiling()
        or x.is_meta
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or isinstance(x, FakeTensor)
    )


def forward_mode_is_open() -> bool:
    """Whether forward-mode derivatives may be taken: inside `torch.func.jvp`, `jacfwd`, `linearize` or `dual_level`."""
    return forward_ad._current_level >= 0


def forward_mode_is_wanted(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether tensors carry tangents, or under `torch.func`, whose levels hide each other, might."""
    if not forward_mode_is_open():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return has_tangents(tensors)


def has_tangents(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether any of the tensors carries a tangent of the innermost level."""
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)
