"""What a measurement ran on: processor, GPU, versions, commit, and the rates this machine reaches."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

COMMIT_VARIABLE = "STNET_BENCH_COMMIT"
PACKAGES = ("torch", "torchvision", "triton", "numba", "numpy", "transformers", "deformops", "msda-triton", "mmcv")
L1_BYTES_PER_CYCLE = 128  # of one multiprocessor, on every NVIDIA GPU since Volta


def describe(device: torch.device) -> dict[str, Any]:
    """Date, machine and versions, as results carry them; names no host and no user."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": _gpu(device),
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "commit": commit(),
    }


def commit() -> str:
    """Commit of the checkout, "+" appended when files differ from it; where there is none, $STNET_BENCH_COMMIT."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "../stnet", "../bench/*.py")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE, "unknown")
    return head + ("+" if changed else "")


def measure_limits(device: torch.device) -> dict[str, float]:
    """Rates reached here: copies in bytes/s (read plus written), matrix products in flop/s, L1 in bytes/s.

    The L1 rate is the one number not measured: multiprocessors x 128 bytes x their highest clock; absent on a CPU.
    """
    gpu = device.type == "cuda"
    limits = {"copy": _copy_rate(device, 2**30 if gpu else 2**26)}
    size = 8192 if gpu else 1024
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if gpu else (torch.float32,)
    for dtype in dtypes:
        limits[f"matmul_{_short(dtype)}"] = _matmul_rate(device, dtype, size)
    clock = getattr(torch.cuda.get_device_properties(device), "clock_rate", 0) if gpu else 0
    if clock:
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        limits["l1"] = multiprocessors * L1_BYTES_PER_CYCLE * clock * 1e3
    return limits


def _copy_rate(device: torch.device, size: int) -> float:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def _seconds(run: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    times = []
    for _ in range(rounds + 2):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda or torch.version.hip,
    }
