"""The two public operators: arguments checked, backend chosen, result computed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stnet.kernels.backends import REFERENCE, choose, limit_of
from stnet.kernels.plans import Memory
from stnet.kernels.portable import msda_portable, stda_portable
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors, check_msda, check_stda
from stnet.kernels.reference import msda_reference, stda_reference
from stnet.kernels.registration import MSDA, STDA, forward

_PASSED: Memory[tuple] = Memory()
_TENSORS = frozenset((Tensor, torch.nn.Parameter))  # and no subclasses: sizes of fake and traced ones may be symbols


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
    problem, constants, limit = _checked(_stda_call, tensors, spatial_shapes, frame_table)
    tensors = _autocast(tensors)
    backend = choose(backend, tensors, limit)
    if backend == REFERENCE:
        return (stda_portable if torch.compiler.is_exporting() else stda_reference)(problem, tensors)
    return forward(STDA, *tensors, *constants, backend, _resolve_deterministic(deterministic))[0]


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
    problem, constants, limit = _checked(_msda_call, tensors, spatial_shapes, level_start_index)
    if problem.spatial_shapes is None:
        tensors = MsdaTensors(value, sampling_locations, attention_weights, spatial_shapes, level_start_index)
    tensors = _autocast(tensors)
    backend = choose(backend, tensors, limit)
    if backend == REFERENCE:
        portable = torch.compiler.is_exporting() and problem.spatial_shapes is not None
        return (msda_portable if portable else msda_reference)(problem, tensors)
    return forward(MSDA, *tensors, *constants, backend, _resolve_deterministic(deterministic))


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
    backend = choose(backend, tensors, limit_of(tensors))
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


def _stda_call(tensors: StdaTensors[Tensor], spatial_shapes, frame_table) -> tuple[StdaProblem, tuple, str | None]:
    """Return the problem, the operator's arguments between the tensors and the backend, and what no backend can."""
    problem = check_stda(tensors, spatial_shapes, frame_table)
    return problem, (_flat(problem.spatial_shapes), _flat(problem.frame_table)), limit_of(tensors)


def _msda_call(
    tensors: MsdaTensors[Tensor], spatial_shapes, level_start_index
) -> tuple[MsdaProblem, tuple, str | None]:
    problem = check_msda(tensors, spatial_shapes, level_start_index)
    return problem, (_flat(problem.spatial_shapes or ()),), limit_of(tensors)


def _flat(rows: Sequence[Sequence[int]]) -> list[int]:
    return [number for row in rows for number in row]


def _checked(check: Callable, tensors: StdaTensors[Tensor] | MsdaTensors[Tensor], *levels: object) -> tuple:
    """Return `check(tensors, *levels)`, from memory where arguments of these shapes, dtypes and devices passed it."""
    if torch.compiler.is_compiling():
        return check(tensors, *levels)
    key = [check]
    for x in (*tensors, *levels):
        kind = type(x)
        if kind in _TENSORS:
            key += (x.shape, x.dtype, x.device, x.layout)
        elif x is None or (kind is tuple and _is_ints(x)):
            key.append(x)
        else:
            return check(tensors, *levels)
    key = tuple(key)
    checked = _PASSED.get(key)
    return _PASSED.keep(key, check(tensors, *levels)) if checked is None else checked


def _is_ints(rows: tuple) -> bool:
    """Return whether a tuple holds Python ints, or tuples of them, and so may be remembered."""
    kinds = {type(row) for row in rows}
    if kinds == {tuple}:
        kinds = {type(number) for row in rows for number in row}
    return kinds <= {int}


def _autocast(tensors: StdaTensors[Tensor] | MsdaTensors[Tensor]) -> StdaTensors[Tensor] | MsdaTensors[Tensor]:
    value = tensors.value
    device = value.device.type
    if value.dtype != torch.float32 or device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    return tensors._replace(value=value.to(torch.get_autocast_dtype(device)))


def _resolve_deterministic(deterministic: bool | None) -> bool:
    return torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic
