"""The operators inside PyTorch's machinery: opcheck, compile, export, autograd."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend


def _flat(rows):
    return [number for row in rows for number in row]


def stda_arguments(case, backend):
    tensors = list(case.tensors.values())
    table = [0, 1, 2, 1, 0, 2]
    return (*tensors, _flat(case.others["spatial_shapes"]), table, backend, False)


def msda_arguments(case, backend, ints):
    value, *rest = case.tensors.values()
    shapes, starts = case.others.values()
    levels = (None, None, _flat(shapes)) if ints else (shapes, starts, [])
    return (value, *rest, *levels, backend, False)


def leaves(case):
    return case.replaced(**{name: x.detach().clone().requires_grad_() for name, x in case.tensors.items()})


@pytest.fixture(params=["stda", "msda", "msda-ints"])
def case(request, stda_case, msda_case):
    made = stda_case(components=4) if request.param == "stda" else msda_case(ints="ints" in request.param)
    return leaves(made.to(dtype=torch.float32))


def test_opcheck(case):
    pytest.importorskip("numba")
    if "logits" in case.tensors:
        operator, arguments = torch.ops.stnet.stda_forward.default, stda_arguments(case, "cpu")
    else:
        ints = not isinstance(case.others["spatial_shapes"], torch.Tensor)
        operator, arguments = torch.ops.stnet.msda_forward.default, msda_arguments(case, "cpu", ints)
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("needs", [(True,) * 7, (True, False, True, False, False, True, False)], ids=["all", "some"])
def test_opcheck_of_the_backward_operator(stda_case, needs):
    pytest.importorskip("numba")
    case = stda_case().to(dtype=torch.float32)
    *inputs, backend, deterministic = stda_arguments(case, "cpu")
    output, lse = torch.ops.stnet.stda_forward(*inputs, backend, deterministic)
    arguments = (torch.ones_like(output), output, lse, *inputs, list(needs), backend, deterministic)
    torch.library.opcheck(torch.ops.stnet.stda_backward.default, arguments)


def test_opcheck_of_the_msda_backward_operator(msda_case):
    pytest.importorskip("numba")
    *inputs, backend, deterministic = msda_arguments(msda_case().to(dtype=torch.float32), "cpu", ints=False)
    output = torch.ops.stnet.msda_forward(*inputs, backend, deterministic)
    arguments = (torch.ones_like(output), *inputs, [True, False, True, False, False], backend, deterministic)
    torch.library.opcheck(torch.ops.stnet.msda_backward.default, arguments)


def compiled_and_eager(case, backend, compiler):
    def layer(tensors):
        scaled = {name: x * 1.5 if name == "value" else x for name, x in tensors.items()}
        return case.replaced(**scaled).run(backend).relu()

    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend=compiler)):
        tensors = leaves(case).tensors
        output = function(tensors)
        output.square().sum().backward()
        results.append([output, *(x.grad for x in tensors.values())])
    return results


def test_compile_in_one_graph(case):
    pytest.importorskip("numba")
    eager, compiled = compiled_and_eager(case, "cpu", "aot_eager")
    for computed, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("levels", ["stda", "msda-ints", "msda-tensors"])
def test_compiled_graphs_hold_one_operator_and_nothing_of_the_cpu(stda_case, msda_case, levels):
    """Tables that a kernel reads are no part of a graph: neither a tensor on the CPU nor a copy to the device."""
    pytest.importorskip("numba")
    operator, _, kind = levels.partition("-")
    case = (msda_case(ints=kind == "ints") if kind else stda_case()).to(dtype=torch.float32, device="meta")
    case.others = {n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in case.others.items()}
    graphs = []

    def collect(module, inputs):
        graphs.append(module.graph)
        return module

    layer = lambda tensors: case.replaced(**tensors).run("cpu")  # noqa: E731
    compiled = torch.compile(layer, fullgraph=True, backend=collect, dynamic=False)
    compiled(case.tensors)
    (graph,) = graphs
    tensors = [value for node in graph.nodes if isinstance(value := node.meta.get("example_value"), torch.Tensor)]
    assert tensors and {x.device.type for x in tensors} == {"meta"}
    called = [str(node.target) for node in graph.nodes if node.op.startswith("call")]
    assert [name for name in called if "getitem" not in name] == [f"stnet.{operator}_forward"]
    assert not [node for node in graph.nodes if node.op == "get_attr"]


def test_compile_with_inductor(stda_case):
    pytest.importorskip("numba")
    eager, compiled = compiled_and_eager(stda_case(components=4).to(dtype=torch.float32), "cpu", "inductor")
    for computed, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


def test_compile_with_changing_batch(stda_case):
    pytest.importorskip("numba")
    compiled = torch.compile(lambda case: case.run("cpu"), fullgraph=True, backend="aot_eager", dynamic=True)
    for clips in (2, 3, 5):
        case = stda_case(clips=clips).to(dtype=torch.float32)
        torch.testing.assert_close(compiled(case), case.run("cpu"))


@pytest.mark.parametrize("name", ["value", "reference_points", "other_logits"])
def test_compile_with_sizes_as_symbols(stda_case, name):
    """As where these sizes changed since the last compilation and those of the other tensors did not."""
    pytest.importorskip("numba")
    case = stda_case().to(dtype=torch.float32)
    compiled = torch.compile(lambda case: case.run("cpu"), fullgraph=True, backend="aot_eager")
    torch._dynamo.maybe_mark_dynamic(case.tensors[name], list(range(case.tensors[name].dim())))
    torch.testing.assert_close(compiled(case), case.run("cpu"))


def of_feature_maps(case):
    """A function of the case's levels as maps, which reads their sizes as a model does, and the maps as leaves."""
    shapes = case.others["spatial_shapes"]
    maps = case.tensors["value"].split([h * w for h, w in shapes], dim=-3)
    maps = [x.unflatten(-3, shape).requires_grad_() for x, shape in zip(maps, shapes, strict=True)]

    def layer(maps, tensors):
        levels = {"spatial_shapes": tuple(x.shape[-4:-2] for x in maps)}
        if "level_start_index" in case.others:
            cells = [h * w for h, w in levels["spatial_shapes"]]
            levels["level_start_index"] = [sum(cells[:level]) for level in range(len(cells))]
        value = torch.cat([x.flatten(-4, -3) for x in maps], dim=-3)
        return replace(case, tensors={**tensors, "value": value}, others={**case.others, **levels}).run("cpu")

    return layer, maps


