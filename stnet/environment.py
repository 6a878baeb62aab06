"""What a run or a measurement was made on: machine, versions, commit. Names no host and no user."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import stnet

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numba",
    "numpy",
    "scipy",
    "pycocotools",
    "transformers",
    "deformops",
    "torch-ms-deform-attn",
    "mmcv-lite",
    "onnxruntime",
    "openvino",
)
COMMIT_VARIABLE = "STNET_COMMIT"
"""Environment variable that names the commit where there is no checkout, such as on a machine that has only a copy."""


def describe(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return date, processor, GPU, versions and commit of this process.

    Args:
        device: the one that computes; a GPU is described with its memory and capability.
    """
    device = torch.device(device)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device.type,
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": _gpu(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "stnet": stnet.__version__,
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "commit": commit(),
    }


def commit() -> str:
    """Return $STNET_COMMIT where it is set, else the checkout's commit, "+" appended when code differs, or "unknown".

    What is stated goes first: a copy of the code on another machine may have an old history beside it.
    """
    if stated := os.environ.get(COMMIT_VARIABLE):
        return stated
    checkout = Path(stnet.__file__).parents[1]
    if not (checkout / ".git").exists():
        return "unknown"
    try:
        head = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", "*.py", "stnet")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
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
