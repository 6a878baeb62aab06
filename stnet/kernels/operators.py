"""The two public operators: argument checks and the choice of the backend."""

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stnet.kernels.problem import check_levels_inside, check_msda, check_stda
from stnet.kernels.reference import forward_mode_is_open, msda_reference, stda_reference, values_are_readable
from stnet.kernels.registration import MSDA, STDA, Operator, msda_backward
from stnet.kernels.transforms import Transformable

BACKENDS = ("auto", "triton", "cpu", "reference")
MAX_FUSED_HEAD_DIM = 256

_HAS_TRITON = find_spec("triton") is not None
_HAS_NUMBA = find_spec("numba") is not None


def spatial_temporal_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    *,
    frame_table: Sequence[Sequence[int]] | None = None,
    other_reference_points: Tensor | None = None,
    backend: str = "auto",
    deterministic: bool | None = None,
) -> Tensor:
    """Spatial-temporal deformable attention (STNet, MICCAI 2023): bilinear samples of the own and the other frames.

    Each query and head samples `value` at reference point + offset on every level of its own frame (P points) and of W
    other frames (Pt points each) and sums the samples, weighted by one softmax over all L * P + W * L * Pt logits.
    Positions follow the half-pixel convention: x = ref_x * w + offset_x - 0.5 pixels on a level w cells wide; with
    4-component references x = (cx + offset_x / n * ref_w * 0.5) * w - 0.5, n the points per level of that group. Cells
    outside a level count as zero. A position that is not finite or a cell or more outside samples 0 and gets no
    gradient; a logit of -inf excludes its sample; a row of only -inf gives 0.

    Inputs may be float32, float16 or bfloat16 in any mix (positions are best kept in float32) with any strides; sums
    are taken in float32. float64 and heads wider than 256 are computed by the reference. Under autocast a float32 value
    is cast to autocast's dtype, as a matrix product would; reference points, offsets and logits are used as they come.

    The kernels have first derivatives in reverse mode, also under `torch.func.grad`, `jacrev` and `vmap`. Forward mode
    (`jvp`, `jacfwd`, `make_dual`, `linearize`) is taken by the reference, and second derivatives need it by name.

    Args:
        value: features of the source frames, `[B, F, S, H, D]`.
        spatial_shapes: (h, w) of each of the L levels (1 to 8); their cells, concatenated, are the S positions.
        reference_points: (x, y) `[B, T, Q, L, 2]` or (cx, cy, w, h) `[B, T, Q, L, 4]` in units of the frame.
        offsets: own frame, `[B, T, Q, H, L, P, 2]`, in pixels of the level or in multiples of (w, h) / (2 P).
        logits: own frame, `[B, T, Q, H, L, P]`.
        other_offsets: other frames, `[B, T, Q, H, W, L, Pt, 2]`; W may be 0.
        other_logits: other frames, `[B, T, Q, H, W, L, Pt]`.
        frame_table: for each target frame its own source frame, then its W others. By default target t is source
            frame t and the others are the remaining frames in ascending order.
        other_reference_points: reference points for the other frames; by default `reference_points`.
        backend: "triton" (GPU), "cpu" (Numba), "reference" (PyTorch), or "auto": the fastest that can run here.
        deterministic: whether gradients have the same bits in every run; by default as
            `torch.use_deterministic_algorithms` says. On a GPU the backward pass then takes two launches instead of
            one, so that its sums, of 8 bytes a number, need no more memory than otherwise (with one head: twice as
            much), and gradients of reference points are collected in a slice for each head.

    Returns:
        `[B, T, Q, H * D]` in the dtype of value.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes, devices or frame indices that do not fit, or a backend that cannot run this call.
    """
    problem = check_stda(
        value,
        spatial_shapes,
        reference_points,
        offsets,
        logits,
        other_offsets,
        other_logits,
        frame_table,
        other_reference_points,
    )
    if other_reference_points is None:
        other_reference_points = reference_points
    value = _autocast(value)
    tensors = (value, reference_points, offsets, logits, other_offsets, other_logits, other_reference_points)
    backend = _choose_backend(backend, tensors)
    if backend == "reference":
        return stda_reference(problem, *tensors)
    output, _ = _call(
        STDA,
        *tensors,
        [size for shape in problem.spatial_shapes for size in shape],
        [frame for row in problem.frame_table for frame in row],
        backend,
        _resolve_deterministic(deterministic),
    )
    return output


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
    *,
    backend: str = "auto",
    deterministic: bool | None = None,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3), a drop-in for the classic CUDA operator.

    Dtypes, strides, positions outside and autocast are treated as in `spatial_temporal_deform_attn`; the weights are
    used as they are: in float16 those below 6e-5 have fewer than eleven bits, those below 3e-8 are zero, and on NVIDIA
    GPUs the same holds for their products with the corner weights, where values are float16. Levels given as tensors
    are read on the device, without synchronization.

    Args:
        value: `[N, S, H, D]`.
        spatial_shapes: (h, w) of each of the L levels (1 to 64), ints or an integer tensor `[L, 2]` on value's device.
        level_start_index: first position of each level, ints or an integer tensor `[L]` on value's device.
        sampling_locations: (x, y) in [0, 1], `[N, Q, H, L, P, 2]`.
        attention_weights: `[N, Q, H, L, P]`.
        im2col_step: accepted and ignored; any batch size works.
        backend: see `spatial_temporal_deform_attn`.
        deterministic: see `spatial_temporal_deform_attn`.

    Returns:
        `[N, Q, H * D]` in the dtype of value.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes or devices that do not fit, or a backend that cannot run this call.
    """
    check_msda(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    tensors = (_autocast(value), sampling_locations, attention_weights)
    backend = _choose_backend(backend, tensors)
    if backend == "reference":
        return _msda_by_reference(tensors, spatial_shapes, level_start_index)
    on_device = isinstance(spatial_shapes, Tensor)
    return _call(
        MSDA,
        *tensors,
        spatial_shapes if on_device else None,
        level_start_index if on_device else None,
        [] if on_device else [size for shape in spatial_shapes for size in shape],
        backend,
        _resolve_deterministic(deterministic),
    )


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    *,
    backend: str = "auto",
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `ms_deform_attn` for code that keeps its own autograd function, as the classic operator's users do.

    Args:
        grad_output: `[N, Q, H * D]`; the others as in `ms_deform_attn`, levels as tensors.

    Returns:
        Gradients of value, sampling locations and attention weights.
    """
    if not isinstance(grad_output, Tensor):
        raise TypeError(f"grad_output is a {type(grad_output).__name__}, expected a tensor")
    tensors = (value, sampling_locations, attention_weights)
    check_msda(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output)
    if not isinstance(spatial_shapes, Tensor):
        raise TypeError("spatial_shapes and level_start_index must be tensors here")
    backend = _choose_backend(backend, (*tensors, grad_output))
    if backend == "reference":
        leaves = [x.detach().requires_grad_() for x in tensors]
        with torch.enable_grad():
            output = _msda_by_reference(leaves, spatial_shapes, level_start_index)
        return torch.autograd.grad(output, leaves, grad_output.to(output.dtype), materialize_grads=True)
    return tuple(
        msda_backward(
            grad_output.to(value.dtype),
            *tensors,
            spatial_shapes,
            level_start_index,
            [],
            [True] * 3,
            backend,
            _resolve_deterministic(deterministic),
        )
    )


