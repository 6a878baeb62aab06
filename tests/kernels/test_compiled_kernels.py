"""What the kernels compile to, run by a simulator: inline assembly and matrix instructions without a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stnet.kernels.triton.launch_table import DEFAULT_TABLE, read_table

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("simulated_cases.py")
LIMITS = {"float32": 5e-6, "float16": 5e-4, "bfloat16": 4e-3}


def simulated(kernel: str, arch: str, dtype: str, candidate: dict, sizes: dict, **case):
    """Relative errors against float64 by tensor, and how often each instruction ran."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    case |= {"kernel": kernel, "arch": arch, "dtype": dtype, "candidate": candidate, "sizes": sizes}
    command = [sys.executable, str(SCRIPT), json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["warps"] == candidate.get("num_warps", 1)
    return result["errors"], result["executed"]


def count(executed: dict[str, int], *words: str) -> int:
    return sum(number for name, number in executed.items() if all(word in name for word in words))


def slow(*case, name: str):
    return pytest.param(*case, id=name, marks=pytest.mark.slow)


STDA, MSDA = "stda_forward", "msda_forward"
MATRIX, PACKED = {"arithmetic": "matrix"}, {"arithmetic": "packed"}
ONE_CELL = {"shapes": ((1, 1), (1, 5), (4, 1)), "dim": 8, "queries": 9}
BOXES = {"components": 4, "dim": 12, "queries": 33, "points": 3}
POSITIONS = {"queries": 30, "targets": 2}  # the order of an encoder's queries
PAIRS = {**PACKED, "block_queries": 16, "block_heads": 2}
FOURS = {**PACKED, "block_queries": 8, "block_heads": 4}
DECODER = {**PACKED, "block_queries": 1, "block_heads": 8, "num_warps": 2}
FORWARD = [
    pytest.param(STDA, "sm_90", "float16", MATRIX, {"queries": 33}, id="matrix"),
    pytest.param(
        STDA,
        "sm_80",
        "bfloat16",
        {**PAIRS, "num_warps": 2, "unroll_points": False},
        {"queries": 30, "points": 4},
        id="pairs-of-heads",
    ),
    slow(STDA, "sm_80", "bfloat16", PACKED, {"queries": 9}, name="sm_80-bfloat16"),
    slow(STDA, "sm_90", "bfloat16", MATRIX, {"queries": 9}, name="sm_90-bfloat16"),
    slow(STDA, "sm_80", "float16", MATRIX, BOXES, name="boxes"),
    slow(STDA, "sm_90", "float16", PACKED, ONE_CELL, name="one-cell"),
    slow(STDA, "sm_90", "float32", {}, {"queries": 33}, name="float32"),
    slow(STDA, "sm_90", "float16", {**PAIRS, "maxnreg": 160, "unroll_points": False}, POSITIONS, name="shipped"),
    slow(STDA, "sm_90", "float16", {**MATRIX, "block_queries": 16, "block_heads": 2}, BOXES, name="matrix-of-heads"),
    slow(STDA, "sm_90", "float16", {**PAIRS, "load_ahead": True}, {**POSITIONS, "other_points": 2}, name="load-ahead"),
    slow(STDA, "sm_90", "float16", FOURS, {"heads": 4, **POSITIONS}, name="four-heads"),
    slow(STDA, "sm_90", "float16", DECODER, {"heads": 8, "queries": 2}, name="eight-heads"),
    slow(
        STDA,
        "sm_100",
        "float16",
        {**PACKED, "block_queries": 16, "block_heads": 8, "num_warps": 4},
        {"heads": 8, "queries": 17},
        name="four-warps",
    ),
    slow(
        STDA, "sm_90", "float32", {"block_queries": 16, "block_heads": 2, "num_warps": 2}, BOXES, name="pairs-float32"
    ),
    slow(MSDA, "sm_90", "float16", FOURS, {"heads": 4, "queries": 9, "points": 4}, name="classic-four-heads"),
    slow(MSDA, "sm_80", "bfloat16", {**PAIRS, "num_warps": 2}, {"queries": 17}, name="classic-pairs"),
    slow(MSDA, "sm_90", "float32", {}, {"queries": 33, "dim": 24}, name="classic-float32"),
]


@pytest.mark.parametrize(("kernel", "arch", "dtype", "candidate", "sizes"), FORWARD)
def test_forward_as_compiled(kernel, arch, dtype, candidate, sizes):
    errors, executed = simulated(kernel, arch, dtype, candidate, sizes)
    arithmetic = candidate.get("arithmetic", "float32")
    assert (count(executed, "mma.sync") > 0) == (arithmetic == "matrix")
    assert (count(executed, "fma", "16x2") > 0) == (arithmetic != "float32")
    assert errors["output"] <= LIMITS[dtype]
    assert errors.get("lse", 0.0) <= 1e-6


STDA, MSDA = "stda_backward", "msda_backward"
SIXTEEN = {"block_queries": 16}
WARPS = {"block_queries": 16, "num_warps": 2}
BACKWARD = [
    pytest.param(STDA, "sm_90", "bfloat16", SIXTEEN, {"components": 4, "queries": 17}, id="sm_90-bfloat16"),
    slow(STDA, "sm_80", "float32", SIXTEEN, {"dim": 24, "queries": 17}, name="sm_80-float32"),
    slow(STDA, "sm_90", "float16", WARPS, {"queries": 17, "points": 4, "other_points": 2}, name="two-warps"),
    slow(STDA, "sm_90", "float16", {"block_queries": 8}, {"queries": 9, "points": 4}, name="eight-queries"),
    slow(STDA, "sm_90", "float32", {**SIXTEEN, "hold_gradient": False}, {"queries": 17}, name="gradient-not-held"),
    slow(STDA, "sm_90", "float16", {**SIXTEEN, "heads_first": True}, {"queries": 33}, name="heads-first"),
    slow(STDA, "sm_90", "float16", {**SIXTEEN, "block_channels": 16}, {"queries": 17, "dim": 40}, name="wide"),
    slow(STDA, "sm_90", "float16", {"num_warps": 4}, {"queries": 33, **ONE_CELL, "dim": 32}, name="four-warps"),
    slow(MSDA, "sm_90", "float16", {**SIXTEEN, "maxnreg": 255}, {"queries": 17}, name="classic"),
    slow(MSDA, "sm_80", "float32", {**WARPS, "block_channels": 16}, {"queries": 17, "dim": 24}, name="classic-float32"),
]


@pytest.mark.parametrize(("kernel", "arch", "dtype", "candidate", "sizes"), BACKWARD)
def test_backward_as_compiled(kernel, arch, dtype, candidate, sizes):
    errors, executed = simulated(kernel, arch, dtype, candidate, sizes)
    assert (count(executed, "red", "add", "v4.f32") + count(executed, "atom", "add", "v4.f32") > 0) == (arch == "sm_90")
    _check_gradients(errors, dtype)


TUNED = sorted(
    {
        (row.kernel, json.dumps(replace(candidate, milliseconds=None).as_json()))
        for row in read_table(DEFAULT_TABLE)
        if row.architectures == ("sm_90",) and row.head_dims == (32,)
        for candidate in row.candidates
    }
)
"""All that the table compares for the published layers on an H100, measured or not."""


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "candidate"), TUNED)
def test_every_candidate_for_the_published_layers_as_compiled(kernel, candidate):
    candidate = json.loads(candidate)
    sizes = {"heads": max(2, candidate.get("block_heads", 1)), "points": 4, "shapes": ((4, 6),)}
    sizes["queries"] = candidate.get("block_queries", 32) + 1
    if kernel.startswith("stda"):
        sizes |= {"other_points": 2, "frames": 2}
    errors, _ = simulated(kernel, "sm_90", "float16", candidate, sizes)
    if candidate.get("summed_cells"):  # of rounded weights
        assert errors.pop("value") <= LIMITS["float16"]
    if kernel.endswith("backward"):
        _check_gradients(errors, "float16")
    else:
        assert errors["output"] <= LIMITS["float16"] and errors.get("lse", 0.0) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("candidate", [SIXTEEN, WARPS], ids=["one-warp", "two-warps"])
