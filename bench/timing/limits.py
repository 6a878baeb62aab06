"""The rates that this machine reaches: copies, matrix products, the first-level cache of a GPU."""

import time
from collections.abc import Callable
from statistics import median

import torch

L1_BYTES_PER_CYCLE = 128  # of one multiprocessor, on every NVIDIA GPU since Volta


def measure_limits(device: torch.device) -> dict[str, float]:
    """Return the rates reached here: copies in bytes/s (read plus written), matrix products in flop/s, L1 in bytes/s.

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
