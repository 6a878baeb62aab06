"""The two public operators: arguments checked, backend chosen, result computed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stnet.kernels.backends import REFERENCE, choose
from stnet.kernels.problem import MsdaTensors, StdaTensors, check_msda, check_stda
from stnet.kernels.reference import msda_reference, stda_reference
from stnet.kernels.registration import MSDA


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
    if other_reference_points is None:
        other_reference_points = reference_points
    tensors = StdaTensors(value, reference_points, offsets, logits, other_offsets, other_logits, other_reference_points)
    problem = check_stda(tensors, spatial_shapes, frame_table)
    tensors = _autocast(tensors)
    backend = choose(backend, tensors)
    if backend == REFERENCE:
        return stda_reference(problem, tensors)
    output, _ = torch.ops.stnet.stda_forward(
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
    level_start_index: Tensor | Sequence[int] | None,
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
        level_start_index: first position of each level, ints or an integer tensor `[L]` on value's device; None where
            the levels follow one another.
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
    tensors = MsdaTensors(value, sampling_locations, attention_weights)
    if level_start_index is None and isinstance(spatial_shapes, Tensor):
        cells = spatial_shapes.prod(-1, dtype=spatial_shapes.dtype)
        level_start_index = cells.cumsum(-1, dtype=spatial_shapes.dtype) - cells
    problem = check_msda(tensors, spatial_shapes, level_start_index)
    if problem.spatial_shapes is None:
        tensors = tensors._replace(spatial_shapes=spatial_shapes, level_start_index=level_start_index)
    tensors = _autocast(tensors)
    backend = choose(backend, tensors)
    if backend == REFERENCE:
        return msda_reference(problem, tensors)
    known = problem.spatial_shapes or ()
    return torch.ops.stnet.msda_forward(
        *tensors, [size for shape in known for size in shape], backend, _resolve_deterministic(deterministic)
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

    The arguments are those of `ms_deform_attn`, levels as tensors, and the gradient of its output `[N, Q, H * D]`.

    Returns:
        Gradients of value, sampling locations and attention weights, each in the dtype of its tensor.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes or devices that do not fit, or a backend that cannot run this call.
    """
    needed = {"spatial_shapes": spatial_shapes, "level_start_index": level_start_index, "grad_output": grad_output}
    for name, x in needed.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, expected a tensor")
    tensors = MsdaTensors(value, sampling_locations, attention_weights)
    problem = check_msda(tensors, spatial_shapes, level_start_index, grad_output)
    tensors = tensors._replace(spatial_shapes=spatial_shapes, level_start_index=level_start_index)
    grad_output = grad_output.to(value.dtype)
    backend = choose(backend, tensors)
    if backend == REFERENCE:
        leaves = [x.detach().requires_grad_() for x in tensors[: MSDA.inputs]]
        with torch.enable_grad():
            output = msda_reference(problem, MsdaTensors(*leaves, *tensors[MSDA.inputs :]))
        return torch.autograd.grad(output, leaves, grad_output, materialize_grads=True)
    needs = [index < MSDA.inputs for index in range(len(tensors))]
    gradients = torch.ops.stnet.msda_backward(
        grad_output, *tensors, [], needs, backend, _resolve_deterministic(deterministic)
    )
    return tuple(gradients)


def _autocast(tensors: StdaTensors[Tensor] | MsdaTensors[Tensor]) -> StdaTensors[Tensor] | MsdaTensors[Tensor]:
    value = tensors.value
    device = value.device.type
    if value.dtype != torch.float32 or device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    return tensors._replace(value=value.to(torch.get_autocast_dtype(device)))


def _resolve_deterministic(deterministic: bool | None) -> bool:
    return torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic
