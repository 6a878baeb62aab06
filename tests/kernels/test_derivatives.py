"""Derivatives of every kind: forward mode, the transforms of `torch.func`, levels that overlap; and what traces."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from stnet.kernels import ms_deform_attn

SMALL = {"shapes": ((3, 4), (2, 2)), "clips": 1, "frames": 2, "targets": 1, "queries": 3, "heads": 1}


@pytest.fixture(params=["stda", "msda"])
def case(request, stda_case, msda_case):
    if request.param == "stda":
        return stda_case(**SMALL, components=4)
    return msda_case(shapes=SMALL["shapes"], queries=3)


def as_function(case, backend, *names):
    """The case as a function of some of its tensors, which are returned too."""
    return lambda *tensors: case.replaced(**dict(zip(names, tensors, strict=True))).run(backend)


def some_directions(tensors):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_mode_agrees_with_reverse_mode(case, dtype):
    case = case.to(dtype=dtype)
    function, tensors = as_function(case, "auto", *case.tensors), tuple(case.tensors.values())
    directions = some_directions(tensors)
    output, tangent = torch.func.jvp(function, tensors, directions)
    torch.testing.assert_close(output, function(*tensors))
    (weight,) = some_directions([output])
    _, grads = case.gradients("auto", weight=weight)
    along = sum((grad * direction).sum() for grad, direction in zip(grads.values(), directions, strict=True))
    torch.testing.assert_close((tangent * weight).sum(), along, rtol=1e-4, atol=1e-4)

    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, direction) for x, direction in zip(tensors, directions, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(function(*duals)).tangent, tangent)
    _, linear = torch.func.linearize(function, *tensors)
    torch.testing.assert_close(linear(*directions), tangent)


def test_gradcheck_in_forward_mode(stda_case):
    case = stda_case(**{**SMALL, "queries": 1, "dim": 2}, points=1, components=4)
    leaves = [x.requires_grad_() for x in case.tensors.values()]
    assert torch.autograd.gradcheck(as_function(case, "auto", *case.tensors), leaves, check_forward_ad=True)


def test_jacobians_and_hessians_agree(case):
    names = ("value", "offsets") if "offsets" in case.tensors else ("value", "sampling_locations")
    tensors = [case.tensors[name] for name in names]
    double = as_function(case, "auto", *names)
    reverse, forward = torch.func.jacrev(double, (0, 1))(*tensors), torch.func.jacfwd(double, (0, 1))(*tensors)
    torch.testing.assert_close(forward, reverse)
    single = as_function(case.to(dtype=torch.float32), "auto", *names)
    for computed, expected in zip(
        torch.func.jacrev(single, (0, 1))(*(x.float() for x in tensors)), reverse, strict=True
    ):
        torch.testing.assert_close(computed.double(), expected, rtol=1e-4, atol=1e-4)

    def loss(*tensors):
        return double(*tensors).square().sum()

    hessian = torch.func.hessian(loss, (0, 1))(*tensors)
    expected = torch.autograd.functional.hessian(loss, tuple(tensors))
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_forward_mode_of_the_kernels_is_refused(case, name):
    pytest.importorskip({"cpu": "numba", "triton": "triton"}[name])
    case = case.to(dtype=torch.float32)
    value = case.tensors["value"]
    function = as_function(case, name, "value")
    message = f'backend {name!r} has no forward-mode derivative; use backend="reference"'
    with pytest.raises(ValueError, match=message):
        torch.func.jvp(function, (value,), (value,))
    with forward_ad.dual_level(), pytest.raises(ValueError, match=message):
        function(forward_ad.make_dual(value, value))


def test_tensors_without_tangents_run_by_the_kernels(case, launches):
    pytest.importorskip("numba")
    with forward_ad.dual_level():
        case.to(dtype=torch.float32).run("auto")
    assert launches == ["cpu"]


def test_functional_gradients_are_those_of_autograd(backend, case):
    case = case.to(dtype=torch.float32)
    output, expected = case.gradients(backend.name, backend.device)
    weight = torch.linspace(-1.0, 2.0, output.numel()).view(output.shape)
    names = tuple(case.tensors)
    function = as_function(case, backend.name, *names)
    backend.calls.clear()
    grads = torch.func.grad(lambda *x: (function(*x) * weight).sum(), tuple(range(len(names))))(*case.tensors.values())
    assert backend.name == "reference" or backend.calls == {"forward": 1, "backward": 1}
    for name, grad in zip(names, grads, strict=True):
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-5)


def test_mapped_calls_run_as_one(backend, case):
    case = case.to(dtype=torch.float32)
    names = ("value", "logits") if "logits" in case.tensors else ("value", "attention_weights")
    value, logits = (case.tensors[name] for name in names)
    values, many = torch.stack([value, value * 2, value - 1], 1), torch.stack([logits, logits.flip(-1), logits / 2])
    function = as_function(case, backend.name, *names)
    backend.calls.clear()
    outputs = torch.vmap(function, in_dims=(1, 0))(values, many)
    assert backend.name == "reference" or backend.calls == {"forward": 1}
    for item in range(3):
        torch.testing.assert_close(outputs[item], function(values[:, item], many[item]), rtol=1e-5, atol=1e-5)

    def loss(value, logits):
        return function(value, logits).square().sum()

    backend.calls.clear()
    grads = torch.vmap(torch.func.grad(loss, (0, 1)), in_dims=(1, None))(values, logits)
    assert backend.name == "reference" or backend.calls == {"forward": 1, "backward": 1}
    for item in range(3):
        expected = torch.func.grad(loss, (0, 1))(values[:, item], logits)
        for grad, one in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad[item], one, rtol=1e-5, atol=1e-5)


def test_levels_cannot_be_mapped(msda_case):
    pytest.importorskip("numba")
    case = msda_case().to(dtype=torch.float32)
    starts = case.others["level_start_index"]

    def function(starts):
        case.others["level_start_index"] = starts
        return case.run("cpu")

    with pytest.raises(NotImplementedError, match="in_dims=None"):
        torch.vmap(function)(torch.stack([starts, starts]))


def test_second_derivatives_of_the_kernels_are_refused(case):
    pytest.importorskip("numba")
    case = case.to(dtype=torch.float32)

    def slope(value):
        return torch.func.grad(lambda x: as_function(case, "cpu", "value")(x).square().sum())(value).sum()

    with pytest.raises(NotImplementedError, match='no second derivative; call the operator with backend="reference"'):
        torch.func.grad(slope)(case.tensors["value"])


LEVELS = {
    "overlapping": ([(2, 3), (2, 3)], [0, 3]),
    "permuted": ([(2, 2), (3, 4)], [12, 0]),
    "sparse": ([(2, 3), (1, 2)], [9, 2]),
    "the same twice": ([(3, 4), (4, 3)], [4, 4]),
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_may_stand_anywhere(backend, msda_case, error, name, dtype):
    if dtype == torch.float64 and backend.name != "reference":
        pytest.skip("float64 is the reference's")
    shapes, starts = LEVELS[name]
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(2, 16, 2, 8, generator=generator, dtype=torch.float64)
    case = msda_case(shapes=shapes)
    pieces = [torch.arange(start, start + h * w) for (h, w), start in zip(shapes, starts, strict=True)]
    expected, expected_grads = case.replaced(value=value[:, torch.cat(pieces)]).gradients("reference")
    gathered = torch.zeros_like(value).index_add_(1, torch.cat(pieces), expected_grads["value"])

    case.others["level_start_index"] = torch.tensor(starts)
    output, grads = backend.gradients(case.replaced(value=value).to(dtype=dtype))
    limit = 5e-6 if dtype == torch.float32 else 1e-13
    assert error(output, expected) <= limit
    for key, grad in grads.items():
        assert error(grad, gathered if key == "value" else expected_grads[key]) <= 10 * limit, key


@pytest.mark.parametrize("sizes", [{"dtype": torch.float64}, {"dtype": torch.float32, "dim": 300}], ids=str)
@pytest.mark.parametrize("mode", ["meta", "fake"])
def test_the_reference_gives_shapes_without_numbers(stda_case, msda_case, mode, sizes):
    dim = sizes.get("dim", 8)
    for case, shape in (
        (stda_case(dim=dim), (2, 2, 5, 2 * dim)),
        (msda_case(dim=dim), (2, 5, 2 * dim)),
        (msda_case(dim=dim, ints=True), (2, 5, 2 * dim)),
    ):
        case = case.to(dtype=sizes["dtype"])
        if mode == "meta":
            case = case.to(device="meta")
            assert case.run("auto", "meta").shape == shape
            continue
        fake = FakeTensorMode()
        case.tensors = {name: fake.from_tensor(x) for name, x in case.tensors.items()}
        case.others = {n: fake.from_tensor(x) if isinstance(x, torch.Tensor) else x for n, x in case.others.items()}
        with fake:
            assert case.run("auto").shape == shape


@pytest.mark.parametrize("levels", ["ints", "dense", "permuted"])
def test_the_reference_traces_without_looking_at_numbers(msda_case, levels):
    case = msda_case(shapes=((3, 4), (2, 2)), ints=levels == "ints")
    if levels == "permuted":
        case.others = {"spatial_shapes": torch.tensor([(2, 2), (3, 4)]), "level_start_index": torch.tensor([12, 0])}
    names = (*case.tensors, *(name for name, x in case.others.items() if isinstance(x, torch.Tensor)))
    arguments = {**case.tensors, **case.others}

    def function(*tensors):
        return ms_deform_attn(**{**arguments, **dict(zip(names, tensors, strict=True))})

    tensors = [arguments[name] for name in names]
    expected, expected_grads = case.gradients("reference", weight=torch.ones(2, 5, 16))
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in tensors]
    output = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    for name, leaf in zip(case.tensors, leaves, strict=False):
        torch.testing.assert_close(leaf.grad, expected_grads[name])

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    program = torch.export.export(Module(), tuple(tensors), strict=False)
    torch.testing.assert_close(program.module()(*tensors), expected)


def test_compiled_reference_passes_over_infinite_cells_of_weight_zero(stda_case):
    case = stda_case(**SMALL)
    case.tensors["value"][0, 0, 5] = torch.inf
    for name, x in case.tensors.items():  # all samples at centres of cells
        if "reference" in name:
            case.tensors[name] = torch.zeros_like(x)
        elif "offsets" in name:
            case.tensors[name] = x.round() + 0.5
    expected = case.run("reference")
    assert expected.isfinite().any()
    compiled = torch.compile(lambda: case.run("reference"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), expected)
