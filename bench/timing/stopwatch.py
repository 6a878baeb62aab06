"""Timing of one implementation: wall time by pytest-benchmark, device time by events, memory, ratio to a baseline."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

# Largest accepted RMS error relative to the float32 reference. Float32 sums in another order stay far below theirs,
# products in TensorFloat-32 do not; 16-bit limits are a few roundings of the output and its samples.
ERROR_LIMITS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Gradients by position jump where a sample crosses into the next cell; a few samples in a million round across.
JUMP_LIMIT = 3e-2
WARMUP_ROUNDS = 2
FEWEST_ROUNDS, MOST_ROUNDS = 4, 50
FLUSHED_BYTES = 2**28  # more than any L2 holds
SLEEP_CYCLES_PER_SECOND = 2.0e9  # about a GPU's clock
LONGEST_SLEEP = 0.05  # seconds


class WrongResultError(Exception):
    """An implementation whose result is too far from the reference's; it gets no time."""


def _as_they_are(*arguments: Any) -> tuple:
    return arguments


@dataclass(frozen=True, kw_only=True)
class Action:
    """What is timed: `run`, called with what `prepare` (not timed) makes of one set of inputs.

    With `by_device` a GPU's own time is measured too; without, the host takes part, and wall time alone says something.
    """

    run: Callable[..., Any]
    prepare: Callable[..., tuple] = _as_they_are
    by_device: bool = True

    def whole(self, *inputs: Any) -> Any:
        """Do both at once; return the result of `run`."""
        return self.run(*self.prepare(*inputs))


def relative_error(output: Tensor, reference: Tensor) -> float:
    """||output - reference|| / ||reference||, in float32; NaN stays NaN.

    Raises:
        WrongResultError: the shapes differ.
    """
    if output.shape != reference.shape:
        raise WrongResultError(f"a result has shape {list(output.shape)}, expected {list(reference.shape)}")
    output, reference = output.detach().float(), reference.detach().float()
    return ((output - reference).norm() / reference.norm().clamp_min(1e-12)).item()


def require_correct(output: Tensor, reference: Tensor, limit: float, what: str = "result") -> float:
    """Return the relative error of a result, if it is below the limit.

    Raises:
        WrongResultError: the result is too far off, not finite, or of another shape.
    """
    error = relative_error(output, reference)
    if not error <= limit:
        raise WrongResultError(f"{what}: relative error {error:.2g} against the float32 reference exceeds {limit:.2g}")
    return error


def time_action(
    benchmark,
    action: Action,
    sets: Sequence[tuple],
    device: torch.device,
    seconds: float,
    baseline: Action | None = None,
) -> dict[str, Any]:
    """Time an action by the `benchmark` fixture for about `seconds`; return what that does not measure itself.

    Args:
        benchmark: the fixture of pytest-benchmark.
        action: what is timed.
        device: where it runs.
        seconds: about how long.
        sets: inputs, taken in turn, so that no run finds its own in a cache.
        baseline: timed in turn with the action; for a CPU, whose speed drifts when it is shared.

    Returns:
        On a GPU: `peak_bytes` allocated by preparation and run and, `by_device`, `device_cold` and `device_hot`, median
        seconds between events with the L2 cache flushed or the same inputs as in the run before. On a CPU with a
        baseline: `ratio`, the 20, 50 and 80 % quantiles of baseline time over own time, round by round.
    """
    inputs = cycle(sets)
    round_seconds = _warm_up(action, inputs, device)
    if baseline is not None:
        round_seconds += _warm_up(baseline, inputs, device)
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / round_seconds)))
    baseline_seconds = []

    def setup():
        if baseline is not None:
            baseline_seconds.append(_timed(baseline, next(inputs), device))
        arguments = action.prepare(*next(inputs))
        _synchronize(device)
        return arguments, {}

    def target(*arguments: Any) -> None:
        action.run(*arguments)
        _synchronize(device)

    benchmark.pedantic(target, setup=setup, rounds=rounds)
    if device.type == "cuda":
        found = {"peak_bytes": _peak_bytes(action, next(inputs))}
        if action.by_device:
            found["device_cold"] = _device_seconds(action, inputs, rounds, round_seconds, flush=True)
            found["device_hot"] = _device_seconds(action, cycle(sets[:1]), rounds, round_seconds, flush=False)
        return found
    if baseline is None:
        return {}
    return {"ratio": quantiles([b / own for b, own in zip(baseline_seconds, benchmark.stats.stats.data, strict=True)])}


def quantiles(values: Sequence[float]) -> list[float]:
    """20 %, 50 % and 80 % quantiles."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64).quantile(levels).tolist()


def _timed(action: Action, inputs: tuple, device: torch.device) -> float:
    arguments = action.prepare(*inputs)
    _synchronize(device)
    start = time.perf_counter()
    action.run(*arguments)
    _synchronize(device)
    return time.perf_counter() - start


def _warm_up(action: Action, inputs: Iterator[tuple], device: torch.device) -> float:
    """Run (compilation, allocator) and return the seconds of the last run."""
    return [_timed(action, next(inputs), device) for _ in range(WARMUP_ROUNDS)][-1]


def _device_seconds(action: Action, inputs: Iterator[tuple], rounds: int, host: float, flush: bool) -> float:
    """Median time between events. The GPU is kept busy first, so that launches queue up and leave no gaps."""
    cycles = int(min(1.5 * host, LONGEST_SLEEP) * SLEEP_CYCLES_PER_SECOND)
    buffer = torch.empty(FLUSHED_BYTES if flush else 0, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(rounds):
        arguments = action.prepare(*next(inputs))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        buffer.zero_()
        torch.cuda._sleep(cycles)
        start.record()
        action.run(*arguments)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return quantiles(times)[1]


def _peak_bytes(action: Action, inputs: tuple) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action.whole(*inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
