"""The operators on a GPU: the kernels as compiled, races, graphs, memory, large tensors."""

import itertools
import os
import subprocess
import sys
import time

import pytest
import torch

pytestmark = pytest.mark.gpu

MIB = 2**20
PAPER_LEVELS = ((64, 64), (32, 32), (16, 16), (8, 8))


def poisoned(case, dtype=torch.float32):
    """The case on the GPU; memory that is handed out next is full of NaN, so that nothing unwritten passes as zero."""
    case = case.to(dtype=torch.float32, device="cuda")
    halves = {name: x.to(dtype) for name, x in case.tensors.items() if "reference" not in name}
    case = case.replaced(**halves)
    # Enough blocks of every size the call may ask for; freed, they go back to the allocator's cache.
    del_later = [
        torch.full((size,), torch.nan, device="cuda") for size in (2**9, 2**14, 2**18, 2**22) for _ in range(8)
    ]
    del del_later
    return case


def bits(case, **options):
    output, grads = case.gradients("triton", "cuda", **options)
    return [output, *grads.values()]


def same(left, right):
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


# Compiling takes most of the time: what one compiled kernel does for several sizes is one test.
GRID = [
    dict(zip(("dim", "components", "levels"), sizes, strict=True))
    for sizes in itertools.product((8, 16, 20, 32, 64, 128, 256), (2, 4), ("plain", "narrow"))
]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-6), (torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("sizes", GRID, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_matches_float64(stda_case, error, launches, sizes, dtype, limit):
    for others in (0, 2):
        case = poisoned(
            stda_case(
                shapes=((13, 20), (6, 9), (3, 4)) if sizes["levels"] == "plain" else ((1, 1), (1, 17), (9, 1)),
                dim=sizes["dim"],
                components=sizes["components"],
                other_frames=others,
                frames=3,
                queries=70,
                points=4,
                other_points=2,
            ),
            dtype,
        )
        expected, expected_grads = case.to(dtype=torch.float64, device="cpu").gradients("reference")
        launches.clear()
        output, grads = case.gradients("auto", "cuda")
        assert launches == ["triton", "triton"]
        assert output.dtype == dtype
        assert error(output, expected) <= limit, others
        for name, grad in grads.items():
            position = "offset" in name or "reference" in name
            if position and dtype != torch.float32:
                continue  # rounding moves positions across cells, where their gradients jump
            assert error(grad, expected_grads[name]) <= 10 * limit, (name, others)


@pytest.mark.parametrize("ints", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_msda_matches_float64(msda_case, error, ints, dtype):
    for levels in (2, 12, 64):
        case = poisoned(msda_case(shapes=((5, 7),) * levels, batch=3, dim=32, queries=50, points=4, ints=ints), dtype)
        on_cpu = case.to(dtype=torch.float64, device="cpu")
        expected, expected_grads = on_cpu.gradients("reference")
        output, grads = case.gradients("auto", "cuda")
        limit = 5e-6 if dtype == torch.float32 else 5e-4
        assert error(output, expected) <= limit, levels
        assert error(grads["value"], expected_grads["value"]) <= 10 * limit, levels


@pytest.fixture
def encoder(stda_case):
    """A layer of the paper's encoder at 512 x 512."""
    return poisoned(
        stda_case(
            shapes=PAPER_LEVELS, clips=1, frames=6, targets=6, heads=8, dim=32, queries=5440, points=4, other_points=2
        ),
        torch.float16,
    )


@pytest.mark.xdist_group("encoder")  # one process compiles for all of them
def test_fifty_forward_runs_have_the_same_bits(encoder):
    expected = encoder.run("triton", "cuda")
    assert all(torch.equal(encoder.run("triton", "cuda"), expected) for _ in range(50))


@pytest.mark.xdist_group("encoder")  # one process compiles for all of them
def test_fifty_deterministic_backward_runs_have_the_same_bits(encoder):
    expected = bits(encoder, deterministic=True)
    assert all(same(bits(encoder, deterministic=True), expected) for _ in range(50))


@pytest.mark.xdist_group("encoder")  # one process compiles for all of them
def test_deterministic_and_atomic_gradients_agree(encoder, error):
    for computed, expected in zip(bits(encoder, deterministic=False), bits(encoder, deterministic=True), strict=True):
        assert error(computed, expected) <= 1e-3


def test_250_runs_of_a_large_batch(stda_case, error):
    """Races show as rare large errors: every run is compared with the first."""
    case = poisoned(stda_case(shapes=((20, 30), (10, 15)), clips=64, queries=300, heads=8, dim=32, points=4))
    output, *grads = bits(case)
    for _ in range(250):
        other, *other_grads = bits(case)
        assert torch.equal(other, output)
        for computed, expected in zip(other_grads, grads, strict=True):
            assert error(computed, expected) <= 1e-5


@pytest.mark.parametrize("many", [True, False], ids=["encoder", "decoder"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_coarse_levels_summed_apart_agree(error, many, dtype, limit):
    from stnet.kernels import tune
    from stnet.kernels.triton.launch_table import Candidate

    layer = tune.layer("stda_backward", many, 32, small=False)
    call = tune.Call.of("stda_backward", layer, dtype, torch.device("cuda:0"), 0)
    apart = tune.run(call, Candidate(block_queries=16, summed_cells=512))
    for computed, expected in zip(apart, tune.run(call, Candidate(block_queries=16)), strict=True):
        assert error(computed, expected) <= limit


@pytest.mark.xdist_group("encoder")  # one process compiles for all of them
def test_compiled_equals_eager(encoder):
    compiled = torch.compile(lambda case: case.run("auto", "cuda"), fullgraph=True)
    assert torch.equal(compiled(encoder), encoder.run("auto", "cuda"))


COMPILE_FIRST = """
import sys
import torch
from stnet.kernels import ms_deform_attn, spatial_temporal_deform_attn

operator = sys.argv[1]
random = lambda *size: torch.randn(*size, device="cuda", dtype=torch.float16)

def attends(shapes):  # tables belong to shapes: others, other tables
    cells, query = sum(h * w for h, w in shapes), (1, 2, 64, 4)
    own, others = (*query, 2, 4), (*query, 1, 2, 2)

    def inputs():
        references = torch.rand(1, 2, 64, 2, 2, device="cuda")
        if operator == "stda":
            value = random(1, 2, cells, 4, 32)
            return value, references, random(*own, 2), random(*own), random(*others, 2), random(*others)
        return random(2, cells, 4, 32), torch.rand(2, *query[2:], 2, 4, 2, device="cuda"), random(2, *query[2:], 2, 4)

    def attend(value, *x):
        if operator == "stda":
            return spatial_temporal_deform_attn(value, shapes, *x) * 2
        return ms_deform_attn(value, shapes, None, *x) * 2

    return attend, inputs

for mode, shapes in (("reduce-overhead", ((16, 16), (8, 8))), ("max-autotune", ((16, 12), (8, 6)))):
    attend, inputs = attends(shapes)
    compiled = torch.compile(attend, mode=mode, fullgraph=True)
    for _ in range(5):  # warm-up, recording, replays
        given = inputs()
        with torch.no_grad():
            found = compiled(*given).clone()
            torch.testing.assert_close(found, attend(*given), rtol=2e-3, atol=2e-3, msg=lambda m: f"{mode}: {m}")
    print(mode, flush=True)
"""


@pytest.mark.parametrize("operator", ["stda", "msda"])
def test_compiled_into_graphs_from_the_first_call(operator):
    """In a process of its own, where nothing ran eagerly before: its tables are made in the first call."""
    alone = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # a pool of compilers takes longer to start
    command = [sys.executable, "-c", COMPILE_FIRST, operator]
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.split() == ["reduce-overhead", "max-autotune"]


@pytest.mark.parametrize("operator", ["stda", "msda-ints", "msda-tensors"])
def test_graph_replays_equal_eager(stda_case, msda_case, operator):
    if operator == "stda":
        make = lambda seed: stda_case(queries=100, dim=32, seed=seed)  # noqa: E731
    else:
        make = lambda seed: msda_case(queries=100, dim=32, ints="ints" in operator, seed=seed)  # noqa: E731
    static, fresh = poisoned(make(0)), poisoned(make(1))
    leaves = static.replaced(**{name: x.clone().requires_grad_() for name, x in static.tensors.items()})
    leaves.others = {n: x.cuda() if isinstance(x, torch.Tensor) else x for n, x in static.others.items()}
    inputs = list(leaves.tensors.values())

    def step():
        output = leaves.run("triton", "cuda", deterministic=True)
        return [output, *torch.autograd.grad(output.sum(), inputs)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for name, x in leaves.tensors.items():
            x.copy_(fresh.tensors[name])
    for _ in range(3):
        graph.replay()
    replayed = [x.clone() for x in captured]
    assert same(replayed, step())


def bytes_of(*tensors):
    return sum(x.numel() * x.element_size() for x in tensors)


def peak_above(function):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


@pytest.mark.xdist_group("encoder")
@pytest.mark.parametrize("deterministic", [False, True])
def test_memory(encoder, deterministic):
    leaves = {name: x.clone().requires_grad_() for name, x in encoder.tensors.items()}
    if deterministic:  # the reference points of an encoder are constants; their gradients would take a slice a head
        leaves |= {name: x.detach() for name, x in leaves.items() if "reference" in name}
    case = encoder.replaced(**leaves)
    case.run("triton", "cuda", deterministic=deterministic).sum().backward()  # compile, allocate tables
    for x in leaves.values():
        x.grad = None
    output, forward = peak_above(lambda: case.run("triton", "cuda", deterministic=deterministic))
    lse_bytes = 4 * output.numel() // 32
    assert forward <= bytes_of(output) + lse_bytes + MIB
    gradient = torch.ones_like(output)
    _, backward = peak_above(lambda: output.backward(gradient))
    gradients = [x for x in leaves.values() if x.requires_grad]
    assert backward <= bytes_of(*gradients) + 4 * leaves["value"].numel() + MIB


@pytest.mark.xdist_group("encoder")  # one process compiles for all of them
def test_host_time_per_call(encoder, record_property):
    """Reported, not asserted: it depends on the machine."""
    encoder.run("triton", "cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(100):
        encoder.run("triton", "cuda")
    per_call = (time.perf_counter() - start) / 100
    torch.cuda.synchronize()
    record_property("host_microseconds_per_call", 1e6 * per_call)
    print(f"host time per forward call: {1e6 * per_call:.0f} us")


def test_more_than_2_to_the_31_elements(error):
    """The last clip of a value beyond 2^31 elements gives what it gives alone."""
    from stnet.kernels import spatial_temporal_deform_attn

    clips, cells, heads, dim, queries = 33, 512 * 512, 8, 32, 16
    if torch.cuda.mem_get_info()[0] < 2.5 * 2 * clips * cells * heads * dim:
        pytest.skip("not enough GPU memory")
    value = torch.randn(clips, 1, cells, heads, dim, device="cuda", dtype=torch.float16)
    query = (clips, 1, queries)
    references = torch.rand(*query, 1, 2, device="cuda")
    offsets = torch.randn(*query, heads, 1, 4, 2, device="cuda")
    logits = torch.randn(*query, heads, 1, 4, device="cuda")
    others = offsets.new_empty(*query, heads, 0, 1, 1, 2), logits.new_empty(*query, heads, 0, 1, 1)

    def attend(first):
        inputs = (references, offsets, logits, *others)
        with torch.no_grad():
            return spatial_temporal_deform_attn(value[first:], ((512, 512),), *(x[first:] for x in inputs))

    assert value.numel() > 2**31
    assert torch.equal(attend(0)[-1], attend(clips - 1)[0])


def test_other_device_than_the_current(stda_case, error):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = stda_case().to(dtype=torch.float32)
    expected = case.run("reference")
    with torch.cuda.device(0):
        assert error(case.run("triton", "cuda:1"), expected) <= 5e-6
