"""The strongest published Triton kernels, counted like ours: deformops (PyPI, MIT), where it can be found.

deformops 3.0.1 is pure Python: `pip install --no-deps --target FOLDER deformops==3.0.1` (with `--python-version 3.12
--only-binary=:all:` under an older Python) and `--peers FOLDER`. Only its kernel module is loaded, without the
package's own registrations, which need more than the kernels do. Its softmax is fused forward; backward it runs in
PyTorch around the kernel, and is not counted.
"""

import importlib
import importlib.util
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.compile_report.cases import LAYERS
from bench.sass import CubinError, WalkError, analyse_kernel
from stnet.kernels.problem import StdaProblem, level_starts

PACKAGE = "deformops"
_KERNELS = "deformops.backends.triton._kernels.msda_query_tiled"
_BLOCK = 32
_POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}


@dataclass(frozen=True, kw_only=True)
class PeerCase:
    """A kernel of deformops; `gradient`: dtype of the value gradient's buffer, None for the forward kernel."""

    folder: str | None
    dtype: str
    gradient: str | None
    target: str


def find(folder: str | None) -> str | None:
    """Version of deformops in the folder, or among the installed packages; None where there is none."""
    root = _root(folder)
    if root is None:
        return None
    found = sorted(root.parent.glob(f"{PACKAGE}-*.dist-info"))
    return found[-1].name.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info") if found else "unknown"


def peer_cases(folder: str | None, targets: tuple[str, ...]) -> list[PeerCase]:
    """Forward in 16 and 32 bits, backward into both kinds of buffers, for NVIDIA targets."""
    kinds = (("float16", None), ("float32", None), ("float16", "float16"), ("float16", "float32"))
    return [
        PeerCase(folder=folder, dtype=dtype, gradient=gradient, target=target)
        for target in targets
        if target.startswith("sm_")
        for dtype, gradient in kinds
    ]


def measure_peer(case: PeerCase) -> dict[str, Any]:
    """Its row: 56 samples per query and head (4 levels of 14 points), as the published encoder layer has."""
    row = {
        "package": PACKAGE,
        "version": find(case.folder),
        "kernel": "backward" if case.gradient else "forward",
        "dtype": case.dtype,
        "value_gradient": case.gradient,
        "target": case.target,
    }
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError

    module = _load(case.folder)
    kernel = module._msda_backward_kernel if case.gradient else module.msda_forward_kernel
    points = LAYERS["encoder"].samples // LAYERS["encoder"].levels
    arguments = _arguments(LAYERS["encoder"], points, kernel.arg_names)
    constants = {"BLOCK_SIZE_Q": _BLOCK, "BLOCK_SIZE_D": LAYERS["encoder"].head_dim, "aggregate": 1}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    names = kernel.arg_names
    # As a launch specializes them: numbers divisible by 16 are known to be, ones are constants.
    constants |= {name: 1 for name in names if arguments.get(name) == 1}
    signature = {
        name: "constexpr" if name in constants else _pointer(name, case) if name.endswith("_ptr") else "i32"
        for name in names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name.endswith("_ptr") or (name in arguments and name not in constants and arguments[name] % 16 == 0)
    }
    try:
        source = ASTSource(
            kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", int(case.target[3:]), 32))
        known = {name: value for name, value in arguments.items() if name not in constants}
        shapes = np.array(LAYERS["encoder"].spatial_shapes, np.int64)
        starts = np.array(level_starts(LAYERS["encoder"].spatial_shapes), np.int64)
        analysis = analyse_kernel(compiled, known | {"shapes_ptr": shapes, "level_start_index_ptr": starts})
    except (CompilationError, CubinError, WalkError) as error:
        return row | {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}
    samples = _BLOCK * LAYERS["encoder"].samples
    per_sample = {
        name: {str(key): round(count / samples, 3) for key, count in getattr(analysis, name).items()}
        for name in ("gathers", "reductions")
    }
    return row | {
        "registers": analysis.registers,
        "spill_instructions": analysis.static_spills,
        "instructions": round(analysis.executed / samples, 3),
        **per_sample,
    }


def _root(folder: str | None) -> Path | None:
    if folder is not None:
        path = Path(folder) / PACKAGE
        return path if path.is_dir() else None
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _load(folder: str | None) -> Any:
    """Return the kernel module alone: its parent packages stand in as empty ones that know where their files are."""
    root = _root(folder)
    for name in ("", ".core", ".backends", ".backends.triton", ".backends.triton._kernels"):
        package = types.ModuleType(PACKAGE + name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[PACKAGE + name] = package
    return importlib.import_module(_KERNELS)


def _pointer(name: str, case: PeerCase) -> str:
    if name in ("shapes_ptr", "level_start_index_ptr"):
        return "*i64"
    if name == "loc_ptr" or name == "grad_loc_ptr":
        return "*fp32"
    return _POINTERS[case.gradient if name == "grad_value_ptr" else case.dtype]


def _arguments(problem: StdaProblem, points: int, names: list[str]) -> dict[str, int]:
    """Its numbers for contiguous tensors of the layer, as its launcher passes them."""
    heads, levels, width, queries = problem.heads, problem.levels, problem.head_dim, problem.queries
    shapes = {
        "v": (1, problem.positions, heads, width),
        "l": (1, queries, heads, levels, points, 2),
        "a": (1, queries, heads, levels, points),
        "o": (1, queries, heads, width),
    }
    letters = {"v": "bshd", "l": "bqhlpc", "a": "bqhlp", "o": "bqhd"}
    numbers = {
        "batch_size": 1,
        "num_queries": queries,
        "num_heads": heads,
        "num_levels": levels,
        "num_points": points,
        "dim_per_head": width,
    }
    for tensor, shape in shapes.items():
        for axis, letter in enumerate(letters[tensor]):
            stride = math.prod(shape[axis + 1 :])
            numbers[f"stride_{tensor}{letter}"] = numbers[f"stride_g{tensor}{letter}"] = stride
    return {name: numbers[name] for name in names if name in numbers}
