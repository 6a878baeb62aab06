"""The device that a command computes on."""

import platform

import torch

from stnet.errors import ConfigError


def resolve_device(name: str | torch.device = "auto", local_rank: int = 0) -> torch.device:
    """Return the device with its index: a GPU where there is one for `auto`.

    CUDA's current device belongs to a thread and starts at 0 in each; an indexed device means the same in all of them.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`. `cuda` is the process's current device, or that of its local rank.
        local_rank: number of this process on its machine where several share the GPUs.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigError(f"--device {name}: only cpu and cuda are supported; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.index is not None:
        number = device.index
    elif local_rank or not count:
        number = local_rank
    else:
        number = torch.cuda.current_device()
    if number >= count:
        raise ConfigError(f"--device {name}: this machine has {count} CUDA devices; use --device cpu")
    return torch.device("cuda", number)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the device or the host did not suffice.

    PyTorch has a type for its own allocations on a device alone. The host's, and what CUDA, its libraries and Triton
    need beside them (graphs, pinned memory, work spaces, machine code), end in errors that only their text tells apart.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = "DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and any(text in str(error) for text in told)


def cpu_computes_bfloat16() -> bool:
    """Return whether this processor has instructions for products of bfloat16.

    Without them PyTorch converts every number to float32 and back, ten times as slow as in float32 (AVX2, two cores).
    """
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
