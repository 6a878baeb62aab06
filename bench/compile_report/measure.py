"""Compile one case and measure what came out. Runs in worker processes, which must not interpret Triton."""

import math
import os
import re
from collections import Counter
from typing import Any

import torch

from bench.compile_report.cases import Case, describe
from bench.compile_report.compare import CORNERS
from bench.compile_report.locality import gather_lines
from bench.sass import Analysis, CubinError, WalkError, analyse_kernel
from stnet.kernels.triton.ahead_of_time import calls
from stnet.kernels.triton.device_tables import frame_columns, frame_offsets, level_tables, query_order
from stnet.kernels.triton.kernel_call import KernelCall

_WARP = 32
_BLOCKED = re.compile(r"(#\w+) = #ttg\.blocked<\{.*?threadsPerWarp = \[([\d, ]+)\]")
_LOAD = re.compile(r"tt\.load .*?tensor<((?:\d+x)+)!tt\.ptr<(\w+)>, (#\w+)>")
_ELEMENTS = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
_VECTORS = {"ushort": 2, "short": 2, "ubyte": 1, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def forbid_interpreter() -> None:
    """Triton cannot compile in a process that interprets; to be called before it is imported."""
    os.environ.pop("TRITON_INTERPRET", None)


def measure(case: Case) -> dict[str, Any]:
    """Return the row of a case, JSON types only; `error` instead of measurements where it does not compile."""
    row = {
        "kernel": case.kernel,
        "layer": case.layer,
        "dtype": case.dtype,
        "head_dim": case.head_dim,
        "candidate": describe(case.candidate),
        "default": case.default,
        "target": case.target,
    }
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        launches = calls(case.kernel, case.candidate, case.torch_dtype, case.head_dim, case.problem, arch=case.target)
        compiled = [_compile(call, case.target) for call in launches]
        measured = _measure_amd if case.target.startswith("gfx") else _measure_nvidia
        return row | measured(case, launches, compiled)
    except (CompilationError, PTXASError, OutOfResources, CubinError, WalkError, RuntimeError) as error:
        return row | {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}


def _compile(call: KernelCall, target: str) -> Any:
    import triton

    from stnet.kernels.triton.without_device import target_of

    return triton.compile(call.ast_source(), target=target_of(target), options=dict(call.options))


def _measure_nvidia(case: Case, launches: list[KernelCall], compiled: list[Any]) -> dict[str, Any]:
    analyses = [
        analyse_kernel(kernel, _known_arguments(case, call), grid=call.grid)
        for call, kernel in zip(launches, compiled, strict=True)
    ]
    programs = [math.prod(call.grid) for call in launches]

    def per_sample(field: str) -> dict[str, float]:
        total: Counter[str] = Counter()
        for count, analysis in zip(programs, analyses, strict=True):
            for key, number in getattr(analysis, field).items():
                total[str(key)] += number * count
        return {key: round(number / case.full_tile_samples, 3) for key, number in total.most_common()}

    issued = sum(count * analysis.executed for count, analysis in zip(programs, analyses, strict=True))
    row = {
        "launches": [analysis.kernel for analysis in analyses],
        "registers": max(analysis.registers for analysis in analyses),
        "shared_bytes": max(kernel.metadata.shared for kernel in compiled),
        "stack_bytes": max(analysis.stack for analysis in analyses),
        "spill_instructions": sum(analysis.static_spills for analysis in analyses),
        "instructions": round(issued / case.full_tile_samples, 3),
        "classes": per_sample("classes"),
        "loads": per_sample("loads"),
        "gathers": per_sample("gathers"),
        "stores": per_sample("stores"),
        "reductions": per_sample("reductions"),
        "atomics": per_sample("atomics"),
        "assumed_branches": sum(len(analysis.assumptions) for analysis in analyses),
        "gathered_rows": _gathered_rows(case, analyses[0], programs[0]),
    }
    if row["reductions"]:
        row["reduced_rows"] = _reduced_rows(case, launches[0], analyses[0], programs[0])
    return row | _locality(case, launches[0], compiled[0])


def _known_arguments(case: Case, call: KernelCall) -> dict[str, Any]:
    """Scalars as launched, and the contents of the small tables that decide addresses and loops."""
    cpu = torch.device("cpu")
    shapes, starts = level_tables(case.problem.spatial_shapes, cpu)
    tables = {"shapes": shapes, "starts": starts}
    value = call.arguments.get("value")
    if "frames" in call.arguments and isinstance(value, torch.Tensor):
        tables["frames"] = frame_offsets(case.problem.frame_table, value.stride(1), cpu)
    if "columns" in call.arguments:
        tables["columns"] = frame_columns(case.problem.frame_table, case.problem.source_frames, cpu)
    if call.constants.get("ORDERED"):
        tables["order"] = query_order(case.problem.spatial_shapes, case.candidate.block_queries, cpu)
    known: dict[str, Any] = {}
    for name, argument in call.arguments.items():
        if not isinstance(argument, torch.Tensor):
            known[name] = argument
        elif name in tables:
            known[name] = tables[name].to(argument.dtype).numpy()
    return known


def _gathered_rows(case: Case, analysis: Analysis, programs: int) -> float:
    """Corner rows read per sample: the gathers' bytes over the bytes of a row."""
    size = sum(width * count for width, count in analysis.gathers.items())
    return round(size * programs * _WARP / case.row_bytes / case.full_tile_samples, 3)


def _reduced_rows(case: Case, call: KernelCall, analysis: Analysis, programs: int) -> float:
    """Rows of the float32 value gradient added to per sample; levels that another kernel sums count as if added to."""
    vectors = sum(int(kind.partition("x")[2] or 1) * count for kind, count in analysis.reductions.items())
    apart = CORNERS * call.constants.get("SUMMED", 0).bit_count() / case.problem.levels
    return round(vectors * programs * _WARP / case.head_dim / case.full_tile_samples + apart, 3)


def _locality(case: Case, call: KernelCall, kernel: Any) -> dict[str, Any]:
    lanes = lanes_per_row(kernel.asm["ttgir"], case.dtype, case.channels)
    if lanes is None or case.row_bytes & (case.row_bytes - 1):
        return {}
    near, uniform = (
        gather_lines(
            case.problem,
            block_queries=case.candidate.block_queries,
            lanes_per_row=lanes,
            row_bytes=case.row_bytes,
            ordered=bool(call.constants.get("ORDERED")),
            step=int(call.constants.get("STEP", 1)),
            uniform=anywhere,
        )
        for anywhere in (False, True)
    )
    return {
        "lanes_per_row": lanes,
        "lines_per_gather": {"near": round(near.per_gather, 2), "uniform": round(uniform.per_gather, 2)},
        "lines_per_sample": {"near": round(near.per_sample, 3), "uniform": round(uniform.per_sample, 3)},
    }


def lanes_per_row(ttgir: str, dtype: str, channels: int) -> int | None:
    """Lanes that read one cell's channels, from the layout of the gathers in Triton's GPU IR; None if there is none."""
    layouts = {name: [int(n) for n in lanes.split(",")] for name, lanes in _BLOCKED.findall(ttgir)}
    widest = Counter(
        layouts[layout][-1]
        for shape, element, layout in _LOAD.findall(ttgir)
        if layout in layouts
        and _ELEMENTS.get(element) == dtype
        and shape.count("x") == 2
        and int(shape.split("x")[1]) >= channels
    )
    return widest.most_common(1)[0][0] if widest else None


def _measure_amd(case: Case, launches: list[KernelCall], compiled: list[Any]) -> dict[str, Any]:
    """Resources and static widths; the instruction walk knows NVIDIA's instructions only.

    Spills are accesses of scratch memory; scalar registers spill into lanes of vector registers and are told apart.
    """
    texts = [kernel.asm["amdgcn"] for kernel in compiled]
    found = {name: [_metadata(text, name) for text in texts] for name in _AMD_FIELDS}
    loads: Counter[str] = Counter()
    reductions: Counter[str] = Counter()
    for text in texts:
        loads.update(
            str(_VECTORS[kind]) for kind in re.findall(r"\b(?:global|buffer|flat)_load_(\w+)", text) if kind in _VECTORS
        )
        reductions.update(re.findall(r"\b(?:global|buffer|flat)_atomic_(\w+)", text))
    return {
        "launches": [kernel.metadata.name for kernel in compiled],
        "registers": max(found["vgpr_count"]),
        "shared_bytes": max(kernel.metadata.shared for kernel in compiled),
        "stack_bytes": max(found["private_segment_fixed_size"]),
        "spill_instructions": sum(len(_SCRATCH.findall(text)) for text in texts),
        "scalar_spills": sum(found["sgpr_spill_count"]),
        "static_loads": dict(loads.most_common()),
        "static_reductions": dict(reductions.most_common()),
    }


_AMD_FIELDS = ("vgpr_count", "sgpr_spill_count", "private_segment_fixed_size")
_SCRATCH = re.compile(r"\bscratch_(?:load|store)_")


def _metadata(text: str, name: str) -> int:
    match = re.search(rf"\.{name}:\s+(\d+)", text)
    if match is None:
        raise RuntimeError(f"the AMD assembly names no {name}")
    return int(match[1])