def _call(operator: Operator, *arguments):
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return operator.forward(*arguments)
    outputs = Transformable.apply(operator, *arguments)
    return outputs if len(outputs) > 1 else outputs[0]


def _msda_by_reference(
    tensors: Sequence[Tensor], spatial_shapes: Tensor | Sequence, level_start_index: Tensor | Sequence
) -> Tensor:
    """The reference by ints, wherever levels given as tensors can be read: it is many times as fast then."""
    value, sampling_locations, attention_weights = tensors
    if isinstance(spatial_shapes, Tensor) and values_are_readable(spatial_shapes):
        spatial_shapes, level_start_index = spatial_shapes.tolist(), level_start_index.tolist()
        check_levels_inside(spatial_shapes, level_start_index, value.shape[1])
    return msda_reference(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def _autocast(value: Tensor) -> Tensor:
    device = value.device.type
    if value.dtype != torch.float32 or device == "meta" or not torch.is_autocast_enabled(device):
        return value
    return value.to(torch.get_autocast_dtype(device))


def _resolve_deterministic(deterministic: bool | None) -> bool:
    return torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic


def _choose_backend(requested: str, tensors: Sequence[Tensor]) -> str:
    """The backend that runs a call; `tensors` begin with value."""
    if requested not in BACKENDS:
        raise ValueError(f"backend {requested!r} is not one of {', '.join(BACKENDS)}")
    if requested == "reference":
        return requested
    value = tensors[0]
    device, head_dim = value.device.type, value.shape[-1]
    double = any(x.dtype == torch.float64 for x in tensors)
    forward_mode = forward_mode_is_open() and _have_tangents(tensors)
    if requested == "auto":
        return "reference" if double or forward_mode or head_dim > MAX_FUSED_HEAD_DIM else _fastest_backend(device)

    remedy = 'use backend="reference" or "auto"'
    if forward_mode:
        raise ValueError(f"backend {requested!r} has no forward-mode derivative; {remedy}")
    if double:
        raise ValueError(f"backend {requested!r} does not compute float64; {remedy}")
    if head_dim > MAX_FUSED_HEAD_DIM:
        raise ValueError(f"backend {requested!r} takes heads up to {MAX_FUSED_HEAD_DIM} wide, not {head_dim}; {remedy}")
    if requested == "triton" and not _HAS_TRITON:
        raise ValueError(f"backend 'triton' needs the triton package, which is not installed; {remedy}")
    if requested == "triton" and device != "cuda" and not (device == "cpu" and _interpreting()):
        raise ValueError(f"backend 'triton' needs tensors on a GPU, value is on {value.device}; {remedy}")
    if requested == "cpu" and not _HAS_NUMBA:
        raise ValueError("backend 'cpu' needs the numba package: pip install 'stnet[cpu]'")
    if requested == "cpu" and device != "cpu":
        raise ValueError(f"backend 'cpu' needs tensors on the CPU, value is on {value.device}; {remedy}")
    return requested


def _have_tangents(tensors: Sequence[Tensor]) -> bool:
    """Whether forward-mode derivatives are asked for; under `torch.func`, whose levels hide each other, perhaps."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def _fastest_backend(device: str) -> str:
    if device == "cuda":
        if _HAS_TRITON:
            return "triton"
        warnings.warn(
            "triton is not installed: deformable attention runs by its slow reference implementation",
            stacklevel=4,
        )
        return "reference"
    if device == "meta":  # shapes only
        return "cpu"
    return "cpu" if device == "cpu" and _HAS_NUMBA else "reference"


def _interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
