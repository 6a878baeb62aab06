"""The Triton backward kernels beyond the contract: determinism, switches, dense and strided gradients, fixed point."""

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from stnet.kernels.problem import MsdaTensors, StdaTensors
from stnet.kernels.triton import backward as triton_backward
from stnet.kernels.triton import forward as triton_forward
from stnet.kernels.triton.fixed_point import FixedPoint, head_passes
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch_table import Candidate

NAMES = StdaTensors._fields
ALL = StdaTensors(*[True] * len(NAMES))


@pytest.fixture
def launches(monkeypatch) -> list[KernelCall]:
    """Every launch, with the memory of the gradients it is to write filled with NaN before."""
    made = []
    real_launch, real_empty = KernelCall.launch, torch.empty

    def launch(call):
        made.append(call)
        real_launch(call)

    def poisoned(*size, **options):
        tensor = real_empty(*size, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(KernelCall, "launch", launch)
    monkeypatch.setattr(torch, "empty", poisoned)
    return made


def kernels(launches) -> list[str]:
    return [call.kernel.fn.__name__ for call in launches]


def small(stda_case, **sizes):
    sizes = {"clips": 1, "heads": 2, "dim": 8, "targets": 1, "frames": 2, "queries": 4, "shapes": ((3, 4),), **sizes}
    return stda_case(**sizes).to(dtype=torch.float32)


def test_every_gradient_is_written_and_close_to_float64(stda_case, error, launches):
    case = small(stda_case, components=4, points=2, other_points=2)
    _, expected = case.to(dtype=torch.float64).gradients("reference")
    _, grads = case.gradients("triton")
    assert kernels(launches) == ["stda_forward_kernel", "stda_backward_kernel"]
    for name in NAMES:
        assert error(grads[name], expected[name]) <= 5e-5, name


def test_programs_beside_each_other_may_take_other_heads(stda_case, msda_case, error, launches, monkeypatch, memory):
    candidate = Candidate(heads_first=True)
    monkeypatch.setattr(triton_backward, "choose", lambda *key: candidate)
    for case in (small(stda_case, heads=3, queries=33, points=1), msda_case(((3, 4),), 1, 3, queries=33, points=1)):
        case = case.to(dtype=torch.float32)
        _, expected = case.to(dtype=torch.float64).gradients("reference")
        _, grads = case.gradients("triton")
        assert all(error(grads[name], expected[name]) <= 5e-5 for name in grads)
        assert launches[-1].grid == (3, 2, 1)
    assert triton_backward._grid(70_000, 8, candidate) == ((70_000, 8, 1), 1), "more than CUDA has along y"


def test_outputs_may_lie_anywhere(stda_case, launches):
    """A view that begins between two multiples of 16 bytes: loads wider than its alignment would fault on a GPU."""
    problem, tensors = small(stda_case, dim=16).checked
    output, lse = torch.ops.stnet.stda_forward(*tensors, *_lists(problem), "triton", False)
    memory = torch.empty(output.numel() + 1)
    misaligned = memory[1:].view(output.shape).copy_(output)
    for given, alignment in ((output, 16), (misaligned, 4)):
        launches.clear()
        saved = (torch.ones_like(output), given, lse)
        torch.ops.stnet.stda_backward(*saved, *tensors, *_lists(problem), [True] * 7, "triton", False)
        assert [call.constants["config"].ALIGN for call in launches] == [alignment]


def _lists(problem) -> tuple[list[int], list[int]]:
    return [x for shape in problem.spatial_shapes for x in shape], [x for row in problem.frame_table for x in row]


WIDE = [{"block_channels": 16}, {"block_channels": 16, "hold_gradient": False}, {"hold_gradient": False}]


@pytest.mark.parametrize("tile", WIDE, ids=str)
def test_heads_taken_in_turns_are_close_to_float64(stda_case, msda_case, error, launches, monkeypatch, memory, tile):
    candidate = Candidate(block_queries=16, **tile)
    case = small(stda_case, dim=40, heads=1)
    _, expected = case.to(dtype=torch.float64).gradients("reference")
    monkeypatch.setattr(triton_backward, "choose", lambda *key: candidate)
    _, grads = case.gradients("triton")
    assert all(error(grads[name], expected[name]) <= 5e-5 for name in grads)
    case = msda_case(shapes=((3, 4), (2, 2)), batch=1, heads=1, dim=40, queries=3, points=2).to(dtype=torch.float32)
    _, expected = case.to(dtype=torch.float64).gradients("reference")
    _, grads = case.gradients("triton")
    assert all(error(grads[name], expected[name]) <= 5e-5 for name in grads)
    assert len(launches) == 4
    used = {(config.BLOCK_CHANNELS, config.HELD) for call in launches[1::2] for config in [call.constants["config"]]}
    assert used == {(tile.get("block_channels", 32), False)}


def test_deterministic_gradients_do_not_depend_on_the_order_of_queries(stda_case, error, launches):
    """Programs run in the order of queries, so a permutation of queries is another order of the same sums."""
    case = small(stda_case, queries=40, shapes=((2, 3),), dim=4, heads=2)
    order = torch.randperm(40)
    shuffled = case.replaced(
        **{name: x[:, :, order] for name, x in case.tensors.items() if name != "value"},
    )
    weight = torch.randn(1, 1, 40, 8)
    _, expected = case.to(dtype=torch.float64).gradients("reference", weight=weight)
    _, first = case.gradients("triton", weight=weight, deterministic=True)
    _, second = shuffled.gradients("triton", weight=weight[:, :, order], deterministic=True)
    assert torch.equal(first["value"], second["value"])
    assert error(first["value"], expected["value"]) <= 5e-5
    for name in NAMES[1:]:
        assert torch.equal(first[name][:, :, order], second[name]), name
        assert error(first[name], expected[name]) <= 5e-5, name
    assert kernels(launches) == ["stda_forward_kernel", *["stda_backward_kernel"] * 2] * 2
    for backward in launches[1:3]:
        assert backward.constants["FIXED_POINT"] and backward.arguments["grad_value"].dtype == torch.int64


def test_msda_deterministic_gradients_do_not_depend_on_the_order_of_queries(msda_case, error, launches):
    case = msda_case(shapes=((2, 3),), batch=1, heads=2, dim=4, queries=40, points=1).to(dtype=torch.float32)
    order = torch.randperm(40)
    shuffled = case.replaced(**{name: x[:, order] for name, x in case.tensors.items() if name != "value"})
    weight = torch.randn(1, 40, 8)
    _, expected = case.to(dtype=torch.float64).gradients("reference", weight=weight)
    _, first = case.gradients("triton", weight=weight, deterministic=True)
    _, second = shuffled.gradients("triton", weight=weight[:, order], deterministic=True)
    assert kernels(launches) == ["msda_forward_kernel", *["msda_backward_kernel"] * 2] * 2
    assert torch.equal(first["value"], second["value"])
    for name, grad in first.items():
        assert error(grad, expected[name]) <= 5e-5, name


def arguments(case):
    """What `stda_backward` takes besides `needs` and `deterministic`."""
    problem, tensors = case.checked
    output, lse = triton_forward.stda_forward(problem, tensors)(tensors)
    return [problem, tensors, torch.linspace(-1, 1, output.numel()).view(output.shape), output, lse]


def stda_backward(problem, tensors, *saved_needs_and_deterministic):
    *saved, _, _ = saved_needs_and_deterministic
    return triton_backward.stda_backward(problem, tensors, *saved_needs_and_deterministic)(tensors, *saved)


@pytest.mark.parametrize("wanted", NAMES)
def test_gradients_nobody_asked_for_cost_nothing(stda_case, launches, wanted):
    given = arguments(small(stda_case))
    whole = stda_backward(*given, ALL, False)
    needs = StdaTensors(*(name == wanted for name in NAMES))
    alone = stda_backward(*given, needs, False)
    assert tuple(gradient is not None for gradient in alone) == needs
    assert torch.allclose(getattr(alone, wanted), getattr(whole, wanted), rtol=1e-5, atol=1e-6)
    constants = launches[-1].constants
    assert constants["NEEDS"] == needs and needs.value == constants["config"].NEED_VALUE


def test_expanded_inputs_get_dense_gradients(stda_case, launches):
    case = small(stda_case)
    expanded = case.tensors["reference_points"][:, :, :1].expand_as(case.tensors["reference_points"])
    problem, tensors, grad_output, *saved = arguments(case.replaced(reference_points=expanded))
    ones = torch.ones(()).expand_as(grad_output)
    gradient = stda_backward(problem, tensors, ones, *saved, ALL, False).reference_points
    assert gradient.is_contiguous()
    tensors = tensors._replace(reference_points=expanded.contiguous())
    dense = stda_backward(problem, tensors, ones.contiguous(), *saved, ALL, False)
    assert torch.equal(gradient, dense.reference_points)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e30])
