"""Coarse levels, whose value gradient a kernel of its own sums as a product of matrices."""

import math

import pytest
import torch

pytest.importorskip("triton")

from stnet.kernels.problem import StdaTensors
from stnet.kernels.triton import backward, coarse_levels, forward
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch_table import Candidate

ONE_BY_ONE = Candidate(block_queries=16)
SUMMED = Candidate(block_queries=16, summed_cells=256)
ALL = StdaTensors(*[True] * 7)


@pytest.fixture
def launches(monkeypatch) -> list[KernelCall]:
    """Every launch."""
    made, launch = [], KernelCall.launch
    monkeypatch.setattr(KernelCall, "launch", lambda call: (made.append(call), launch(call))[1])
    return made


def summed(launches: list[KernelCall]) -> list[int]:
    """The levels that were summed apart, after the kernel that does the rest."""
    names = [call.kernel.fn.__name__ for call in launches]
    assert names == ["stda_backward_kernel"] + ["stda_coarse_kernel"] * (len(names) - 1)
    return [call.arguments["level"] for call in launches[1:]]


def halves(case):
    """The case in float16 with float32 reference points."""
    tensors = {n: x.to(torch.float32 if "reference" in n else torch.float16) for n, x in case.tensors.items()}
    return case.replaced(**tensors)


def gradients(case, candidate: Candidate, launches: list[KernelCall], needs=ALL, deterministic: bool = False):
    """The gradients of (output * weight).sum(), and that weight."""
    problem, tensors = case.checked
    output, lse = forward.stda_forward(problem, tensors)(tensors)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape).to(output)
    saved = (weight, output, lse)
    launches.clear()
    prepared = backward.stda_backward(problem, tensors, *saved, needs, deterministic, candidate=candidate)
    return prepared(tensors, *saved), weight


ONE = {"clips": 1, "frames": 1, "targets": 1, "heads": 1}
PAIR = {"clips": 1, "frames": 2, "heads": 1, "shapes": ((4, 6),), "queries": 2}
CASES = {
    "finer-coarse-and-thin": {**ONE, "shapes": ((9, 33), (11, 5), (1, 7)), "queries": 17, "dim": 40, "points": 1},
    "boxes-of-two-clips": {**PAIR, "clips": 2, "heads": 2, "targets": 1, "components": 4, "other_points": 2},
    "frames-nobody-samples": {**PAIR, "frames": 4, "other_frames": 1, "frame_table": ((2, 0), (2, 1)), "dim": 1},
    "several-steps": {**ONE, "shapes": ((2, 3),), "queries": 129, "points": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_as_close_to_float64_as_additions_one_by_one(stda_case, error, launches, monkeypatch, name):
    monkeypatch.setattr(coarse_levels, "_SHARES", 1)
    case = halves(stda_case(**CASES[name]))
    before, weight = gradients(case, ONE_BY_ONE, launches)
    assert summed(launches) == []
    found, _ = gradients(case, SUMMED, launches)
    assert summed(launches) == [i for i, shape in enumerate(case.others["spatial_shapes"]) if shape != (9, 33)]
    _, expected = case.to(dtype=torch.float64).gradients("reference", weight=weight)
    assert error(found.value, expected["value"]) <= 2 * error(before.value, expected["value"]) <= 1e-3
    assert all(torch.equal(a, b) for a, b in zip(found[1:], before[1:], strict=True))


def test_shares_of_the_queries_add_up(stda_case, error, launches):
    case = halves(stda_case(**ONE, shapes=((9, 10),), queries=70, points=1))
    before, _ = gradients(case, ONE_BY_ONE, launches)
    found, _ = gradients(case, SUMMED, launches)
    assert launches[1].grid == (3, 1, 1), "70 queries, 32 at once"
    assert error(found.value, before.value) <= 1e-3


@pytest.mark.parametrize("far", [math.nan, math.inf, -1.0])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")
def test_samples_outside_and_excluded_ones_add_nothing(stda_case, launches, far):
    """All at x = far but those of the other frame, whose logits are -inf."""
    case = halves(stda_case(**PAIR | {"targets": 1, "queries": 1}))
    case.tensors["reference_points"][:] = 0.5
    case.tensors["offsets"][..., 0] = far - 2.5
    case.tensors["other_logits"][:] = -math.inf
    found, _ = gradients(case, SUMMED, launches)
    assert summed(launches) == [0]
    assert (found.value == 0).all()


@pytest.mark.parametrize("sizes", [{"dtype": torch.float32}, {"deterministic": True}, {"value": False}], ids=str)
def test_otherwise_everything_is_added_one_by_one(stda_case, launches, sizes):
    case = halves(stda_case(**ONE, shapes=((2, 3),), queries=1)).to(dtype=sizes.get("dtype", torch.float16))
    needs = ALL._replace(value=sizes.get("value", True))
    gradients(case, SUMMED, launches, needs, sizes.get("deterministic", False))
    assert summed(launches) == []


@pytest.mark.parametrize(
    ("cells", "levels"), [(0, ()), (64, (3,)), (128, (2, 3)), (256, (1, 2, 3)), (512, (0, 1, 2, 3))]
)
def test_cells_are_counted_in_blocks(stda_case, cells, levels):
    problem, tensors = halves(stda_case(shapes=((17, 16), (16, 16), (1, 9), (8, 3)))).checked
    candidate, sums = Candidate(summed_cells=cells), torch.zeros(1)
    assert coarse_levels.coarse_levels(problem, tensors.value, sums, candidate, "sm_90") == levels
    assert coarse_levels.coarse_levels(problem, tensors.value, sums, candidate, "sm_75") == ()
