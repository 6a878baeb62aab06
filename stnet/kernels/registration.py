"""The fused backends as custom operators of PyTorch, `torch.ops.stnet.*`.

They are opaque to `torch.compile` and `torch.export`, have fake implementations and one backward operator each, which
has no derivative of its own. Shapes and frame table are flat lists of ints; the backend is chosen before. Saved for the
backward pass are only the inputs, the output and the log-sum-exp. Nothing is cast under autocast here:
`stnet.kernels.operators` says what is.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace

import torch
from torch import Tensor

from stnet.kernels.problem import level_starts


def _implementation(backend: str) -> SimpleNamespace:
    """The four functions of a fused backend, imported when it is first used."""
    names = ("cpu", "cpu") if backend == "cpu" else ("triton_forward", "triton_backward")
    forward, backward = (import_module(f"stnet.kernels.{name}") for name in names)
    return SimpleNamespace(
        stda_forward=forward.stda_forward,
        msda_forward=forward.msda_forward,
        stda_backward=backward.stda_backward,
        msda_backward=backward.msda_backward,
    )


def _pairs(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _rows(flat: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    length = len(flat) // max(1, count)
    return tuple(tuple(flat[i * length : (i + 1) * length]) for i in range(count))


@functools.cache
def _levels_on(device: torch.device, shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Levels as tensors; kept for good, since a captured CUDA graph holds their addresses."""
    return torch.tensor(shapes, device=device), torch.tensor(level_starts(shapes), device=device)


def _zero_gradients(inputs: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in _needed(inputs, needs)]


def _needed(items: Sequence, needs: Sequence[bool]) -> list:
    return [item for item, need in zip(items, needs, strict=True) if need]


