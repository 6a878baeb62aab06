"""The fused backends as custom operators of PyTorch, `torch.ops.stnet.*`.

They are opaque to `torch.compile` and `torch.export`, have fake implementations and one backward operator each, which
has no derivative of its own. Shapes and frame table are flat lists of ints; the backend is chosen before. Saved for the
backward pass are only the inputs, the output and the log-sum-exp. Nothing is cast under autocast here:
`stnet.kernels.operators` says what is.
"""

import functools
from collections.abc import Sequence
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


def _spread(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Put the gradients that were computed back in the places of their inputs."""
    remaining = iter(gradients)
    return [next(remaining) if need else None for need in needs]


@torch.library.custom_op("stnet::stda_forward", mutates_args=())
def stda_forward(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: Sequence[int],
    other_reference_points: Tensor,
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
def _(value, spatial_shapes, reference_points, offsets, *rest):
    return _stda_outputs(value, offsets)


@torch.library.custom_op("stnet::stda_backward", mutates_args=())
def stda_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: Sequence[int],
    other_reference_points: Tensor,
    output: Tensor,
    lse: Tensor,
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
def _(grad_output, value, spatial_shapes, *rest):
    *inputs, _, other_reference_points, _, _, needs, _, _ = rest
    inputs = (value, *inputs, other_reference_points)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in _needed(inputs, needs)]


_STDA_TENSORS = (0, 2, 3, 4, 5, 6, 8)  # places of the tensors among the operator's arguments


def _stda_save(ctx, inputs, output):
    ctx.save_for_backward(*(inputs[i] for i in _STDA_TENSORS), *output)
    ctx.spatial_shapes, ctx.frame_table, ctx.backend, ctx.deterministic = (inputs[i] for i in (1, 7, 9, 10))
    ctx.set_materialize_grads(False)


def _stda_gradients(ctx, grad_output, grad_lse):
    *inputs, other_reference_points, output, lse = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in _STDA_TENSORS]
    gradients = stda_backward(
        grad_output,
        inputs[0],
        ctx.spatial_shapes,
        *inputs[1:],
        ctx.frame_table,
        other_reference_points,
        output,
        lse,
        needs,
        ctx.backend,
        ctx.deterministic,
    )
    value, *rest, other_references = _spread(gradients, needs)
    return value, None, *rest, None, other_references, None, None


stda_forward.register_autograd(_stda_gradients, setup_context=_stda_save)


@torch.library.custom_op("stnet::msda_forward", mutates_args=())
def msda_forward(
    value: Tensor,
    spatial_shapes: Tensor | None,
    level_start_index: Tensor | None,
    static_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
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
def _(value, spatial_shapes, level_start_index, static_shapes, sampling_locations, attention_weights, *rest):
    return _msda_output(value, attention_weights)


@torch.library.custom_op("stnet::msda_backward", mutates_args=())
def msda_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    level_start_index: Tensor | None,
    static_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
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
def _(grad_output, value, spatial_shapes, level_start_index, static_shapes, *rest):
    sampling_locations, attention_weights, needs, _, _ = rest
    inputs = _needed((value, sampling_locations, attention_weights), needs)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


_MSDA_TENSORS = (0, 4, 5)


def _msda_save(ctx, inputs, output):
    ctx.save_for_backward(*(inputs[i] for i in (*_MSDA_TENSORS, 1, 2)))
    ctx.static_shapes, ctx.backend, ctx.deterministic = (inputs[i] for i in (3, 6, 7))


def _msda_gradients(ctx, grad_output):
    value, sampling_locations, attention_weights, *levels = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in _MSDA_TENSORS]
    gradients = msda_backward(
        grad_output,
        value,
        *levels,
        ctx.static_shapes,
        sampling_locations,
        attention_weights,
        needs,
        ctx.backend,
        ctx.deterministic,
    )
    value, *rest = _spread(gradients, needs)
    return value, None, None, None, *rest, None, None


msda_forward.register_autograd(_msda_gradients, setup_context=_msda_save)


def _no_second_derivative(ctx, *gradients):
    raise NotImplementedError(
        'the fused kernels have no second derivative; call the operator with backend="reference" for that'
    )


stda_backward.register_autograd(_no_second_derivative)
msda_backward.register_autograd(_no_second_derivative)
