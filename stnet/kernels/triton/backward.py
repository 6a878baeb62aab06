"""Gradients of both operators by Triton: the functions of the backend, and their launches as data.

The value gradient is collected in a buffer of its own: float32, cast in the end for 16-bit values, or for deterministic
gradients 64-bit fixed point (`fixed_point.py`) of half of the heads, one launch for each half. What coarse levels have
of it may be summed by launches of their own (`coarse_levels.py`). Gradients of offsets, logits, locations and weights
have one writer each. Those of reference points are summed over heads: by float32 reductions, or for deterministic
gradients from one slice a head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stnet.kernels.problem import MSDA_DENSE_DIMS, STDA_DENSE_DIMS, MsdaProblem, MsdaTensors, StdaProblem, StdaTensors
from stnet.kernels.triton.architecture import architecture, has_vector_reductions, is_nvidia, warp_lanes
from stnet.kernels.triton.backward_msda import msda_backward_kernel
from stnet.kernels.triton.backward_samples import Config
from stnet.kernels.triton.backward_stda import stda_backward_kernel
from stnet.kernels.triton.coarse_levels import coarse_levels, stda_coarse_call
from stnet.kernels.triton.device_tables import frame_offsets, level_tables
from stnet.kernels.triton.fixed_point import FixedPoint, head_passes
from stnet.kernels.triton.forward import levels_of, query_strides, sample_counts
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch import Launch, distinct
from stnet.kernels.triton.launch_table import Candidate, choose, padded_head_dim
from stnet.kernels.triton.layout import alignment, pack_all, strides

_GATHER_BYTES = 64  # of a row gathered at once: four lanes
_MOST_ALONG_Y = 2**16 - 1  # programs, CUDA's limit


def stda_backward(
    problem: StdaProblem,
    tensors: StdaTensors[Tensor],
    grad_output: Tensor,
    output: Tensor,
    lse: Tensor,
    needs: StdaTensors[bool],
    deterministic: bool,
    *,
    candidate: Candidate | None = None,
) -> Callable[[StdaTensors[Tensor], Tensor, Tensor, Tensor], StdaTensors[Tensor | None]]:
    """Prepare contiguous gradients of spatial-temporal deformable attention; see `stnet.kernels.backends`.

    A candidate takes the place of the launch table's default.
    """
    p, value = problem, tensors.value
    arch, dtypes = architecture(value.device), StdaTensors(*(x.dtype for x in tensors))
    candidate = candidate or choose("stda_backward", arch, value.dtype, p.head_dim, p.queries)

    def bound(inputs: Sequence[Tensor]) -> FixedPoint:
        return FixedPoint.for_bound(_largest(inputs[len(StdaTensors._fields)]), p.targets * p.queries)

    def allocate(device: torch.device | str) -> StdaTensors[Tensor | None]:
        gradients = StdaTensors(*map(partial(_buffer_if, device), p.tensor_shapes, dtypes, needs))
        sums = {
            name: _reference_sums(getattr(p.tensor_shapes, name), p.heads if deterministic else None, device)
            for name in ("reference_points", "other_reference_points")
            if getattr(needs, name)
        }
        return gradients._replace(value=None, **sums)

    def make_calls(inputs, gradients, fixed: FixedPoint | None, heads: range) -> list[KernelCall]:
        *inputs, grad_output, output, lse = inputs
        saved = (grad_output, output, lse)
        inputs = StdaTensors(*inputs)
        return stda_backward_calls(p, inputs, *saved, gradients, fixed, deterministic, heads, candidate, arch)

    dims = (*STDA_DENSE_DIMS._replace(value=1), 1, output.dim(), lse.dim())
    run = _prepared((*tensors, grad_output, output, lse), dims, needs.value, deterministic, allocate, make_calls, bound)

    def differentiate(tensors, grad_output, output, lse) -> StdaTensors[Tensor | None]:
        gradients = run((*tensors, grad_output, output, lse))
        references = {
            name: (sums.sum(dim=3) if deterministic else sums).to(getattr(dtypes, name))
            for name in ("reference_points", "other_reference_points")
            if (sums := getattr(gradients, name)) is not None
        }
        return gradients._replace(**references) if references else gradients

    return differentiate


def msda_backward(
    problem: MsdaProblem,
    tensors: MsdaTensors[Tensor],
    grad_output: Tensor,
    needs: MsdaTensors[bool],
    deterministic: bool,
    *,
    candidate: Candidate | None = None,
) -> Callable[[MsdaTensors[Tensor], Tensor], MsdaTensors[Tensor | None]]:
    """Prepare contiguous gradients of multi-scale deformable attention; see `stnet.kernels.backends`."""
    p, value = problem, tensors.value
    arch, dtypes = architecture(value.device), [None if x is None else x.dtype for x in tensors]
    candidate = candidate or choose("msda_backward", arch, value.dtype, p.head_dim, p.queries)

    def bound(inputs: Sequence[Tensor]) -> FixedPoint:
        *tensors, grad_output = inputs
        largest = _largest(grad_output).double() * _largest(MsdaTensors(*tensors).attention_weights)
        return FixedPoint.for_bound(largest, p.queries * p.levels * p.points)

    def allocate(device: torch.device | str) -> MsdaTensors[Tensor | None]:
        return MsdaTensors(*map(partial(_buffer_if, device), p.tensor_shapes, dtypes, needs))._replace(value=None)

    def make_calls(inputs, gradients, fixed: FixedPoint | None, heads: range) -> list[KernelCall]:
        *inputs, grad_output = inputs
        return [msda_backward_call(p, MsdaTensors(*inputs), grad_output, gradients, fixed, heads, candidate, arch)]

    dims = (*MSDA_DENSE_DIMS._replace(value=1), 1)
    run = _prepared((*tensors, grad_output), dims, needs.value, deterministic, allocate, make_calls, bound)
    return lambda tensors, grad_output: run((*tensors, grad_output))


def _prepared(
    inputs: Sequence[Tensor | None],
    dense_dims: Sequence[int],
    needs_value: bool,
    deterministic: bool,
    allocate: Callable,
    make_calls: Callable,
    bound: Callable[[Sequence[Tensor | None]], FixedPoint],
) -> Callable:
    """Return what computes gradients for inputs that lie like these; it keeps none of them.

    Args:
        inputs: tensors, the first of which is value, and gradient and results of the forward pass.
        dense_dims: how many last dimensions of each are to be contiguous.
        needs_value: whether the gradient of value is wanted.
        deterministic: whether it is to have the same bits in every run.
        allocate: memory on a device for all gradients but that of value.
        make_calls: the launches for packed inputs, gradients, fixed point and heads.
        bound: fixed point numbers that hold the sums of the gradient of value, from the inputs.
    """
    value = inputs[0]
    shape, dtype = value.shape, value.dtype
    packed_inputs = pack_all(inputs, dense_dims)
    copies = any(x is not y for x, y in zip(inputs, packed_inputs, strict=True))
    launches = None
    if not (deterministic and needs_value):
        examples, gradients = distinct(packed_inputs), allocate("meta")
        if needs_value:
            gradients = gradients._replace(value=torch.empty(shape, dtype=torch.float32, device="meta"))
        calls = make_calls(examples, gradients, None, range(shape[-2]))
        launches = [Launch(call, (*examples, *gradients)) for call in calls]

    def run(inputs):
        device = inputs[0].device
        gradients = allocate(device)
        if launches is None:
            fixed = bound(inputs)
            inputs = pack_all(inputs, dense_dims)
            calls = lambda sums, heads: make_calls(inputs, gradients._replace(value=sums), fixed, heads)  # noqa: E731
            return gradients._replace(value=_value_gradient(calls, inputs[0], fixed))
        sums = torch.zeros(shape, dtype=torch.float32, device=device) if needs_value else None
        given = (*(pack_all(inputs, dense_dims) if copies else inputs), sums, *gradients[1:])
        for launch in launches:
            launch(*given)
        return gradients if sums is None else gradients._replace(value=sums.to(dtype))

    return run


def _value_gradient(calls: Callable[[Tensor, range], list[KernelCall]], value: Tensor, fixed: FixedPoint) -> Tensor:
    """Launch `calls` (of the sums of the value gradient, and the heads to treat) for half of the heads at a time."""
    passes = head_passes(value.shape[-2])
    shape = (*value.shape[:-2], len(passes[0]), value.shape[-1])
    sums = torch.empty(shape, dtype=torch.int64, device=value.device)
    gradient = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    for part in passes:
        for call in calls(sums.zero_(), part):
            call.launch()
        fixed.write(sums, gradient[..., part.start : part.stop, :])
    return gradient


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value, NaN where there is one, without a copy."""
    return torch.linalg.vector_norm(x, math.inf)


