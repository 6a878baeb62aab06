"""Gradients of both operators by Triton: what `registration.py` calls, and the launches as data.

The value gradient is collected in a buffer of its own: float32, cast in the end for 16-bit values, or for deterministic
gradients 64-bit fixed point (`fixed_point.py`) of half of the heads, one launch for each half. Gradients of offsets,
logits, locations and weights have one writer each. Those of reference points are summed over heads: by float32
reductions, or for deterministic gradients from one slice a head.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stnet.kernels.backward_msda import msda_backward_kernel
from stnet.kernels.backward_samples import Config
from stnet.kernels.backward_stda import stda_backward_kernel
from stnet.kernels.fixed_point import FixedPoint, head_passes
from stnet.kernels.launch import (
    Candidate,
    KernelCall,
    alignment,
    architecture,
    choose,
    frame_offsets,
    has_vector_reductions,
    is_nvidia,
    level_tables,
    packed,
    padded_head_dim,
    strides,
    warp_lanes,
)
from stnet.kernels.problem import StdaProblem

_GATHER_BYTES = 64  # of a row gathered at once: four lanes


def stda_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: tuple[tuple[int, ...], ...],
    other_reference_points: Tensor | None,
    output: Tensor,
    lse: Tensor,
    needs: tuple[bool, ...],
    deterministic: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of `spatial_temporal_deform_attn` for arguments that `check_stda` accepted.

    Args:
        grad_output: `[B, T, Q, H * D]`.
        other_reference_points: None stands for `reference_points`, whose gradient then has both shares.
        output, lse: results of the forward pass, `[B, T, Q, H * D]` and float32 `[B, T, Q, H]`.
        needs: which gradients are asked for: value, reference_points, offsets, logits, other_offsets, other_logits,
            other_reference_points.
        deterministic: whether gradients have the same bits in every run.

    Returns:
        Contiguous gradients in the order of `needs`, None where not asked for, in the dtypes of the inputs.
    """
    shared = other_reference_points is None
    if shared:
        other_reference_points, needs = reference_points, (*needs[:6], needs[1])
    inputs = (value, reference_points, offsets, logits, other_offsets, other_logits, other_reference_points)
    if output.numel() == 0:
        return _zeros(inputs, needs)
    gradients = [None, *_buffers(inputs[1:], needs[1:])]
    for i in (1, 6):
        if needs[i]:
            gradients[i] = _reference_sums(inputs[i], offsets.shape[3] if deterministic else None)

    arch = architecture(value.device)
    candidate = choose("stda_backward", arch, value.dtype, value.shape[4], offsets.shape[2])
    fixed = None
    if needs[0] and deterministic:
        fixed = FixedPoint.for_bound(_largest(grad_output), math.prod(offsets.shape[1:3]))

    def call(sums: Tensor | None, heads: range) -> KernelCall:
        outputs = [sums, *gradients[1:]]
        return stda_backward_call(
            grad_output, spatial_shapes, inputs, frame_table, output, lse, outputs, fixed, deterministic, heads,
            candidate, arch,
        )  # fmt: skip

    gradients[0] = _value_gradient(call, value, needs[0], fixed)
    for i in (1, 6):
        if needs[i]:
            total = gradients[i].sum(dim=3) if deterministic else gradients[i]
            gradients[i] = total.to(inputs[i].dtype)
    if shared and needs[1]:
        gradients[1], gradients[6] = gradients[1] + gradients[6], None
    return tuple(gradients)


