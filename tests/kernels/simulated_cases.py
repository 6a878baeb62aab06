"""Compiles one kernel for an NVIDIA GPU and runs it in `ptx_simulator`: prints errors and instruction counts as JSON.

A script of its own, for Triton's compiler and its interpreter exclude each other within a process:

    python simulated_cases.py '{"kernel": "forward", "arch": "sm_90", "dtype": "float16", "arithmetic": "matrix"}'
"""

import json
import sys

import numpy as np
import torch
import triton
from conftest import make_stda, relative_error
from ptx_simulator import Memory, Program
from triton.backends.compiler import GPUTarget

from stnet.kernels.problem import StdaTensors
from stnet.kernels.reference import stda_reference
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


def log_sum_exp(tensors: StdaTensors) -> torch.Tensor:
    return torch.cat([tensors.logits.flatten(4), tensors.other_logits.flatten(4)], -1).double().logsumexp(-1)


def forward(arch: str, dtype: torch.dtype, arithmetic: str, sizes: dict) -> tuple[dict[str, float], Program]:
    problem, tensors, _, expected = inputs_of(dtype, sizes)
    output = torch.full(expected.shape, torch.nan, dtype=dtype)
    lse = torch.full(tensors.logits.shape[:4], torch.nan)
    call = triton_forward.stda_forward_call(problem, tensors, output, lse, Candidate(arithmetic=arithmetic), arch)
    assert arithmetic == call.constants["config"].ARITHMETIC
    program = simulate(call, arch)
    errors = {"output": relative_error(output, expected), "lse": relative_error(lse, log_sum_exp(tensors))}
    return errors, program


def backward(arch: str, dtype: torch.dtype, deterministic: bool, sizes: dict) -> tuple[dict[str, float], Program]:
    problem, tensors, leaves, output = inputs_of(dtype, sizes)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape).to(dtype)
    expected = torch.autograd.grad(output, leaves, weight.double())
    fixed = None
    if deterministic:
        fixed = FixedPoint.for_bound(weight.abs().amax(), problem.targets * problem.queries)
    gradients = StdaTensors(*(torch.full(x.shape, torch.nan, dtype=x.dtype) for x in tensors))._replace(
        value=torch.zeros(tensors.value.shape, dtype=torch.int64 if deterministic else torch.float32),
        reference_points=torch.zeros(tensors.reference_points.shape),
        other_reference_points=torch.zeros(tensors.reference_points.shape),
    )
    saved = (weight, output.detach().to(dtype), log_sum_exp(tensors).float())
    part, candidate = range(problem.heads), Candidate(block_queries=16)
    call = triton_backward.stda_backward_call(problem, tensors, *saved, gradients, fixed, False, part, candidate, arch)
    program = simulate(call, arch)
    if deterministic:
        sums, gradients = gradients.value, gradients._replace(value=torch.empty(tensors.value.shape))
        fixed.write(sums, gradients.value)
    pairs = zip(StdaTensors._fields, gradients, expected, strict=True)
    return {name: relative_error(computed, exact) for name, computed, exact in pairs}, program


def main() -> None:
    case = json.loads(sys.argv[1])
    kernel, dtype = {"forward": forward, "backward": backward}[case.pop("kernel")], getattr(torch, case.pop("dtype"))
    errors, program = kernel(dtype=dtype, **case)
    print(json.dumps({"errors": errors, "executed": program.executed}))


if __name__ == "__main__":
    main()