@pytest.mark.parametrize("make", ["stda", "msda"])
def test_a_compiled_layer_takes_levels_of_any_size(stda_case, msda_case, make):
    """The sizes are symbols of one graph, with its gradients: nothing is compiled anew for other frames."""
    pytest.importorskip("numba")
    counter, compiled = CompileCounterWithBackend("aot_eager"), None
    # Numbers that no other size of the case has: a compiler takes equal ones for the same symbol.
    for shapes in (((11, 13), (9, 10)), ((23, 21), (14, 19)), ((9, 31), (17, 12))):
        case = stda_case(shapes) if make == "stda" else msda_case(shapes, ints=True)
        case = case.to(dtype=torch.float32)
        layer, maps = of_feature_maps(case)
        compiled = compiled or torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
        gradients = []
        for function in (layer, compiled):
            output = function(maps, case.tensors)
            gradients.append((output, *torch.autograd.grad(output.square().sum(), maps)))
        for expected, computed in zip(*gradients, strict=True):
            torch.testing.assert_close(computed, expected)
    assert counter.frame_count == 1


class _Module(torch.nn.Module):
    def __init__(self, case, backend):
        super().__init__()
        self.case, self.backend = case, backend

    def forward(self, *tensors):
        return self.case.replaced(**dict(zip(self.case.tensors, tensors, strict=True))).run(self.backend)


@pytest.mark.parametrize("strict", [False, True])
def test_export(case, strict):
    pytest.importorskip("numba")
    check_export(case, "cpu", strict)


def test_compile_and_export_the_reference(stda_case):
    case = stda_case(shapes=((3, 4),), components=4).to(dtype=torch.float32)
    check_export(case, "reference", strict=False)
    eager, compiled = compiled_and_eager(case, "reference", "aot_eager")
    for computed, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


def check_export(case, backend, strict):
    tensors = tuple(x.detach() for x in case.tensors.values())
    module = _Module(case.to(dtype=torch.float32), backend)
    program = torch.export.export(module, tensors, strict=strict)
    others = tuple(x * 0.5 for x in tensors)
    torch.testing.assert_close(program.module()(*others), module(*others), rtol=1e-5, atol=1e-6)


def test_second_derivative_is_refused(case):
    pytest.importorskip("numba")
    value = case.tensors["value"]
    (grad,) = torch.autograd.grad(case.run("cpu").square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative; call the operator with backend="reference"'):
        grad.sum().backward()


def test_saved_are_only_inputs_output_and_log_sum_exp(stda_case):
    pytest.importorskip("numba")
    case = leaves(stda_case().to(dtype=torch.float32))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        output = case.run("cpu")
    known = {x.data_ptr() for x in case.tensors.values()} | {output.data_ptr()}
    extra = [x for x in saved if x.data_ptr() not in known]
    assert [tuple(x.shape) for x in extra] == [(2, 2, 5, 2)]


def test_log_sum_exp_is_the_natural_logarithm(stda_case):
    pytest.importorskip("numba")
    case = stda_case().to(dtype=torch.float32)
    case.tensors["logits"][1, 1, 4] = -torch.inf
    case.tensors["other_logits"][1, 1, 4] = -torch.inf
    _, lse = torch.ops.stnet.stda_forward(*stda_arguments(case, "cpu"))
    logits = torch.cat([case.tensors["logits"].flatten(4), case.tensors["other_logits"].flatten(4)], -1)
    torch.testing.assert_close(lse, logits.logsumexp(-1))


def test_gradients_nobody_asked_for_are_not_computed(stda_case, monkeypatch, watch_backend):
    pytest.importorskip("numba")
    asked = []

    def watched(prepared, *tensors):
        asked.extend([tuple(prepared.arguments[-2])] if prepared.direction == "backward" else [])
        return prepared.run(*tensors)

    watch_backend(monkeypatch, "cpu", watched)
    case = stda_case().to(dtype=torch.float32)
    case.tensors["offsets"].requires_grad_()
    case.run("cpu").sum().backward()
    assert asked == [(False, False, True, False, False, False, False)]
