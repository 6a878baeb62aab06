"""Host time of one call, ours, deformops' and an empty operator's: thread CPU time, the calls taken in turn.

Sizes are small, for the host's time does not depend on them, while memory is written by the CPU here. Every call is
measured once in each round, right after an unmeasured one; what counts is the minimum.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from stnet.kernels import ms_deform_attn, spatial_temporal_deform_attn

ROUNDS = 400
WARM_UP = 20
SHAPES = ((8, 8), (4, 4), (2, 2))
QUERIES, HEADS, WIDTH, POINTS, FRAMES = 30, 8, 32, 4, 6
TABLE = tuple((t, *(frame for frame in range(FRAMES) if frame != t)) for t in range(3))
CELLS = sum(height * width for height, width in SHAPES)
CALLS = (
    "empty operator",
    "empty custom_op",
    "ms_deform_attn",
    "ms_deform_attn, levels as ints",
    "ms_deform_attn, gradients wanted",
    "ms_deform_attn, backward",
    "spatial_temporal_deform_attn",
    "spatial_temporal_deform_attn, gradients wanted",
    "spatial_temporal_deform_attn, backward",
    "deformops",
    "deformops, int32 levels",
    "deformops, gradients wanted",
    "deformops, backward",
)

_LIBRARY = torch.library.Library("stnet_bench", "DEF")
_LIBRARY.define("empty(Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights) -> Tensor")
_LIBRARY.impl("empty", lambda value, *_: torch.empty((1, QUERIES, HEADS * WIDTH)), "CompositeExplicitAutograd")


@torch.library.custom_op("stnet_bench::custom", mutates_args=())
def _custom(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return torch.empty((1, QUERIES, HEADS * WIDTH))


@pytest.fixture(scope="module")
def calls(pytestconfig) -> Iterator[dict[str, Callable[[], object]]]:
    """Every call by its name; those of deformops where `--bench-peers` says where it is."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        pytest.skip("the driver without a device would take the place of the device's, or of the interpreter")
    pytest.importorskip("triton")
    from bench.host_time import driver, peer

    driver.activate()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(driver.stnet_without_a_device())
        made = _empty_calls() | _msda_calls() | _stda_calls()
        if folder := pytestconfig.getoption("bench_peers"):
            made |= _peer_calls(stack.enter_context(peer.operator(folder)))
        for call in made.values():
            for _ in range(WARM_UP):
                call()
        yield made


def _msda_inputs(grad: bool, dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    value = torch.randn(1, CELLS, HEADS, WIDTH, dtype=torch.float16, requires_grad=grad)
    samples = (1, QUERIES, HEADS, len(SHAPES), POINTS)
    locations = torch.rand(*samples, 2, requires_grad=grad)
    weights = torch.rand(samples, dtype=torch.float16, requires_grad=grad)
    return value, torch.tensor(SHAPES, dtype=dtype), torch.tensor([0, 64, 80], dtype=dtype), locations, weights


def _stda_inputs(grad: bool) -> tuple:
    def random(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=grad)

    query, levels = (1, len(TABLE), QUERIES), len(SHAPES)
    own, others = (*query, HEADS, levels, POINTS), (*query, HEADS, FRAMES - 1, levels, POINTS)
    value = random(1, FRAMES, CELLS, HEADS, WIDTH)
    references = random(*query, levels, 2, dtype=torch.float32)
    return value, SHAPES, references, random(*own, 2), random(*own), random(*others, 2), random(*others)


def _differentiated(output: Tensor, inputs: tuple) -> Callable[[], object]:
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    gradient = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)


def _empty_calls() -> dict[str, Callable[[], object]]:
    inputs = _msda_inputs(False)
    return {
        "empty operator": lambda: torch.ops.stnet_bench.empty(*inputs),
        "empty custom_op": lambda: _custom(*inputs),
    }


def _msda_calls() -> dict[str, Callable[[], object]]:
    inputs, leaves = _msda_inputs(False), _msda_inputs(True)
    value, _, _, locations, weights = inputs
    return {
        "ms_deform_attn": lambda: ms_deform_attn(*inputs, backend="triton"),
        "ms_deform_attn, levels as ints": lambda: ms_deform_attn(
            value, SHAPES, None, locations, weights, backend="triton"
        ),
        "ms_deform_attn, gradients wanted": lambda: ms_deform_attn(*leaves, backend="triton"),
        "ms_deform_attn, backward": _differentiated(ms_deform_attn(*leaves, backend="triton"), leaves),
    }


def _stda_calls() -> dict[str, Callable[[], object]]:
    def attend(inputs: tuple) -> Tensor:
        return spatial_temporal_deform_attn(*inputs, frame_table=TABLE, backend="triton")

    inputs, leaves = _stda_inputs(False), _stda_inputs(True)
    return {
        "spatial_temporal_deform_attn": lambda: attend(inputs),
        "spatial_temporal_deform_attn, gradients wanted": lambda: attend(leaves),
        "spatial_temporal_deform_attn, backward": _differentiated(attend(leaves), leaves),
    }


def _peer_calls(attend: Callable) -> dict[str, Callable[[], object]]:
    inputs, narrow, leaves = _msda_inputs(False), _msda_inputs(False, torch.int32), _msda_inputs(True)
    return {
        "deformops": lambda: attend(*inputs),
        "deformops, int32 levels": lambda: attend(*narrow),
        "deformops, gradients wanted": lambda: attend(*leaves),
        "deformops, backward": _differentiated(attend(*leaves), leaves),
    }


@pytest.mark.benchmark(group="host time", timer=time.thread_time, disable_gc=True)
@pytest.mark.parametrize("implementation", CALLS)
def test_host_time(implementation, calls, benchmark):
    if implementation not in calls:
        pytest.skip("missing: deformops; --bench-peers FOLDER says where it is")
    call, others = calls[implementation], [other for name, other in calls.items() if name != implementation]

    def setup() -> None:
        for other in others:
            other()
        call()

    benchmark.pedantic(call, setup=setup, rounds=ROUNDS)
    benchmark.extra_info.update(suite="host time", implementation=implementation)