def test_deterministic_backward_as_compiled(candidate):
    """Whole numbers are added, of 64 bits."""
    errors, executed = simulated("stda_backward", "sm_90", "float16", candidate, {"queries": 17}, deterministic=True)
    assert count(executed, "add", "u64") + count(executed, "add", "s64") > 0
    _check_gradients(errors, "float16")


COARSE = [
    slow("sm_90", "float16", {"shapes": ((9, 10), (4, 6)), "queries": 35, "frames": 2, "targets": 2}, name="steps"),
    slow("sm_80", "bfloat16", {"shapes": ((1, 3), (9, 40)), "queries": 9, "components": 4, "dim": 40}, name="boxes"),
    slow(
        "sm_100", "float16", {"shapes": ((15, 20), (8, 10)), "queries": 33, "dim": 8, "heads": 1}, name="eight-blocks"
    ),
]


@pytest.mark.parametrize(("arch", "dtype", "sizes"), COARSE)
def test_coarse_levels_summed_as_compiled(arch, dtype, sizes):
    """Weights are rounded to 16 bits before the sums, in float32, begin."""
    errors, _ = simulated("stda_backward", arch, dtype, {**SIXTEEN, "summed_cells": 512}, sizes)
    assert errors.pop("value") <= LIMITS[dtype]
    _check_gradients(errors, dtype)


def _check_gradients(errors: dict[str, float], dtype: str) -> None:
    for name, error in errors.items():
        summed_in_float32 = name == "value" or "reference" in name
        assert error <= (5e-5 if summed_in_float32 else 10 * LIMITS[dtype]), name