def msda_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs: tuple[bool, ...],
    deterministic: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of `ms_deform_attn` for arguments that `check_msda` accepted, levels as tensors on value's device.

    Args:
        grad_output: `[N, Q, H * D]`.
        needs: which gradients are asked for: value, sampling_locations, attention_weights.
        deterministic: whether gradients have the same bits in every run.

    Returns:
        Contiguous gradients in the order of `needs`, None where not asked for, in the dtypes of the inputs.
    """
    inputs = (value, sampling_locations, attention_weights)
    if grad_output.numel() == 0 or attention_weights.numel() == 0:
        return _zeros(inputs, needs)
    gradients = [None, *_buffers(inputs[1:], needs[1:])]
    arch = architecture(value.device)
    candidate = choose("msda_backward", arch, value.dtype, value.shape[3], attention_weights.shape[1])
    fixed = None
    if needs[0] and deterministic:
        samples = attention_weights.shape[1] * math.prod(attention_weights.shape[3:])
        fixed = FixedPoint.for_bound(_largest(grad_output).double() * _largest(attention_weights), samples)

    def call(sums: Tensor | None, heads: range) -> KernelCall:
        outputs = [sums, *gradients[1:]]
        return msda_backward_call(
            grad_output, spatial_shapes, level_start_index, inputs, outputs, fixed, heads, candidate, arch
        )

    gradients[0] = _value_gradient(call, value, needs[0], fixed)
    return tuple(gradients)


def _value_gradient(
    call: Callable[[Tensor | None, range], KernelCall], value: Tensor, need: bool, fixed: FixedPoint | None
) -> Tensor | None:
    """Launch `call` (of the sums of the value gradient, and the heads to treat) for all heads; the value gradient."""
    heads = value.shape[-2]
    if not need:
        call(None, range(heads)).launch()
        return None
    if fixed is None:
        sums = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        call(sums, range(heads)).launch()
        return sums.to(value.dtype)
    passes = head_passes(heads)
    shape = (*value.shape[:-2], len(passes[0]), value.shape[-1])
    sums = torch.empty(shape, dtype=torch.int64, device=value.device)
    gradient = _buffer(value, value.dtype)
    for part in passes:
        call(sums.zero_(), part).launch()
        fixed.write(sums, gradient[..., part.start : part.stop, :])
    return gradient


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value, NaN where there is one, without a copy."""
    return torch.linalg.vector_norm(x, math.inf)


def _buffers(inputs: tuple[Tensor, ...], needs: tuple[bool, ...]) -> list[Tensor | None]:
    return [_buffer(x, x.dtype) if need else None for x, need in zip(inputs, needs, strict=True)]


def _zeros(inputs: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.zero_() for x in _buffers(inputs, needs))


def _buffer(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device)


def _reference_sums(reference: Tensor, heads: int | None) -> Tensor:
    """Where the gradient of reference points [B, T, Q, L, R] is collected: a slice for each head, or one for all."""
    if heads is None:
        return _buffer(reference, torch.float32).zero_()
    shape = (*reference.shape[:3], heads, *reference.shape[3:])
    return torch.empty(shape, dtype=torch.float32, device=reference.device)


def stda_backward_call(
    grad_output: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    inputs: tuple[Tensor, ...],
    frame_table: tuple[tuple[int, ...], ...],
    output: Tensor,
    lse: Tensor,
    gradients: list[Tensor | None],
    fixed: FixedPoint | None,
    deterministic: bool,
    part: range,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """A launch behind `stda_backward`: inputs and gradients in the order of its `needs`.

    Args:
        gradients: to write to, that of value with the heads of `part` alone.
        part: heads to treat; tensors of all heads are passed from the first of them on.
    """
    value, reference, offsets, logits, other_offsets, other_logits, other_reference = inputs
    heads, width = value.shape[3:]
    value, grad_output = packed(value, 1), packed(grad_output, 1)
    offsets, other_offsets = packed(offsets, 3), packed(other_offsets, 4)
    logits, other_logits = packed(logits, 2), packed(other_logits, 3)
    reference, other_reference = packed(reference, 1), packed(other_reference, 1)
    clips, targets, queries, _, levels, points = logits.shape
    other_frames, other_points = other_logits.shape[4], other_logits.shape[6]
    grad_row = len(part) * width
    shapes, starts = level_tables(spatial_shapes, value.device)
    names = (
        "grad_value", "grad_reference", "grad_offsets", "grad_logits",
        "grad_other_offsets", "grad_other_logits", "grad_other_reference",
    )  # fmt: skip
    needed = dict(zip(names, gradients, strict=True))
    written = {
        name: lse if gradient is None
        else gradient if name == "grad_value" or ("reference" in name and not deterministic)
        else _from_head(gradient, 3, part.start)
        for name, gradient in needed.items()
    }  # fmt: skip
    arguments = {
        "grad_output": _from_head(grad_output, 3, part.start * width),
        "value": _from_head(value, 3, part.start),
        "reference": reference,
        "other_reference": other_reference,
        "offsets": _from_head(offsets, 3, part.start),
        "logits": _from_head(logits, 3, part.start),
        "other_offsets": _from_head(other_offsets, 3, part.start),
        "other_logits": _from_head(other_logits, 3, part.start),
        "output": _from_head(output.contiguous(), 3, part.start * width),
        "lse": _from_head(lse.contiguous(), 3, part.start),
        "shapes": shapes,
        "starts": starts,
        "frames": frame_offsets(frame_table, value.stride(1), value.device),
        "grad_frames": frame_offsets(frame_table, value.shape[2] * grad_row, value.device),
        "scale": lse if fixed is None else fixed.scale,
        **written,
        "queries": queries,
        "targets": targets,
        "heads": heads,
        "other_frames": other_frames if other_points else 0,
        **strides("grad_output", grad_output, (0, 1, 2), "btq"),
        **strides("value", value, (0, 3), "bh"),
        **strides("reference", reference, (0, 1, 2, 3), "btql"),
        **strides("other_reference", other_reference, (0, 1, 2, 3), "btql"),
        **strides("offsets", offsets, (0, 1, 2, 3), "btqh"),
        **strides("logits", logits, (0, 1, 2, 3), "btqh"),
        **strides("other_offsets", other_offsets, (0, 1, 2, 3), "btqh"),
        **strides("other_logits", other_logits, (0, 1, 2, 3), "btqh"),
        "grad_value_b": math.prod(value.shape[1:3]) * grad_row,
    }
    thin = min(map(min, spatial_shapes)) == 1
    config = _config(
        arguments["value"], 2, (0, 1, 2, 3), arguments["grad_output"], grad_row, gradients[0] is not None, thin,
        candidate, arch,
    )  # fmt: skip
    block, step = _tile(math.gcd(points, other_points), candidate, arch)
    constants = {
        "config": config,
        "LEVELS": levels,
        "POINTS": points,
        "OTHER_POINTS": max(1, other_points),
        "COMPONENTS": reference.shape[4],
        "QUERIES": block,
        "STEP": step,
        "FIXED_POINT": fixed is not None,
        "ATOMIC_REFERENCE": not deterministic,
        **{name.upper().replace("GRAD", "NEED"): gradient is not None for name, gradient in list(needed.items())[1:]},
    }
    arguments = {name: arguments[name] for name in stda_backward_kernel.arg_names if name in arguments}
    grid = (-(-queries // block) * targets * clips, len(part), 1)
    return KernelCall(
        kernel=stda_backward_kernel,
        grid=grid,
        arguments=arguments,
        constants=constants,
        options=candidate.options(arch),
    )


def msda_backward_call(
    grad_output: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    inputs: tuple[Tensor, ...],
    gradients: list[Tensor | None],
    fixed: FixedPoint | None,
    part: range,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """A launch behind `msda_backward`: inputs and gradients in the order of its `needs`, `part` as in the other."""
    value, locations, weights = packed(inputs[0], 1), packed(inputs[1], 3), packed(inputs[2], 2)
    grad_output = packed(grad_output, 1)
    batch, queries, heads, levels, points = weights.shape
    width = value.shape[3]
    grad_row = len(part) * width
    unused = next(gradient for gradient in gradients if gradient is not None)
    grad_value, grad_locations, grad_weights = (unused if x is None else x for x in gradients)
    arguments = {
        "grad_output": _from_head(grad_output, 2, part.start * width),
        "value": _from_head(value, 2, part.start),
        "locations": _from_head(locations, 2, part.start),
        "weights": _from_head(weights, 2, part.start),
        "shapes": spatial_shapes.contiguous(),
        "starts": level_start_index.contiguous(),
        "scale": unused if fixed is None else fixed.scale,
        "grad_value": grad_value,
        "grad_locations": grad_locations if gradients[1] is None else _from_head(grad_locations, 2, part.start),
        "grad_weights": grad_weights if gradients[2] is None else _from_head(grad_weights, 2, part.start),
        "queries": queries,
        "heads": heads,
        "levels": levels,
        **strides("grad_output", grad_output, (0, 1), "bq"),
        **strides("value", value, (0, 2), "bh"),
        **strides("locations", locations, (0, 1, 2), "bqh"),
        **strides("weights", weights, (0, 1, 2), "bqh"),
        "grad_value_b": value.shape[1] * grad_row,
    }
    config = _config(
        arguments["value"], 1, (0, 1, 2), arguments["grad_output"], grad_row, gradients[0] is not None, True,
        candidate, arch,
    )  # fmt: skip
    block, step = _tile(points, candidate, arch)
    constants = {
        "config": config,
        "POINTS": points,
        "QUERIES": block,
        "STEP": step,
        "FIXED_POINT": fixed is not None,
        "NEED_LOCATIONS": gradients[1] is not None,
        "NEED_WEIGHTS": gradients[2] is not None,
    }
    grid = (-(-queries // block) * batch, len(part), 1)
    return KernelCall(
        kernel=msda_backward_kernel,
        grid=grid,
        arguments=arguments,
        constants=constants,
        options=candidate.options(arch),
    )


def _from_head(tensor: Tensor, dim: int, first: int) -> Tensor:
    """The tensor from index `first` of a dimension on."""
    return tensor if first == 0 else tensor.narrow(dim, first, tensor.shape[dim] - first)


def _config(
    value: Tensor,
    cell_dim: int,
    dims: tuple[int, ...],
    grad_output: Tensor,
    grad_row: int,
    need_value: bool,
    thin: bool,
    candidate: Candidate,
    arch: str,
) -> Config:
    """How values [..., S, H, D] and their gradient are read.

    Args:
        cell_dim: dimension S of value.
        dims: all of its dimensions but the channels.
        grad_row: elements from cell to cell of its gradient.
    """
    element, width = value.element_size(), value.shape[-1]
    block = min(padded_head_dim(width), candidate.block_channels)
    row = value.stride(cell_dim)
    output_bytes = width * element  # outputs are contiguous
    return Config(
        D=width,
        BLOCK=block,
        C=min(block, _GATHER_BYTES // element),
        HELD=candidate.hold_gradient and width <= block,
        ALIGN=min(alignment(grad_output, range(grad_output.dim() - 1)), output_bytes & -output_bytes),
        ROW=row,
        GRAD_ROW=grad_row,
        VECTOR=alignment(value, dims) // element,
        REDUCED=4 if has_vector_reductions(arch) else 1,
        THIN=thin,
        WIDE=value.shape[cell_dim] * max(row, grad_row) * 8 >= 2**32,
        PTX=is_nvidia(arch),
        NEED_VALUE=need_value,
    )


def _tile(points: int, candidate: Candidate, arch: str) -> tuple[int, int]:
    """Queries of a program, and samples of each taken at once, which divide the points evenly.

    A chunk has at least as many rows as the program has lanes. With fewer the compiler would arrange vectors of rows
    like tiles, and every lane would compute every row.
    """
    lanes = candidate.num_warps * warp_lanes(arch)
    step = min(points & -points, max(1, lanes // candidate.block_queries))
    return max(candidate.block_queries, lanes // step), step


def example_calls(
    kernel: str, candidate: Candidate, dtype: torch.dtype, head_dim: int, problem: StdaProblem, arch: str
) -> list[KernelCall]:
    """Launches for contiguous `meta` tensors of a problem's sizes; see `stnet.kernels.launch.ast_sources`."""
    p = problem

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    query = (p.clips, p.targets, p.queries)
    if kernel == "msda_backward":
        rows = (p.clips, p.queries, p.heads)
        value = empty(p.clips, p.heads, p.positions, head_dim).transpose(1, 2)
        locations = empty(*rows, p.levels, p.points, 2, dtype=torch.float32)
        inputs = (value, locations, empty(*rows, p.levels, p.points))
        gradients = [_buffer(value, torch.float32), *(_buffer(x, x.dtype) for x in inputs[1:])]
        levels = level_tables(p.spatial_shapes, value.device)
        grad_output = empty(p.clips, p.queries, p.heads * head_dim)
        return [msda_backward_call(grad_output, *levels, inputs, gradients, None, range(p.heads), candidate, arch)]

    value = empty(p.clips, p.source_frames, p.heads, p.positions, head_dim).transpose(2, 3)
    reference = empty(*query, p.levels, p.components, dtype=torch.float32)
    inputs = (
        value,
        reference,
        empty(*query, p.heads, p.levels, p.points, 2),
        empty(*query, p.heads, p.levels, p.points),
        empty(*query, p.heads, p.other_frames, p.levels, p.other_points, 2),
        empty(*query, p.heads, p.other_frames, p.levels, p.other_points),
        reference,
    )
    gradients = [_buffer(value, torch.float32), *(_buffer(x, x.dtype) for x in inputs[1:])]
    if p.queries == p.positions:  # the encoder: its reference points are constants
        gradients[1] = gradients[6] = None
    output = empty(*query, p.heads * head_dim)
    lse = empty(*query, p.heads, dtype=torch.float32)
    call = stda_backward_call(
        output, p.spatial_shapes, inputs, p.frame_table, output, lse, gradients, None, False, range(p.heads),
        candidate, arch,
    )  # fmt: skip
    return [call]
