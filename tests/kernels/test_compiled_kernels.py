"""What the kernels compile to, run by a simulator: inline assembly and matrix instructions without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("simulated_cases.py")
LIMITS = {"float32": 5e-6, "float16": 5e-4, "bfloat16": 4e-3}


def simulated(**case) -> tuple[dict[str, float], dict[str, int]]:
    """Relative errors against float64 by tensor, and how often each instruction ran."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    command = [sys.executable, str(SCRIPT), json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    return result["errors"], result["executed"]


def count(executed: dict[str, int], *words: str) -> int:
    return sum(number for name, number in executed.items() if all(word in name for word in words))


ONE_CELL = {"shapes": ((1, 1), (1, 5), (4, 1)), "dim": 8, "queries": 9}
BOXES = {"components": 4, "dim": 12, "queries": 33, "points": 3}
FORWARD = [
    pytest.param("sm_90", "float16", "matrix", {"queries": 33}, id="sm_90-float16-matrix"),
    pytest.param("sm_80", "bfloat16", "packed", {"queries": 9}, id="sm_80-bfloat16-packed"),
    pytest.param("sm_90", "bfloat16", "matrix", {"queries": 9}, id="sm_90-bfloat16-matrix", marks=pytest.mark.slow),
    pytest.param("sm_80", "float16", "matrix", BOXES, id="boxes", marks=pytest.mark.slow),
    pytest.param("sm_90", "float16", "packed", ONE_CELL, id="one-cell", marks=pytest.mark.slow),
    pytest.param("sm_90", "float32", "float32", {"queries": 33}, id="float32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("arch", "dtype", "arithmetic", "sizes"), FORWARD)
def test_forward_as_compiled(arch, dtype, arithmetic, sizes):
    errors, executed = simulated(kernel="forward", arch=arch, dtype=dtype, arithmetic=arithmetic, sizes=sizes)
    assert (count(executed, "mma.sync") > 0) == (arithmetic == "matrix")
    assert (count(executed, "fma", "16x2") > 0) == (arithmetic != "float32")
    assert errors["output"] <= LIMITS[dtype]
    assert errors["lse"] <= 1e-6


BACKWARD = [
    pytest.param("sm_90", "bfloat16", False, {"components": 4, "queries": 17}, id="sm_90-bfloat16"),
    pytest.param("sm_80", "float32", False, {"dim": 24, "queries": 17}, id="sm_80-float32", marks=pytest.mark.slow),
    pytest.param("sm_90", "float16", True, {"queries": 17}, id="deterministic", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("arch", "dtype", "deterministic", "sizes"), BACKWARD)
def test_backward_as_compiled(arch, dtype, deterministic, sizes):
    case = {"kernel": "backward", "arch": arch, "dtype": dtype, "deterministic": deterministic}
    errors, executed = simulated(**case, sizes=sizes)
    if not deterministic:
        assert (count(executed, "add", "v4.f32") > 0) == (arch == "sm_90")
    for name, error in errors.items():
        summed_in_float32 = name == "value" or "reference" in name
        assert error <= (5e-5 if summed_in_float32 else 10 * LIMITS[dtype]), name
