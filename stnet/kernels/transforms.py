"""The fused operators under the transforms of `torch.func`: `grad`, `jacrev`, `vmap` and their combinations.

The gradients that PyTorch generates for a registered operator know nothing of these transforms. Here each operator and
its gradients are an `autograd.Function` that does. A dimension that `vmap` adds is folded into the clips, which every
tensor has first, so that mapped calls run as one. Forward mode goes to the reference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stnet.kernels.registration import Operator, no_second_derivative, spread


class Transformable(torch.autograd.Function):
    """`apply(operator, *arguments)` is `operator.forward(*arguments)`, a tuple of tensors."""

    @staticmethod
    def forward(operator: Operator, *arguments):
        output = operator.forward(*arguments)
        return output if isinstance(output, tuple) else (output,)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.operator, *arguments = inputs
        ctx.operator.save(ctx, arguments, output)

    @staticmethod
    def backward(ctx, grad_output, *_):
        count = ctx.operator.inputs
        needs = ctx.needs_input_grad[1 : 1 + count]
        arguments = ctx.operator.backward_arguments(ctx, grad_output, needs)
        gradients = _Gradients.apply(ctx.operator, *arguments)
        return None, *spread(gradients, needs), *[None] * (len(ctx.is_tensor) - count)

    @staticmethod
    def vmap(info, in_dims, operator, *arguments):
        outputs = Transformable.apply(operator, *_folded(info.batch_size, in_dims[1:], arguments))
        return _unfolded(info.batch_size, outputs)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(operator: Operator, *arguments):
        return tuple(operator.backward(*arguments))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        no_second_derivative(ctx, *gradients)

    @staticmethod
    def vmap(info, in_dims, operator, *arguments):
        outputs = _Gradients.apply(operator, *_folded(info.batch_size, in_dims[1:], arguments))
        return _unfolded(info.batch_size, outputs)


def _folded(size: int, dims: Sequence[int | None], arguments: Sequence) -> list:
    """Arguments of one call for `size` mapped ones: their mapped dimension first, and folded into the clips."""
    return [
        _fold(size, dim, x) if isinstance(x, Tensor) and x.is_floating_point() else _not_mapped(dim, x)
        for dim, x in zip(dims, arguments, strict=True)
    ]


def _fold(size: int, dim: int | None, x: Tensor) -> Tensor:
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def _not_mapped(dim: int | None, x: object) -> object:
    if isinstance(x, Tensor) and dim is not None:
        raise NotImplementedError(
            "vmap over spatial_shapes or level_start_index: the levels of a call must be the same for all items; "
            "pass them with in_dims=None"
        )
    return x


def _unfolded(size: int, outputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)
