"""Measure the launch table's candidates on the present GPU and write a table with the fastest first.

    python -m stnet.kernels.tune --output launch_table.json --minutes 5
    STNET_LAUNCH_TABLE=launch_table.json python train.py ...

Every candidate of the current table is first compared with the reference on a small problem, then timed on the layers
of the published detector: CUDA events around a CUDA graph of calls on several sets of inputs, so that neither the host
nor an unusually warm cache is measured. Slower candidates stay in the table with their figures; one whose results are
wrong is reported and left out, and one that breaks the GPU's context costs no other: what measures is a process of its
own. Several processes compile all candidates first, for that takes longer than measuring them. Values are stored as the
model stores them. Keys that are used most come first; the table is written after each.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from stnet.errors import ConfigError
from stnet.kernels import published_layers
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors
from stnet.kernels.reference import msda_reference, stda_reference
from stnet.kernels.triton.architecture import architecture, assumed, triton_version
from stnet.kernels.triton.launch_table import (
    DEFAULT_TABLE,
    FEW_QUERIES,
    Candidate,
    Row,
    candidates,
    padded_head_dim,
    read_table,
    write_table,
)

# Relative L2 error of the forward pass on the tuner's own small problem; gradients may have ten times as much.
_LIMITS = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
_INPUT_SETS = 4
COMPILING = 0.5  # at most this share of the time, before anything is measured
MOST_SECONDS = 86400.0  # where no time is named
DECODER_LAYERS = 6  # whose values are one projection
_SMALL_LEVELS = ((7, 9), (4, 5), (2, 3), (1, 2))
# Kernel, dtype and whether the encoder's many queries: inference first, then training, then other people's models.
_MOST_USED = (
    ("stda_forward", "float16", True),
    ("stda_forward", "float16", False),
    ("stda_backward", "bfloat16", True),
    ("stda_forward", "bfloat16", True),
    ("msda_forward", "float16", True),
    ("stda_backward", "bfloat16", False),
    ("stda_forward", "bfloat16", False),
    ("msda_backward", "float16", True),
    ("stda_forward", "float32", True),
    ("stda_backward", "float32", True),
)

Timer = Callable[[Sequence[Callable[[], object]], float], float]


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one kernel's launcher; of a backward kernel also what the forward pass left."""

    kernel: str
    problem: StdaProblem | MsdaProblem
    tensors: StdaTensors[Tensor] | MsdaTensors[Tensor]
    grad_output: Tensor
    results: tuple[Tensor, ...]  # of the forward pass that the backward kernel needs

    @classmethod
    def of(
        cls,
        kernel: str,
        problem: StdaProblem | MsdaProblem,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        *,
        by_heads: bool = False,
    ) -> "Call":
        """Return inputs as of a trained network, values stored as the model and the classic operator's users do.

        That is cell after cell, all heads of a cell together; the decoder's are slices of the projection for all of its
        layers. With `by_heads` they are stored head after head instead.
        """
        from stnet.kernels.triton import forward

        if kernel.startswith("stda"):
            tensors, run_forward = published_layers.stda_inputs(problem, dtype, device, seed), forward.stda_forward
        else:
            tensors, run_forward = published_layers.msda_inputs(problem, dtype, device, seed), forward.msda_forward
        if not by_heads:
            layers = DECODER_LAYERS if kernel.startswith("stda") and problem.queries != problem.positions else 1
            tensors = tensors._replace(value=stored_by_cells(tensors.value, layers))
        output = run_forward(problem, tensors)(tensors)
        results = output if kernel == "stda_backward" else ()
        grad_output = published_layers.output_gradient(output[0] if isinstance(output, tuple) else output)
        return cls(kernel=kernel, problem=problem, tensors=tensors, grad_output=grad_output, results=results)


def stored_by_cells(value: Tensor, layers: int) -> Tensor:
    """Return values [..., S, H, D] as the first of `layers` slices of a projection [..., S, layers * H * D]."""
    rows = value.new_zeros(*value.shape[:-2], layers, *value.shape[-2:])
    rows[..., 0, :, :] = value
    return rows[..., 0, :, :]


