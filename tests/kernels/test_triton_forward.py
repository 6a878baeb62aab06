"""The forward kernels beyond the common contract: what is written, reading order, layouts, tiles, and the device."""

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from stnet.kernels.problem import StdaProblem, StdaTensors
from stnet.kernels.reference import msda_reference, stda_reference
from stnet.kernels.triton import forward as triton_forward
from stnet.kernels.triton.architecture import architecture
from stnet.kernels.triton.device_tables import query_order
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch_table import Candidate, candidates

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LIMITS = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that a kernel forgets to write shows as NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))


@pytest.fixture
def launches(monkeypatch) -> list[KernelCall]:
    """The launches that happened."""
    done: list[KernelCall] = []
    launch = KernelCall.launch

    def recording(call: KernelCall) -> None:
        launch(call)
        done.append(call)

    monkeypatch.setattr(KernelCall, "launch", recording)
    return done


def on_device(case, dtype=torch.float32):
    """The case with reference points in float32 and the rest in `dtype`."""
    tensors = {name: x.to(DEVICE, torch.float32 if "reference" in name else dtype) for name, x in case.tensors.items()}
    return case.replaced(**tensors)


def run(case, candidate: Candidate | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    problem, tensors = case.checked
    return triton_forward.stda_forward(problem, tensors, candidate=candidate)(tensors)


def truth(case) -> torch.Tensor:
    return stda_reference(*case.to(dtype=torch.float64).checked)


def test_every_output_is_written_by_one_launch(stda_case, launches, error):
    case = on_device(stda_case(dim=12, clips=2, queries=7))
    output, lse = run(case)
    assert len(launches) == 1
    assert error(output, truth(case)) <= 5e-6
    logits = torch.cat([case.tensors["logits"].flatten(4), case.tensors["other_logits"].flatten(4)], dim=-1)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, logits.logsumexp(dim=-1))


@pytest.mark.parametrize("by_heads", [False, True])
@pytest.mark.parametrize(("heads", "block_heads"), [(4, 4), (6, 4), (3, 2), (2, 8)])
def test_programs_of_several_heads(stda_case, msda_case, error, heads, block_heads, by_heads):
    candidate = Candidate(block_queries=4, block_heads=block_heads, unroll_points=False)
    for make in (stda_case, msda_case):
        case = on_device(make(heads=heads, queries=7, dim=8))
        if by_heads:
            value = case.tensors["value"].transpose(-3, -2).contiguous().transpose(-3, -2)
            case = case.replaced(value=value)
        problem, tensors = case.checked
        stda = make is stda_case
        kernel = triton_forward.stda_forward if stda else triton_forward.msda_forward
        reference = stda_reference if stda else msda_reference
        output = kernel(problem, tensors, candidate=candidate)(tensors)
        output = output[0] if stda else output
        expected = reference(*case.to(dtype=torch.float64).checked)
        assert error(output, expected) <= 5e-6


@pytest.mark.parametrize(("others", "points"), [(0, 1), (2, 1), (2, 2), (2, 3)])
def test_offsets_loaded_ahead(stda_case, error, others, points):
    """The same numbers; more than two points are loaded as ever."""
    sizes = {"clips": 1, "targets": 1, "heads": 1, "queries": 3}
    case = on_device(stda_case(other_frames=others, other_points=points, components=4, **sizes))
    output, lse = run(case, Candidate(block_queries=2, load_ahead=True))
    assert error(output, truth(case)) <= 5e-6
    expected = run(case, Candidate(block_queries=2))
    assert torch.equal(output, expected[0])
    assert torch.equal(lse, expected[1])


def test_lse_of_a_row_of_minus_infinity(stda_case):
    case = on_device(stda_case(clips=1))
    case.tensors["logits"][0, 1, 2, 1] = -torch.inf
    case.tensors["other_logits"][0, 1, 2, 1] = -torch.inf
    output, lse = run(case)
    assert lse[0, 1, 2, 1] == -torch.inf
    assert (output[0, 1, 2].view(2, -1)[1] == 0).all()
    assert lse.isinf().sum() == 1