def _buffer_if(
    device: torch.device | str, shape: tuple[int, ...], dtype: torch.dtype | None, need: bool
) -> Tensor | None:
    return torch.empty(shape, dtype=dtype, device=device) if need else None


def _reference_sums(shape: tuple[int, ...], heads: int | None, device: torch.device | str) -> Tensor:
    """Where the gradient of reference points [B, T, Q, L, R] is collected: a slice for each head, or one for all."""
    if heads is None:
        return torch.zeros(shape, dtype=torch.float32, device=device)
    return torch.empty((*shape[:3], heads, *shape[3:]), dtype=torch.float32, device=device)


def stda_backward_calls(
    problem: StdaProblem,
    tensors: StdaTensors[Tensor],
    grad_output: Tensor,
    output: Tensor,
    lse: Tensor,
    gradients: StdaTensors[Tensor | None],
    fixed: FixedPoint | None,
    deterministic: bool,
    part: range,
    candidate: Candidate,
    arch: str,
) -> list[KernelCall]:
    """Return the launches behind `stda_backward` of packed tensors for the heads of `part`, writing to `gradients`.

    The gradient of value has these heads alone; tensors of all heads are passed from the first of them on. The first
    launch does everything but what is summed of coarse levels, which the others do, one for each.
    """
    p, width, first = problem, problem.head_dim, part.start
    value = _from_head(tensors.value, 3, first)
    grad_row = len(part) * width
    shapes, starts = level_tables(p.spatial_shapes, value.device)
    arguments = {
        **{name: x if _of_all_heads(name) else _from_head(x, 3, first) for name, x in tensors._asdict().items()},
        "grad_output": _from_head(grad_output, 3, first * width),
        "output": _from_head(output, 3, first * width),
        "lse": _from_head(lse, 3, first),
        "shapes": shapes,
        "starts": starts,
        "frames": frame_offsets(p.frame_table, tensors.value.stride(1), value.device),
        "grad_frames": frame_offsets(p.frame_table, p.positions * grad_row, value.device),
        "scale": lse if fixed is None else fixed.scale,
        "queries": p.queries,
        "targets": p.targets,
        "heads": p.heads,
        "other_frames": p.other_frames if p.other_points else 0,
        **strides("grad_output", grad_output, (0, 1, 2), "btq"),
        **strides("value", tensors.value, (0, 3), "bh"),
        **query_strides(tensors),
        "grad_value_b": p.source_frames * p.positions * grad_row,
    }
    for name, gradient in gradients._asdict().items():
        whole = gradient is None or name == "value" or (_of_all_heads(name) and not deterministic)
        arguments[f"grad_{name}"] = lse if gradient is None else gradient if whole else _from_head(gradient, 3, first)
    thin = min(map(min, p.spatial_shapes)) == 1
    block, step = _tile(math.gcd(p.points, p.other_points), candidate, arch)
    grid, head_axis = _grid(-(-p.queries // block) * p.targets * p.clips, len(part), candidate)
    outputs, needed = (arguments["grad_output"], arguments["output"]), gradients.value is not None
    coarse = coarse_levels(p, grad_output, gradients.value, candidate, arch)
    config = _config(value, outputs, grad_row, needed, thin, head_axis, candidate, arch)
    constants = {
        "config": config,
        **sample_counts(p),
        "BLOCK_QUERIES": block,
        "STEP": step,
        "FIXED_POINT": fixed is not None,
        "SUMMED": sum(1 << level for level in coarse),
        "ATOMIC_REFERENCE": not deterministic,
        "NEEDS": StdaTensors(*(gradient is not None for gradient in gradients)),
    }
    return [
        KernelCall.of(stda_backward_kernel, grid, arguments, constants, candidate.options(arch)),
        *(stda_coarse_call(p, tensors, grad_output, lse, gradients.value, level, arch) for level in coarse),
    ]


def _of_all_heads(name: str) -> bool:
    """Whether a tensor has no dimension for heads."""
    return name.endswith("reference_points")


def msda_backward_call(
    problem: MsdaProblem,
    tensors: MsdaTensors[Tensor],
    grad_output: Tensor,
    gradients: MsdaTensors[Tensor | None],
    fixed: FixedPoint | None,
    part: range,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """The launch behind `msda_backward`; arguments as for `stda_backward_calls`."""
    p, width, first = problem, problem.head_dim, part.start
    value, locations, weights = tensors.value, tensors.sampling_locations, tensors.attention_weights
    grad_row = len(part) * width
    shapes, starts = levels_of(problem, tensors)
    unused = next(gradient for gradient in gradients if gradient is not None)
    grad_locations, grad_weights = (
        unused if gradient is None else _from_head(gradient, 2, first)
        for gradient in (gradients.sampling_locations, gradients.attention_weights)
    )
    arguments = {
        "grad_output": _from_head(grad_output, 2, first * width),
        "value": _from_head(value, 2, first),
        "locations": _from_head(locations, 2, first),
        "weights": _from_head(weights, 2, first),
        "shapes": shapes,
        "starts": starts,
        "scale": unused if fixed is None else fixed.scale,
        "grad_value": unused if gradients.value is None else gradients.value,
        "grad_locations": grad_locations,
        "grad_weights": grad_weights,
        "queries": p.queries,
        "heads": p.heads,
        "levels": p.levels,
        **strides("grad_output", grad_output, (0, 1), "bq"),
        **strides("value", value, (0, 2), "bh"),
        **strides("locations", locations, (0, 1, 2), "bqh"),
        **strides("weights", weights, (0, 1, 2), "bqh"),
        "grad_value_b": p.positions * grad_row,
    }
    needed = gradients.value is not None
    block, step = _tile(p.points, candidate, arch)
    grid, head_axis = _grid(-(-p.queries // block) * p.clips, len(part), candidate)
    outputs = (arguments["grad_output"],)
    config = _config(arguments["value"], outputs, grad_row, needed, True, head_axis, candidate, arch)
    constants = {
        "config": config,
        "POINTS": p.points,
        "BLOCK_QUERIES": block,
        "STEP": step,
        "FIXED_POINT": fixed is not None,
        "NEED_LOCATIONS": gradients.sampling_locations is not None,
        "NEED_WEIGHTS": gradients.attention_weights is not None,
    }
    return KernelCall.of(msda_backward_kernel, grid, arguments, constants, candidate.options(arch))


def _from_head(tensor: Tensor, dim: int, first: int) -> Tensor:
    """The tensor from index `first` of a dimension on."""
    return tensor if first == 0 else tensor.narrow(dim, first, tensor.shape[dim] - first)


def _config(
    value: Tensor,
    outputs: Sequence[Tensor],
    grad_row: int,
    need_value: bool,
    thin: bool,
    head_axis: int,
    candidate: Candidate,
    arch: str,
) -> Config:
    """How values [..., S, H, D], their gradient, with `grad_row` elements from cell to cell, and outputs are read."""
    element, width = value.element_size(), value.shape[-1]
    block = min(padded_head_dim(width), candidate.block_channels)
    row = value.stride(-3)
    output_bytes = width * element  # from head to head
    return Config(
        D=width,
        BLOCK_CHANNELS=block,
        GATHER_CHANNELS=min(block, _GATHER_BYTES // element),
        HELD=candidate.hold_gradient and width <= block,
        ALIGN=min(output_bytes & -output_bytes, *(alignment(x, range(x.dim() - 1)) for x in outputs)),
        CELL_STRIDE=row,
        GRAD_CELL_STRIDE=grad_row,
        VECTOR=alignment(value, range(value.dim() - 1)) // element,
        REDUCED=4 if has_vector_reductions(arch) else 1,
        THIN=thin,
        WIDE=value.shape[-3] * max(row, grad_row) * 8 >= 2**32,
        PTX=is_nvidia(arch),
        NEED_VALUE=need_value,
        HEAD_AXIS=head_axis,
    )


def _grid(tiles: int, heads: int, candidate: Candidate) -> tuple[tuple[int, int, int], int]:
    """Programs along x, y and z, and which of these axes is that of the heads."""
    if candidate.heads_first and tiles <= _MOST_ALONG_Y:
        return (heads, tiles, 1), 0
    return (tiles, heads, 1), 1


def _tile(points: int, candidate: Candidate, arch: str) -> tuple[int, int]:
    """Queries of a program, and samples of each taken at once, which divide the points evenly.

    A chunk has at least as many rows as the program has lanes. With fewer the compiler would arrange vectors of rows
    like tiles, and every lane would compute every row.
    """
    lanes = candidate.num_warps * warp_lanes(arch)
    step = min(points & -points, max(1, lanes // candidate.block_queries))
    return max(candidate.block_queries, lanes // step), step