def layer(kernel: str, many: bool, head_dim: int, *, small: bool) -> StdaProblem | MsdaProblem:
    """Sizes of a layer: with `many` queries the encoder, else the decoder; at 512 x 512, or small enough to verify."""
    sizes = {"head_dim": head_dim, "heads": 2} if small else {"head_dim": head_dim}
    shapes = _SMALL_LEVELS if small else published_layers.level_shapes(*published_layers.IMAGE)
    if not many:
        sizes["queries"] = 20 if small else published_layers.QUERIES
    if kernel.startswith("msda"):
        return published_layers.classic(shapes, **sizes)
    if small:
        sizes |= {"source_frames": 3, "targets": 2}
    return (published_layers.encoder if many else published_layers.decoder)(shapes, **sizes)


def run(call: Call, candidate: Candidate | None = None) -> tuple[Tensor, ...]:
    """Return the output, or the gradients of all inputs, by a candidate of the launch table."""
    from stnet.kernels.triton import backward, forward

    if call.kernel == "stda_forward":
        return forward.stda_forward(call.problem, call.tensors, candidate=candidate)(call.tensors)[:1]
    if call.kernel == "msda_forward":
        return (forward.msda_forward(call.problem, call.tensors, candidate=candidate)(call.tensors),)
    function = backward.stda_backward if call.kernel == "stda_backward" else backward.msda_backward
    needs = call.tensors._make(x is not None for x in call.tensors)
    saved = (call.grad_output, *call.results)
    differentiate = function(call.problem, call.tensors, *saved, needs, False, candidate=candidate)
    return tuple(x for x in differentiate(call.tensors, *saved) if x is not None)


def expected(call: Call) -> tuple[Tensor, ...]:
    """Return what `run` should return, computed by the reference in float64."""
    leaves = [x.double().requires_grad_() for x in call.tensors if x is not None]
    reference = stda_reference if call.kernel.startswith("stda") else msda_reference
    output = reference(call.problem, type(call.tensors)(*leaves))
    if call.kernel.endswith("forward"):
        return (output.detach(),)
    return torch.autograd.grad(output, leaves, call.grad_output.double())