@pytest.mark.parametrize("dim", [8, 24, 40, 64])
def test_heads_wider_than_a_program_are_shared(stda_case, launches, error, dim):
    case = on_device(stda_case(dim=dim, clips=1, targets=1, heads=1, queries=3))
    output, lse = run(case)
    assert launches[0].grid[1] == -(-dim // 32)
    assert lse.isfinite().all()
    assert error(output, truth(case)) <= 5e-6


def test_encoder_queries_are_taken_in_tiles(stda_case, launches, error):
    shapes = ((6, 7), (3, 4))
    case = on_device(stda_case(shapes=shapes, queries=54, clips=1, targets=1, heads=1))
    output, _ = run(case)
    assert launches[0].constants["ORDERED"]
    assert error(output, truth(case)) <= 5e-6


@pytest.mark.parametrize("shapes", [((8, 16), (4, 8)), ((5, 7), (3, 3), (1, 1)), ((1, 9), (9, 1))], ids=str)
@pytest.mark.parametrize("block", [8, 32])
def test_query_order(shapes, block):
    order = query_order(shapes, block, torch.device("cpu")).long()
    positions = sum(h * w for h, w in shapes)
    assert order.sort().values.tolist() == list(range(positions))
    height, width = shapes[0]
    first = order[order < height * width]
    assert torch.equal(first, order[: height * width]), "levels stay apart"
    if height % 4 == 0:
        tile = first[:block]
        spread = (tile // width).max() - (tile // width).min() + 1, (tile % width).max() - (tile % width).min() + 1
        assert spread[0] * spread[1] == block, "a block is a full rectangle"
        assert spread[1] in (spread[0], 2 * spread[0])


def test_values_that_are_not_aligned(stda_case, launches, error):
    case = on_device(stda_case(dim=8, clips=1, targets=1))
    value = case.tensors["value"]
    shifted = torch.zeros(value.numel() + 1, device=DEVICE)[1:].view(value.shape).copy_(value)
    output, _ = run(case.replaced(value=shifted))
    assert launches[0].constants["config"].VECTOR == 1
    assert error(output, truth(case)) <= 5e-6


def test_frames_of_more_than_32_bit_offsets(stda_case, launches, error):
    case = on_device(stda_case(clips=1, targets=1))
    run(case)
    call = launches[0]
    call.arguments["output"].fill_(torch.nan)
    config = call.constants["config"]
    assert not config.WIDE
    replace(call, constants={**call.constants, "config": config._replace(WIDE=True)}).launch()
    assert error(call.arguments["output"], truth(case)) <= 5e-6


def test_strides_beyond_two_to_the_31():
    problem = StdaProblem(
        clips=2,
        source_frames=3,
        positions=8,
        heads=2,
        head_dim=8,
        targets=1,
        queries=1,
        points=1,
        other_frames=2,
        other_points=1,
        components=2,
        spatial_shapes=((2, 4),),
        frame_table=((0, 1, 2),),
    )
    tensors = StdaTensors(*(torch.empty(shape, device="meta") for shape in problem.tensor_shapes))._replace(
        value=torch.empty_strided((2, 3, 8, 2, 8), (2**40, 2**36, 2**33, 2**32, 1), device="meta")
    )
    numbers = tensors.logits
    call = triton_forward.stda_forward_call(problem, tensors, numbers, numbers, Candidate(), "sm_90")
    assert call.constants["config"].WIDE
    assert call.arguments["value_b"] == 2**40
    assert call.arguments["frames"].dtype == torch.int64


@pytest.mark.parametrize("sizes", [{"points": 16, "other_points": 7}, {"frames": 17, "targets": 1}], ids=str)
def test_many_samples(stda_case, error, sizes):
    case = on_device(stda_case(**{"clips": 1, "targets": 1, "heads": 1, "queries": 3, **sizes}))
    output, _ = run(case)
    assert error(output, truth(case)) <= 5e-6


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_bad_values_in_half_precision_stay_with_the_samples_that_touch_them(stda_case, error, bad):
    case = on_device(stda_case(clips=1, targets=1, heads=1, dim=8, queries=8), torch.float16)
    clean = truth(case)
    case.tensors["value"][0, :, 5, :, 3] = bad
    expected = truth(case)
    output, _ = run(case)
    touched = ~expected.isfinite()
    assert touched[..., 3].any() and not touched[..., :3].any()
    assert torch.equal(touched, ~output.isfinite())
    assert error(output[~touched], clean[~touched]) <= 5e-4


PARTS = 4  # of the candidates: each is compiled, and parts in several processes


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 16, 32, 64, 128, 256])
def test_every_candidate_on_the_device(stda_case, error, dtype, dim, part):
    arch = architecture(torch.device("cuda", torch.cuda.current_device()))
    found = [x for queries in (300, 10_000) for x in candidates("stda_forward", arch, dtype, dim, queries)]
    found = list(dict.fromkeys(replace(candidate, milliseconds=None) for candidate in found))
    case = on_device(stda_case(shapes=((12, 20), (6, 10)), dim=dim, queries=300, points=4, other_points=2), dtype)
    expected = truth(case)
    for candidate in found[part::PARTS]:
        output, _ = run(case, candidate)
        width = max(1, 20 / 64)
        assert error(output, expected) <= LIMITS[dtype] * width, candidate


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_runs_are_bit_equal(stda_case, dtype):
    case = on_device(stda_case(shapes=((32, 40), (16, 20)), dim=32, queries=1600, points=4), dtype)
    first = run(case)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(run(case), first, strict=True))


@pytest.mark.gpu
def test_runs_at_large_batch_agree(stda_case):
    case = on_device(stda_case(shapes=((16, 16), (8, 8)), clips=60, dim=32, queries=320, points=4), torch.float16)
    first = run(case)
    for _ in range(250):
        assert all(torch.equal(a, b) for a, b in zip(run(case), first, strict=True))


@pytest.mark.gpu
def test_replayed_graph_equals_eager(stda_case):
    case = on_device(stda_case(dim=32, queries=64), torch.float16)
    expected = run(case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case)
    for x in captured:
        x.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
