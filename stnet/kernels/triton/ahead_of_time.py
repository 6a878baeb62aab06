"""The launches of a whole problem on `meta` tensors, to be compiled ahead of time and without a GPU.

for candidate in candidates("stda_forward", "sm_90", torch.float16, 32, queries=5440):
    for source, options in ast_sources("stda_forward", candidate, torch.float16, 32, problem, arch="sm_90"):
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors
from stnet.kernels.triton import backward, forward
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch_table import Candidate


def ast_sources(
    kernel: str,
    candidate: Candidate,
    dtype: torch.dtype,
    head_dim: int,
    problem: StdaProblem,
    arch: str,
) -> list[tuple[Any, dict[str, int]]]:
    """(ASTSource, options) of every launch a kernel makes for a problem, for `triton.compile`.

    Needs no GPU, but a process without TRITON_INTERPRET. Works like a call with contiguous tensors (values stored by
    heads, [B, F, H, S, D]) of `dtype`, reference points of float32, and all gradients wanted. `head_dim` replaces that
    of the problem. `arch` decides about inline PTX and other choices of the launch: give `triton.compile` the same.
    """
    return [
        (call.ast_source(), dict(call.options)) for call in calls(kernel, candidate, dtype, head_dim, problem, arch)
    ]


def calls(
    kernel: str,
    candidate: Candidate,
    dtype: torch.dtype,
    head_dim: int,
    problem: StdaProblem,
    arch: str,
) -> list[KernelCall]:
    """The `KernelCall`s behind `ast_sources`, on `meta` tensors: their grids, run-time arguments and constants."""
    p = replace(problem, head_dim=head_dim)
    if kernel.startswith("stda"):
        return _stda_calls(kernel, candidate, dtype, p, arch)
    return [_msda_call(kernel, candidate, dtype, p, arch)]


def _stda_calls(kernel: str, candidate: Candidate, dtype: torch.dtype, p: StdaProblem, arch: str) -> list[KernelCall]:
    shapes = p.tensor_shapes
    tensors = StdaTensors(*(_meta(shape, dtype) for shape in shapes))._replace(
        value=_stored_by_heads(shapes.value, dtype),
        reference_points=_meta(shapes.reference_points, torch.float32),
        other_reference_points=_meta(shapes.reference_points, torch.float32),
    )
    output = _meta((p.clips, p.targets, p.queries, p.heads * p.head_dim), dtype)
    lse = _meta((p.clips, p.targets, p.queries, p.heads), torch.float32)
    if kernel == "stda_forward":
        return [forward.stda_forward_call(p, tensors, output, lse, candidate, arch)]
    gradients = tensors._replace(value=_meta(shapes.value, torch.float32))
    if p.queries == p.positions:  # the encoder: its reference points are constants
        gradients = gradients._replace(reference_points=None, other_reference_points=None)
    part = range(p.heads)
    return backward.stda_backward_calls(p, tensors, output, output, lse, gradients, None, False, part, candidate, arch)


def _msda_call(kernel: str, candidate: Candidate, dtype: torch.dtype, p: StdaProblem, arch: str) -> KernelCall:
    """The first frame and target of the problem, without its softmax."""
    problem = MsdaProblem(
        clips=p.clips,
        positions=p.positions,
        heads=p.heads,
        head_dim=p.head_dim,
        queries=p.queries,
        levels=p.levels,
        points=p.points,
        spatial_shapes=p.spatial_shapes,
    )
    shapes = problem.tensor_shapes
    tensors = MsdaTensors(
        value=_stored_by_heads(shapes.value, dtype),
        sampling_locations=_meta(shapes.sampling_locations, torch.float32),
        attention_weights=_meta(shapes.attention_weights, dtype),
    )
    output = _meta((p.clips, p.queries, p.heads * p.head_dim), dtype)
    if kernel == "msda_forward":
        return forward.msda_forward_call(problem, tensors, output, candidate, arch)
    gradients = tensors._replace(value=_meta(shapes.value, torch.float32))
    return backward.msda_backward_call(problem, tensors, output, gradients, None, range(p.heads), candidate, arch)


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _stored_by_heads(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    *rest, positions, heads, head_dim = shape
    return _meta((*rest, heads, positions, head_dim), dtype).transpose(-3, -2)
