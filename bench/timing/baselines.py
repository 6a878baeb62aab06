"""Every implementation that is measured, ours and others'; those that are not installed are named as missing."""

import functools
import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.timing.inputs import MsdaInputs, StdaInputs
from bench.timing.published import Classic, Shapes, grid_sample_attention, published_attention
from stnet.kernels import ms_deform_attn, spatial_temporal_deform_attn
from stnet.kernels.problem import StdaProblem, level_starts

Stda = Callable[[StdaProblem, StdaInputs], Tensor]
Msda = Callable[[StdaProblem, MsdaInputs], Tensor]


class MissingError(Exception):
    """An implementation that cannot be measured here, with the reason."""


def classic(name: str) -> Classic:
    """Return a classic (single-frame) operator of somebody else.

    Raises:
        MissingError: the package is not installed, or does not load.
    """
    return CLASSICS[name]()


def stda(name: str) -> Stda:
    """Return an implementation of `spatial_temporal_deform_attn`, one of STDA.

    Raises:
        MissingError: as of `classic`.
    """
    if name.startswith(PUBLISHED):
        operator = classic(name.removeprefix(PUBLISHED))
        return lambda problem, inputs: _published(operator, problem, inputs)
    return {
        "stnet": partial(_stnet_stda, "auto"),
        "stnet, values by heads": partial(_stnet_stda, "auto"),
        "stnet, no value gradient": partial(_stnet_stda, "auto"),
        "reference": partial(_stnet_stda, "reference"),
        "reference compiled": _compiled(_stnet_stda),
    }[name]


def msda(name: str) -> Msda:
    """Return an implementation of the classic operator, one of MSDA.

    Raises:
        MissingError: as of `classic`.
    """
    if name in CLASSICS:
        operator = classic(name)
        return lambda problem, x: operator(x.value, problem.spatial_shapes, x.locations, x.weights)
    return {
        "stnet": partial(_stnet_msda, "auto"),
        "reference": partial(_stnet_msda, "reference"),
        "reference compiled": _compiled(_stnet_msda),
    }[name]


def missing() -> dict[str, str]:
    """Return implementations that cannot be measured here and why."""
    reasons = {}
    for name in CLASSICS:
        try:
            classic(name)
        except MissingError as error:
            reasons[name] = str(error)
    return reasons


def _stnet_stda(backend: str, problem: StdaProblem, x: StdaInputs) -> Tensor:
    return spatial_temporal_deform_attn(
        x.value,
        problem.spatial_shapes,
        x.reference_points,
        x.offsets,
        x.logits,
        x.other_offsets,
        x.other_logits,
        frame_table=problem.frame_table,
        backend=backend,
    )


def _stnet_msda(backend: str, problem: StdaProblem, x: MsdaInputs) -> Tensor:
    shapes = problem.spatial_shapes
    return ms_deform_attn(x.value, shapes, problem.level_starts, x.locations, x.weights, backend=backend)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return partial(torch.compile(function, dynamic=False), "reference")


def _published(operator: Classic, problem: StdaProblem, x: StdaInputs) -> Tensor:
    return published_attention(
        operator,
        x.value,
        problem.spatial_shapes,
        x.reference_points,
        x.offsets,
        x.logits,
        x.other_offsets,
        x.other_logits,
        frame_table=problem.frame_table,
    )


@functools.cache
def _level_tensors(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(shapes, device=device), torch.tensor(level_starts(shapes), device=device)


def _levels_of(value: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    return _level_tensors(tuple(shapes), value.device)


def _import(module: str, name: str):
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a package built for another torch or CUDA fails in many ways when it loads
        raise MissingError(f"{module}: {type(error).__name__}: {error}") from error


def _deformable_detr() -> Classic:
    """Deformable DETR's own CUDA operator. It knows float32 alone: 16-bit inputs are cast, as its users do."""
    compute = _import("MultiScaleDeformableAttention", "ms_deform_attn_forward")
    differentiate = _import("MultiScaleDeformableAttention", "ms_deform_attn_backward")

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, starts, locations, weights):
            ctx.save_for_backward(value, shapes, starts, locations, weights)
            return compute(value, shapes, starts, locations, weights, _step(value))

        @staticmethod
        def backward(ctx, gradient):
            inputs = ctx.saved_tensors
            gradients = differentiate(*inputs, gradient.contiguous(), _step(inputs[0]))
            return gradients[0], None, None, gradients[1], gradients[2]

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        tensors = (value.float().contiguous(), *_levels_of(value, shapes))
        return Operator.apply(*tensors, locations.float().contiguous(), weights.float().contiguous()).to(value.dtype)

    return attend


def _step(value: Tensor) -> int:
    """im2col_step has to divide the batch."""
    return next(step for step in range(min(64, len(value)), 0, -1) if len(value) % step == 0)


def _mmcv() -> Classic:
    function = _import("mmcv.ops.multi_scale_deform_attn", "MultiScaleDeformableAttnFunction")

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        return function.apply(value.contiguous(), *_levels_of(value, shapes), locations, weights, _step(value))

    return attend


def _deformops() -> Classic:
    function = _import("deformops.registry", "msda")

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        return function(value, *_levels_of(value, shapes), locations, weights.to(value.dtype))

    return attend


def _msda_triton() -> Classic:
    function = _import("msda_triton", "multiscale_deformable_attention")

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        options = {"padding_mode": "zeros", "align_corners": False}
        return function(value.contiguous(), _levels_of(value, shapes)[0], locations, weights, **options).flatten(-2)

    return attend


def _torch_ms_deform_attn() -> Classic:
    """Deformable DETR's operator as a package, which computes in float32.

    It casts what is given in 16 bits, but wants the locations in as many: samples would be off by parts of a cell.
    """
    function = _import("torch_ms_deform_attn", "ms_deform_attn")

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        tensors = (value.float().contiguous(), *_levels_of(value, shapes))
        return function(*tensors, locations.float().contiguous(), weights.float().contiguous()).to(value.dtype)

    return attend


def _transformers() -> Classic:
    layer = _import("transformers.models.deformable_detr.modeling_deformable_detr", "MultiScaleDeformableAttention")()

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        levels, starts = _levels_of(value, shapes)
        return layer(value, levels, list(shapes), starts, locations.to(value.dtype), weights, 64)

    return attend


CLASSICS: dict[str, Callable[[], Classic]] = {
    "grid_sample": lambda: grid_sample_attention,
    "Deformable DETR CUDA": functools.cache(_deformable_detr),
    "mmcv": functools.cache(_mmcv),
    "deformops": functools.cache(_deformops),
    "msda-triton": functools.cache(_msda_triton),
    "torch-ms-deform-attn": functools.cache(_torch_ms_deform_attn),
    "transformers": functools.cache(_transformers),
}
PUBLISHED = "published over "
STDA = (
    f"{PUBLISHED}grid_sample",
    "stnet",
    "stnet, values by heads",
    "stnet, no value gradient",
    "reference",
    f"{PUBLISHED}Deformable DETR CUDA",
    f"{PUBLISHED}torch-ms-deform-attn",
    f"{PUBLISHED}mmcv",
    f"{PUBLISHED}deformops",
    "reference compiled",
)
MSDA = ("reference", "stnet", *(name for name in CLASSICS if name != "grid_sample"), "reference compiled")
# What the CPU's ratios are taken against, within one run.
STDA_BASELINE, MSDA_BASELINE = STDA[0], MSDA[0]