def largest_error(call: Call, candidate: Candidate | None = None) -> float:
    """Largest relative L2 error among the results of a candidate, as a share of what is allowed."""
    limit = _LIMITS[call.tensors.value.dtype] * (10 if call.kernel.endswith("backward") else 1)
    pairs = zip(run(call, candidate), expected(call), strict=True)
    errors = [((x.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item() for x, truth in pairs]
    return max(error if error == error else float("inf") for error in errors) / limit


def time_on_gpu(calls: Sequence[Callable[[], object]], seconds: float) -> float:
    """Median milliseconds of one call, all calls replayed in turn as one CUDA graph for about `seconds`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / len(calls)

    once = max(replay() for _ in range(3))
    repeats = max(5, min(1000, round(seconds * 1e3 / (once * len(calls)))))
    return sorted(replay() for _ in range(repeats))[repeats // 2]


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a row of the table is for; `many` stands for the encoder's number of queries, else it is the decoder's."""

    kernel: str
    dtype: torch.dtype
    head_dim: int
    many: bool
    device: torch.device

    @property
    def dtype_name(self) -> str:
        """As the table has it."""
        return str(self.dtype).removeprefix("torch.")

    def candidates(self) -> tuple[Candidate, ...]:
        """Return what the launch table in force names for the key."""
        queries = FEW_QUERIES + self.many
        return candidates(self.kernel, architecture(self.device), self.dtype, self.head_dim, queries)


@lru_cache(maxsize=2)
def _calls(key: Key, by_heads: bool) -> list[Call]:
    full = layer(key.kernel, key.many, key.head_dim, small=False)
    return [Call.of(key.kernel, full, key.dtype, key.device, seed, by_heads=by_heads) for seed in range(_INPUT_SETS)]


def measure(
    key: Key, candidate: Candidate, seconds: float, by_heads: bool, timer: Timer = time_on_gpu
) -> tuple[float, float | None]:
    """Return a candidate's largest error as a share of what is allowed, and its milliseconds if that is at most 1."""
    small = layer(key.kernel, key.many, key.head_dim, small=True)
    share = largest_error(Call.of(key.kernel, small, key.dtype, key.device, seed=0, by_heads=by_heads), candidate)
    if not share <= 1:
        return share, None
    return share, timer([partial(run, call, candidate) for call in _calls(key, by_heads)], seconds)


def compile_ahead(
    wanted: Sequence[Key], processes: int, seconds: float, compiled_by: Callable = measure, start: str = "spawn"
) -> int:
    """Compile the candidates of keys into Triton's cache for at most `seconds`; return how many of them ended well.

    Each is run once as it will be measured, so that measuring finds all of its kernels. What fails here fails again,
    and is reported, when it is measured.
    """
    tasks = [(key, candidate) for key in wanted for candidate in key.candidates()]
    pool = ProcessPoolExecutor(max_workers=min(processes, len(tasks)), mp_context=get_context(start))
    try:
        futures = [pool.submit(compiled_by, key, candidate, 0.0, False, run_once) for key, candidate in tasks]
        return sum(future.exception() is None for future in wait(futures, timeout=seconds).done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def compile_for(arch: str, key: Key, candidate: Candidate, *_: Any) -> None:
    """Compile a candidate for a GPU that is not here, as `measure` looks for it there; `key` is of the CPU."""
    from stnet.kernels.triton.without_device import compiling_for

    with compiling_for(arch):
        for small in (True, False):
            run(_call(key, small), candidate)


@lru_cache(maxsize=2)
def _call(key: Key, small: bool) -> Call:
    problem = layer(key.kernel, key.many, key.head_dim, small=small)
    return Call.of(key.kernel, problem, key.dtype, key.device, seed=0)


def run_once(calls: Sequence[Callable[[], object]], seconds: float) -> float:
    """Run the first call, in place of a timer."""
    calls[0]()
    torch.cuda.synchronize()
    return 0.0


class Isolated:
    """Runs a function in a process of its own, which ends with the first error; what comes then gets a new one.

    An illegal address leaves a process without its GPU for good: it may cost one candidate, not those after it.
    """

    def __init__(self, function: Callable, start: str = "spawn"):
        self._function, self._start = function, start
        self._process: ProcessPoolExecutor | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns, or raise what it raises; RuntimeError where its process has died."""
        if self._process is None:
            self._process = ProcessPoolExecutor(max_workers=1, mp_context=get_context(self._start))
        try:
            return self._process.submit(self._function, *arguments).result()
        except BrokenProcessPool as error:
            self.close()
            raise RuntimeError("the process that measured has died") from error
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.shutdown(wait=True, cancel_futures=True)
            self._process = None


def tune_key(key: Key, seconds: float, measured_by: Callable = measure, report: Callable[[str], None] = print) -> Row:
    """Return the measured row of one key, correct candidates only, the fastest first.

    Each candidate is timed for `seconds` on values as the model stores them; the fastest then on values by heads, too,
    which is reported.

    Raises:
        ConfigError: no candidate gave correct results.
    """
    arch = architecture(key.device)
    head = f"{key.kernel} {key.dtype_name} D={key.head_dim} {'many' if key.many else 'few'}"

    def measured(candidate: Candidate, by_heads: bool = False) -> Candidate | None:
        label = f"{head} {candidate.as_json()}{' values by heads' if by_heads else ''}"
        try:
            share, milliseconds = measured_by(key, candidate, seconds, by_heads)
        except Exception as error:  # whatever a compiler or a GPU raises: the other candidates may still do
            report(f"{label}: FAILED, {type(error).__name__}: {error}")
            return None
        if milliseconds is None:
            report(f"{label}: WRONG, {share:.1f} times the allowed error")
            return None
        report(f"{label}: {milliseconds:.4f} ms")
        return replace(candidate, milliseconds=round(milliseconds, 5))

    tried = map(measured, key.candidates())
    correct = sorted(filter(None, tried), key=lambda candidate: candidate.milliseconds)
    if not correct:
        raise ConfigError(
            f"no candidate of {key.kernel} for {arch}, {key.dtype_name}, head width {key.head_dim} is correct"
        )
    measured(replace(correct[0], milliseconds=None), by_heads=True)
    return Row(
        kernel=key.kernel,
        architectures=(arch,),
        dtypes=(key.dtype_name,),
        head_dims=(padded_head_dim(key.head_dim),),
        many_queries=key.many,
        candidates=tuple(correct),
    )


def merge(measured: Sequence[Row], table: Sequence[Row]) -> list[Row]:
    """Measured rows before those of a table, which lose rows for the same keys."""

    def key(row: Row) -> tuple:
        return row.kernel, row.architectures, row.dtypes, row.head_dims, row.many_queries

    replaced = {key(row) for row in measured}
    return [*measured, *(row for row in table if key(row) not in replaced)]


def keys(kernels: Sequence[str], dtypes: Sequence[str], head_dims: Sequence[int]) -> list[tuple[str, str, int, bool]]:
    """(kernel, dtype, head width, many queries) of all combinations, those that are used most first."""
    found = [(k, dtype, dim, many) for dim in head_dims for k in kernels for dtype in dtypes for many in (True, False)]
    order = {key: index for index, key in enumerate(_MOST_USED)}
    return sorted(found, key=lambda key: order.get((key[0], key[1], key[3]), len(order)))


def _wanted(options: argparse.Namespace, device: torch.device) -> list[Key]:
    return [
        Key(kernel=kernel, dtype=getattr(torch, dtype), head_dim=head_dim, many=many, device=device)
        for kernel, dtype, head_dim, many in keys(options.kernels, options.dtypes, options.head_dims)
    ]


def tune(options: argparse.Namespace, device: torch.device, report: Callable[[str], None] = print) -> int:
    """Measure key after key while there is time, writing the table after each; return how many could not be tuned."""
    limit = 60 * options.minutes if options.minutes is not None else MOST_SECONDS
    deadline = time.monotonic() + limit
    table, measured, failed = read_table(DEFAULT_TABLE), [], 0
    wanted = _wanted(options, device)
    write_table(options.output, table)
    if options.processes > 1:
        count = compile_ahead(wanted, options.processes, COMPILING * limit)
        report(f"compiled {count} candidates")
    isolated = Isolated(measure)
    for key in wanted:
        if time.monotonic() > deadline:
            break
        try:
            measured.append(tune_key(key, options.seconds, isolated, report))
        except Exception as error:  # whatever it is, the keys after it are worth their time
            failed += 1
            report(f"error: {key.kernel} {key.dtype_name} D={key.head_dim}: {type(error).__name__}: {error}")
            continue
        write_table(options.output, merge(measured, table))
    isolated.close()
    report(f"measured {len(measured)} of {len(wanted)} keys; use them with STNET_LAUNCH_TABLE={options.output}")
    return failed


def tune_here(options: argparse.Namespace) -> int:
    """Tune on this machine's GPU; return the exit status.

    Raises:
        ConfigError: there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError("the tuner measures on a GPU, and PyTorch finds none here (torch.cuda.is_available())")
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, {architecture(device)}", flush=True)
    return 1 if tune(options, device, partial(print, flush=True)) else 0


def compile_elsewhere(options: argparse.Namespace) -> int:
    """Compile all candidates for a GPU that is not here; return the exit status: 1 where some did not compile.

    Raises:
        ConfigError: nothing can be compiled here.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError("TRITON_INTERPRET is set, which compiles nothing; unset it")
    if not triton_version():
        raise ConfigError("compiling needs the package triton: pip install triton")
    limit = 60 * options.minutes if options.minutes is not None else MOST_SECONDS
    with assumed(options.compile_for):
        wanted = _wanted(options, torch.device("cpu"))
        total = sum(len(key.candidates()) for key in wanted)
        count = compile_ahead(wanted, options.processes, limit, partial(compile_for, options.compile_for))
    print(f"compiled {count} of {total} candidates for {options.compile_for}")
    return 0 if count == total else 1


if __name__ == "__main__":
    from stnet.kernels.tune_command import main

    sys.exit(main())
