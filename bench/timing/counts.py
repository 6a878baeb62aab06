"""Work that a call of the operators cannot avoid, for comparison with what the machine can do."""

from dataclasses import dataclass

import torch

from stnet.kernels.problem import StdaProblem

REFERENCE_BYTES = 4  # reference points and locations are float32
CORNERS = 4
FLOPS_PER_CHANNEL = 2 * CORNERS  # a multiply-add per corner, the sample's weight folded into the corners'
FLOPS_PER_SAMPLE = 24  # position, four corner weights, their products with the sample's weight
BACKWARD_PASSES = 3  # gradients by value, by position and by weight each touch every corner's channels


@dataclass(frozen=True, kw_only=True)
class Work:
    """compulsory: bytes of inputs read and outputs written once. gathered: bytes of all corners. flops: arithmetic."""

    compulsory: int
    gathered: int
    flops: int


def forward_work(problem: StdaProblem, dtype: torch.dtype, *, located: bool = False) -> Work:
    """Work of a forward pass; `located`: locations are given in float32 instead of offsets and references."""
    samples = _samples(problem)
    return Work(
        compulsory=_value_bytes(problem, dtype) + _query_bytes(problem, dtype, located) + _output_bytes(problem, dtype),
        gathered=samples * CORNERS * problem.head_dim * dtype.itemsize,
        flops=samples * (FLOPS_PER_CHANNEL * problem.head_dim + FLOPS_PER_SAMPLE),
    )


def backward_work(problem: StdaProblem, dtype: torch.dtype, *, located: bool = False) -> Work:
    """Work of a backward pass with all gradients: inputs and output gradient read, gradients written."""
    forward = forward_work(problem, dtype, located=located)
    gradients = _value_bytes(problem, dtype) + _query_bytes(problem, dtype, located)
    return Work(
        compulsory=forward.compulsory + gradients,
        gathered=2 * forward.gathered,  # corners are read, and added to
        flops=BACKWARD_PASSES * forward.flops,
    )


def _samples(problem: StdaProblem) -> int:
    return problem.clips * problem.targets * problem.queries * problem.heads * problem.samples


def _value_bytes(problem: StdaProblem, dtype: torch.dtype) -> int:
    rows = problem.clips * problem.source_frames * problem.positions
    return rows * problem.heads * problem.head_dim * dtype.itemsize


def _query_bytes(problem: StdaProblem, dtype: torch.dtype, located: bool) -> int:
    if located:
        return _samples(problem) * (2 * REFERENCE_BYTES + dtype.itemsize)
    references = problem.clips * problem.targets * problem.queries * problem.levels * problem.components
    return _samples(problem) * 3 * dtype.itemsize + references * REFERENCE_BYTES


def _output_bytes(problem: StdaProblem, dtype: torch.dtype) -> int:
    return problem.clips * problem.targets * problem.queries * problem.heads * problem.head_dim * dtype.itemsize
