"""Compiles one kernel for an NVIDIA GPU and runs it in `ptx_simulator`: prints errors and instruction counts as JSON.

A script of its own, for Triton's compiler and its interpreter exclude each other within a process:

    python simulated_cases.py '{"kernel": "forward", "arch": "sm_90", "dtype": "float16", "arithmetic": "matrix"}'
"""

import json
import sys

import numpy as np
import torch
import triton
from conftest import STDA_TENSORS, make_stda, relative_error
from ptx_simulator import Memory, Program
from triton.backends.compiler import GPUTarget

from stnet.kernels import triton_backward, triton_forward
from stnet.kernels.fixed_point import FixedPoint
from stnet.kernels.launch import Candidate, KernelCall
from stnet.kernels.problem import check_stda
from stnet.kernels.reference import stda_reference

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
    """Arguments by name, their problem, and the reference's float64 output with leaves to differentiate it by."""
    case = make_stda(**{**SMALL, **sizes})
    tensors = {name: x.to(torch.float32 if "reference" in name else dtype) for name, x in case.tensors.items()}
    problem = check_stda(**tensors, **case.others)
    leaves = {name: tensors[name].double().requires_grad_() for name in STDA_TENSORS}
    return tensors, problem, leaves, stda_reference(problem, *leaves.values())


def forward(arch: str, dtype: torch.dtype, arithmetic: str, sizes: dict) -> tuple[dict[str, float], Program]:
    tensors, problem, _, expected = inputs_of(dtype, sizes)
    logits = torch.cat([tensors["logits"].flatten(4), tensors["other_logits"].flatten(4)], -1).double()
    output = torch.full(expected.shape, torch.nan, dtype=dtype)
    lse = torch.full(logits.shape[:4], torch.nan)
    value, *rest, other_reference = (tensors[name] for name in STDA_TENSORS)
    call = triton_forward.stda_forward_call(
        value, problem.spatial_shapes, *rest, problem.frame_table, other_reference,
        output, lse, Candidate(arithmetic=arithmetic), arch,
    )  # fmt: skip
    assert call.constants["ARITHMETIC"] == arithmetic
    program = simulate(call, arch)
    errors = {"output": relative_error(output, expected), "lse": relative_error(lse, logits.logsumexp(-1))}
    return errors, program


def backward(arch: str, dtype: torch.dtype, deterministic: bool, sizes: dict) -> tuple[dict[str, float], Program]:
    tensors, problem, leaves, output = inputs_of(dtype, sizes)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape).to(dtype)
    expected = torch.autograd.grad(output, list(leaves.values()), weight.double())
    logits = torch.cat([tensors["logits"].flatten(4), tensors["other_logits"].flatten(4)], -1).double()
    inputs = tuple(tensors[name] for name in STDA_TENSORS)
    gradients = [torch.full(x.shape, torch.nan, dtype=x.dtype) for x in inputs]
    fixed = None
    if deterministic:
        fixed = FixedPoint.for_bound(weight.abs().amax(), problem.targets * problem.queries)
    gradients[0] = torch.zeros(inputs[0].shape, dtype=torch.int64 if deterministic else torch.float32)
    gradients[1], gradients[6] = (torch.zeros(inputs[i].shape) for i in (1, 6))
    call = triton_backward.stda_backward_call(
        weight, problem.spatial_shapes, inputs, problem.frame_table, output.detach().to(dtype),
        logits.logsumexp(-1).float().contiguous(), gradients, fixed, False, range(problem.heads),
        Candidate(block_queries=16), arch,
    )  # fmt: skip
    program = simulate(call, arch)
    if deterministic:
        sums, gradients[0] = gradients[0], torch.empty(inputs[0].shape)
        fixed.write(sums, gradients[0])
    pairs = zip(STDA_TENSORS, gradients, expected, strict=True)
    return {name: relative_error(computed, exact) for name, computed, exact in pairs}, program


def main() -> None:
    case = json.loads(sys.argv[1])
    kernel, dtype = {"forward": forward, "backward": backward}[case.pop("kernel")], getattr(torch, case.pop("dtype"))
    errors, program = kernel(dtype=dtype, **case)
    print(json.dumps({"errors": errors, "executed": program.executed}))


if __name__ == "__main__":
    main()
