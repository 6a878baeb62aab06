"""What kernels need to know of a GPU: its architecture as the launch table names it, and what that can do."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache

import torch

_ASSUMED: ContextVar[str | None] = ContextVar("assumed architecture", default=None)


@cache
def triton_version() -> str:
    """Major and minor version of the installed Triton, "" without one. The machine code of a kernel depends on it."""
    try:
        import triton
    except ImportError:
        return ""
    return ".".join(triton.__version__.split(".")[:2])


@contextmanager
def assumed(arch: str) -> Iterator[None]:
    """Take the CPU for a GPU of an architecture; see `without_device`."""
    token = _ASSUMED.set(arch)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def assumed_architecture() -> str | None:
    """Return the architecture of the GPU that the CPU is taken for, None where it is none."""
    return _ASSUMED.get()


def architecture(device: torch.device) -> str:
    """Architecture of a GPU as the launch table names it; "cpu" under Triton's interpreter."""
    if device.type != "cuda":
        return _ASSUMED.get() or device.type
    return _architecture(device)


@lru_cache
def _architecture(device: torch.device) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def is_nvidia(arch: str) -> bool:
    """Whether kernels for an architecture may hold inline PTX."""
    return arch.startswith("sm_")


def warp_lanes(arch: str) -> int:
    """Lanes of a warp."""
    return 64 if arch.startswith("gfx") else 32


def has_packed_arithmetic(arch: str) -> bool:
    """Whether an architecture has the instructions of the "packed" and "matrix" arithmetics: NVIDIA from sm_80 on."""
    return is_nvidia(arch) and int(arch.removeprefix("sm_")) >= 80


def has_vector_reductions(arch: str) -> bool:
    """Whether one reduction adds up to four float32 in global memory: NVIDIA from sm_90 on."""
    return is_nvidia(arch) and int(arch.removeprefix("sm_")) >= 90
