"""Compiles one kernel for an NVIDIA GPU and runs it in `ptx_simulator`: prints errors and instruction counts as JSON.

A script of its own, for Triton's compiler and its interpreter exclude each other within a process:

    python simulated_cases.py '{"kernel": "stda_forward", "arch": "sm_90", "dtype": "float16", "candidate": {}}'
"""

import json
import sys

import numpy as np
import torch
import triton
from conftest import make_msda, make_stda, relative_error
from ptx_simulator import Memory, Program
from triton.backends.compiler import GPUTarget

from stnet.kernels.problem import MsdaTensors, StdaTensors
from stnet.kernels.reference import msda_reference, stda_reference
from stnet.kernels.triton import backward as triton_backward
from stnet.kernels.triton import forward as triton_forward
from stnet.kernels.triton.fixed_point import FixedPoint
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch_table import Candidate

SMALL = {"shapes": ((4, 6), (2, 3)), "clips": 1, "heads": 2, "targets": 1, "dim": 32}


def simulate(call: KernelCall, arch: str) -> Program:
    """Run every program of a launch one after another, on the memory of its tensors."""
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    program = Program(triton.compile(call.ast_source(), target=target, options=dict(call.options)).asm["ptx"])
    memory = Memory()
    parameters = [_place(x, memory) if isinstance(x, torch.Tensor) else x for x in call.arguments.values()]
    parameters += [0, 0]  # Triton's scratch memory, unused
    for block in np.ndindex(*call.grid):
        program.run(parameters, memory, block, call.grid)
    return program


def _place(tensor: torch.Tensor, memory: Memory) -> int:
    if tensor.numel() == 0:
        return 0
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return memory.place(tensor.detach().as_strided((span,), (1,)).view(torch.uint8).numpy())


def inputs_of(dtype: torch.dtype, sizes: dict):
    """The problem, its tensors, and the reference's float64 output with leaves to differentiate it by."""
    case = make_stda(**{**SMALL, **sizes})
    tensors = {name: x.to(torch.float32 if "reference" in name else dtype) for name, x in case.tensors.items()}
    problem, tensors = case.replaced(**tensors).checked
    leaves = StdaTensors(*(x.double().requires_grad_() for x in tensors))
    return problem, tensors, leaves, stda_reference(problem, leaves)


def classic_inputs_of(dtype: torch.dtype, sizes: dict):
    """The same of the classic operator, whose levels are given as tensors."""
    case = make_msda(**{"dim": 32, "batch": 1, **sizes})
    problem, tensors = case.replaced(**{name: x.to(dtype) for name, x in case.tensors.items()}).checked
    leaves = MsdaTensors(*(x.double().requires_grad_() if x.is_floating_point() else x for x in tensors))
    return problem, tensors, leaves, msda_reference(problem, leaves)


def log_sum_exp(tensors: StdaTensors) -> torch.Tensor:
    return torch.cat([tensors.logits.flatten(4), tensors.other_logits.flatten(4)], -1).double().logsumexp(-1)


def stda_forward(arch: str, dtype: torch.dtype, candidate: Candidate, sizes: dict) -> tuple[dict[str, float], Program]:
    problem, tensors, _, expected = inputs_of(dtype, sizes)
    output = torch.full(expected.shape, torch.nan, dtype=dtype)
    lse = torch.full(tensors.logits.shape[:4], torch.nan)
    call = triton_forward.stda_forward_call(problem, tensors, output, lse, candidate, arch)
    program = simulate(as_asked(call, candidate), arch)
    errors = {"output": relative_error(output, expected), "lse": relative_error(lse, log_sum_exp(tensors))}
    return errors, program


def msda_forward(arch: str, dtype: torch.dtype, candidate: Candidate, sizes: dict) -> tuple[dict[str, float], Program]:
    problem, tensors, _, expected = classic_inputs_of(dtype, sizes)
    output = torch.full(expected.shape, torch.nan, dtype=dtype)
    call = triton_forward.msda_forward_call(problem, tensors, output, candidate, arch)
    program = simulate(as_asked(call, candidate), arch)
    return {"output": relative_error(output, expected)}, program


def as_asked(call: KernelCall, candidate: Candidate) -> KernelCall:
    """The call, if nothing of its candidate was replaced by what fits better: the test would not test it."""
    config = call.constants["config"]
    assert candidate.arithmetic == config.ARITHMETIC
    assert candidate.block_heads == config.BLOCK_HEADS
    return call


def stda_backward(
    arch: str, dtype: torch.dtype, candidate: Candidate, sizes: dict, deterministic: bool = False
) -> tuple[dict[str, float], Program]:
    problem, tensors, leaves, output = inputs_of(dtype, sizes)
    weight, expected = differentiated(output, leaves, dtype)
    fixed = None
    if deterministic:
        fixed = FixedPoint.for_bound(weight.abs().amax(), problem.targets * problem.queries)
    gradients = StdaTensors(*(torch.full(x.shape, torch.nan, dtype=x.dtype) for x in tensors))._replace(
        value=torch.zeros(tensors.value.shape, dtype=torch.int64 if deterministic else torch.float32),
        reference_points=torch.zeros(tensors.reference_points.shape),
        other_reference_points=torch.zeros(tensors.reference_points.shape),
    )
    saved = (weight, output.detach().to(dtype), log_sum_exp(tensors).float())
    part = range(problem.heads)
    calls = triton_backward.stda_backward_calls(
        problem, tensors, *saved, gradients, fixed, False, part, candidate, arch
    )
    program, *coarse = [simulate(call, arch) for call in calls]
    assert bool(coarse) == (candidate.summed_cells > 0), "the test would not test them"
    if deterministic:
        sums, gradients = gradients.value, gradients._replace(value=torch.empty(tensors.value.shape))
        fixed.write(sums, gradients.value)
    return errors_of(gradients, expected), program


def msda_backward(arch: str, dtype: torch.dtype, candidate: Candidate, sizes: dict) -> tuple[dict[str, float], Program]:
    problem, tensors, leaves, output = classic_inputs_of(dtype, sizes)
    weight, expected = differentiated(output, leaves, dtype)
    value, *rest = tensors[:3]
    gradients = MsdaTensors(torch.zeros(value.shape), *(torch.full(x.shape, torch.nan, dtype=x.dtype) for x in rest))
    part = range(problem.heads)
    call = triton_backward.msda_backward_call(problem, tensors, weight, gradients, None, part, candidate, arch)
    program = simulate(call, arch)
    return errors_of(gradients, expected), program


def differentiated(output: torch.Tensor, leaves: tuple, dtype: torch.dtype) -> tuple[torch.Tensor, tuple]:
    """A gradient of the output, and the reference's gradients by name."""
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape).to(dtype)
    wanted = {name: x for name, x in leaves._asdict().items() if x is not None and x.requires_grad}
    expected = torch.autograd.grad(output, list(wanted.values()), weight.double())
    return weight, dict(zip(wanted, expected, strict=True))


def errors_of(gradients: tuple, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: relative_error(getattr(gradients, name), exact) for name, exact in expected.items()}


KERNELS = {
    "stda_forward": stda_forward,
    "msda_forward": msda_forward,
    "stda_backward": stda_backward,
    "msda_backward": msda_backward,
}


def main() -> None:
    case = json.loads(sys.argv[1])
    kernel, dtype = KERNELS[case.pop("kernel")], getattr(torch, case.pop("dtype"))
    errors, program = kernel(dtype=dtype, candidate=Candidate(**case.pop("candidate")), **case)
    print(json.dumps({"errors": errors, "executed": program.executed, "warps": program.warps}))


if __name__ == "__main__":
    main()