def test_fixed_point_keeps_more_than_float32(size):
    terms = (torch.rand(1000) - 0.5) * size
    fixed = FixedPoint.for_bound(terms.abs().amax(), 1000)
    sums = (terms * fixed.scale).to(torch.int64).sum().reshape(1)
    exact = terms.double().sum()
    written = torch.empty(1)
    fixed.write(sums, written)
    assert math.isclose(float(written), float(exact), rel_tol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_fixed_point_shows_gradients_that_are_not_finite(bad):
    fixed = FixedPoint.for_bound(torch.tensor(bad), 10)
    written = torch.zeros(3, dtype=torch.float16)
    fixed.write(torch.zeros(3, dtype=torch.int64), written)
    assert written.isnan().all()


@pytest.mark.parametrize(("heads", "count"), [(1, 1), (2, 1), (3, 1), (8, 4), (9, 3)])
def test_heads_are_taken_in_equal_passes_of_at_most_half(heads, count):
    passes = head_passes(heads)
    assert {len(part) for part in passes} == {count}
    assert [head for part in passes for head in part] == list(range(heads))


class LiveBytes(TorchDispatchMode):
    """The largest sum of the sizes of tensors made inside that live at the same time, in bytes."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in tensors_of((args, kwargs))}
        for x in tensors_of(result):
            storage = x.untyped_storage()
            if storage.data_ptr() not in known:
                self.made.append((StorageWeakRef(storage), storage.nbytes()))
        self.made = [(storage, size) for storage, size in self.made if not storage.expired()]
        self.peak = max(self.peak, sum(size for _, size in self.made))
        return result


def tensors_of(tree) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_of_gradients_and_one_float32_value_buffer(stda_case, launches, dtype, deterministic):
    given = arguments(small(stda_case, shapes=((8, 8),)).to(dtype=dtype))
    value = given[1].value
    needs = ALL._replace(reference_points=False, other_reference_points=False)
    with LiveBytes() as memory:
        gradients = stda_backward(*given, needs, deterministic)
    allowed = sum(x.nbytes for x in gradients if x is not None) + 4 * value.numel()
    tables = 512
    assert gradients[0].nbytes < memory.peak <= allowed + tables < allowed + value.numel()


@pytest.mark.parametrize("deterministic", [False, True])
def test_msda_memory_of_gradients_and_one_float32_value_buffer(msda_case, launches, deterministic):
    case = msda_case(shapes=((8, 8),), batch=1, heads=2, dim=8, queries=3, points=1).to(dtype=torch.float32)
    problem, tensors = case.checked
    value, needs = tensors.value, MsdaTensors(True, True, True, False, False)
    with LiveBytes() as memory:
        ones = torch.ones(1, 3, 16)
        found = triton_backward.msda_backward(problem, tensors, ones, needs, deterministic)(tensors, ones)
    gradients = [x for x in found if x is not None]
    allowed = sum(x.nbytes for x in gradients) + 4 * value.numel()
    tables = 512
    assert gradients[0].nbytes < memory.peak <= allowed + tables < allowed + value.numel()