def spread(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Put the gradients that were computed back in the places of their inputs."""
    remaining = iter(gradients)
    return [next(remaining) if need else None for need in needs]


@torch.library.custom_op("stnet::stda_forward", mutates_args=())
def stda_forward(
    value: Tensor,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    other_reference_points: Tensor,
    spatial_shapes: Sequence[int],
    frame_table: Sequence[int],
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    if offsets.shape[:3].numel() == 0:
        return _stda_outputs(value, offsets)
    return _implementation(backend).stda_forward(
        value,
        _pairs(spatial_shapes),
        reference_points,
        offsets,
        logits,
        other_offsets,
        other_logits,
        _rows(frame_table, offsets.shape[1]),
        other_reference_points,
    )


def _stda_outputs(value: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    clips, targets, queries, heads = offsets.shape[:4]
    output = value.new_empty(clips, targets, queries, heads * value.shape[4])
    return output, value.new_empty(clips, targets, queries, heads, dtype=torch.float32)


@stda_forward.register_fake
def _(value, reference_points, offsets, *rest):
    return _stda_outputs(value, offsets)


@torch.library.custom_op("stnet::stda_backward", mutates_args=())
def stda_backward(
    grad_output: Tensor,
    output: Tensor,
    lse: Tensor,
    value: Tensor,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    other_reference_points: Tensor,
    spatial_shapes: Sequence[int],
    frame_table: Sequence[int],
    needs: Sequence[bool],
    backend: str,
    deterministic: bool,
) -> list[Tensor]:
    inputs = (value, reference_points, offsets, logits, other_offsets, other_logits, other_reference_points)
    if output.numel() == 0:
        return _zero_gradients(inputs, needs)
    gradients = _implementation(backend).stda_backward(
        grad_output,
        value,
        _pairs(spatial_shapes),
        *inputs[1:6],
        _rows(frame_table, offsets.shape[1]),
        other_reference_points,
        output,
        lse,
        tuple(needs),
        deterministic,
    )
    return [gradient.contiguous() for gradient in _needed(gradients, needs)]


@stda_backward.register_fake
def _(grad_output, output, lse, *rest):
    *inputs, _, _, needs, _, _ = rest
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in _needed(inputs, needs)]


@torch.library.custom_op("stnet::msda_forward", mutates_args=())
def msda_forward(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: Tensor | None,
    level_start_index: Tensor | None,
    static_shapes: Sequence[int],
    backend: str,
    deterministic: bool,
) -> Tensor:
    if attention_weights.numel() == 0:
        return _msda_output(value, attention_weights).zero_()
    if spatial_shapes is None:
        spatial_shapes, level_start_index = _levels_on(value.device, _pairs(static_shapes))
    return _implementation(backend).msda_forward(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def _msda_output(value: Tensor, attention_weights: Tensor) -> Tensor:
    batch, queries, heads = attention_weights.shape[:3]
    return value.new_empty(batch, queries, heads * value.shape[3])


@msda_forward.register_fake
def _(value, sampling_locations, attention_weights, *rest):
    return _msda_output(value, attention_weights)


@torch.library.custom_op("stnet::msda_backward", mutates_args=())
def msda_backward(
    grad_output: Tensor,
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: Tensor | None,
    level_start_index: Tensor | None,
    static_shapes: Sequence[int],
    needs: Sequence[bool],
    backend: str,
    deterministic: bool,
) -> list[Tensor]:
    if attention_weights.numel() == 0:
        return _zero_gradients((value, sampling_locations, attention_weights), needs)
    if spatial_shapes is None:
        spatial_shapes, level_start_index = _levels_on(value.device, _pairs(static_shapes))
    gradients = _implementation(backend).msda_backward(
        grad_output,
        value,
        spatial_shapes,
        level_start_index,
        sampling_locations,
        attention_weights,
        tuple(needs),
        deterministic,
    )
    return [gradient.contiguous() for gradient in _needed(gradients, needs)]


@msda_backward.register_fake
def _(grad_output, value, sampling_locations, attention_weights, *rest):
    _, _, _, needs, _, _ = rest
    inputs = _needed((value, sampling_locations, attention_weights), needs)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A registered operator and the one that computes its gradients.

    The arguments of `forward` begin with its differentiable tensors, `inputs` in number, and end with backend and
    `deterministic`. `backward` takes the gradient of the output, then, for a forward pass with further outputs, all of
    its outputs, then the arguments of `forward`, with the list of needed gradients before the last two.
    """

    forward: Callable
    backward: Callable
    inputs: int
    saves_outputs: bool

    def save(self, ctx, arguments: tuple, outputs: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs: tensors among the arguments, and the outputs where they are needed."""
        kept = outputs if self.saves_outputs else ()
        ctx.is_tensor = [x is None or isinstance(x, Tensor) for x in arguments]
        ctx.constants = [x for x, is_tensor in zip(arguments, ctx.is_tensor, strict=True) if not is_tensor]
        tensors = [x for x, is_tensor in zip(arguments, ctx.is_tensor, strict=True) if is_tensor]
        ctx.save_for_backward(*kept, *tensors)
        ctx.kept = len(kept)
        if len(outputs) > 1:
            ctx.mark_non_differentiable(*outputs[1:])

    def backward_arguments(self, ctx, grad_output: Tensor, needs: Sequence[bool]) -> list:
        """Arguments of `backward` from what `save` kept."""
        saved, constants = iter(ctx.saved_tensors), iter(ctx.constants)
        kept = [next(saved) for _ in range(ctx.kept)]
        arguments = [next(saved if is_tensor else constants) for is_tensor in ctx.is_tensor]
        return [grad_output, *kept, *arguments[:-2], list(needs), *arguments[-2:]]


STDA = Operator(forward=stda_forward, backward=stda_backward, inputs=7, saves_outputs=True)
MSDA = Operator(forward=msda_forward, backward=msda_backward, inputs=3, saves_outputs=False)


def _register_gradients(operator: Operator) -> None:
    def save(ctx, inputs, output):
        operator.save(ctx, inputs, output if isinstance(output, tuple) else (output,))

    def gradients(ctx, grad_output, *_):
        needs = ctx.needs_input_grad[: operator.inputs]
        computed = operator.backward(*operator.backward_arguments(ctx, grad_output, needs))
        return *spread(computed, needs), *[None] * (len(ctx.is_tensor) - operator.inputs)

    operator.forward.register_autograd(gradients, setup_context=save)
    operator.backward.register_autograd(no_second_derivative)


def no_second_derivative(ctx, *gradients):
    raise NotImplementedError(
        'the fused kernels have no second derivative; call the operator with backend="reference" for that'
    )


for _operator in (STDA, MSDA):
    _register_gradients(_operator)
