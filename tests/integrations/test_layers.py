"""Layers written as in transformers: what `install` makes of one stays with it however it travels."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from stnet.integrations import layouts
from stnet.integrations.transformers import install, uninstall
from tests.integrations.eager import (
    LayerByLevel,
    LayerByPoint,
    LayerWithCore,
    MultiScaleDeformableAttention,
    problem,
)

SHAPES = [(4, 6), (2, 3)]
LAYERS = [MultiScaleDeformableAttention, LayerByLevel, LayerByPoint, LayerWithCore]


def _arguments(layer, batch=2):
    value, shapes, starts, locations, weights = problem(SHAPES, batch=batch)
    if isinstance(layer, MultiScaleDeformableAttention):
        return value, shapes, SHAPES, starts, locations, weights, 64
    if isinstance(layer, LayerByPoint):
        return value, SHAPES, locations.flatten(3, 4)[:, :, :, :4], weights.flatten(3, 4)[:, :, :, :4]
    return value, SHAPES, locations, weights


@pytest.fixture
def calls(monkeypatch):
    """One entry for every call of the operator."""
    made, real = [], layouts.ms_deform_attn
    monkeypatch.setattr(layouts, "ms_deform_attn", lambda *args: made.append(1) or real(*args))
    return made


@pytest.mark.parametrize("layer", [kind() for kind in LAYERS], ids=lambda layer: type(layer).__name__)
def test_same_outputs_and_gradients(layer, calls):
    value, *rest = _arguments(layer)
    results = []
    for installed in (False, True):
        if installed:
            assert install(layer) == install(layer) == 1
        leaves = [x.clone().requires_grad_() for x in (value, *(r for r in rest if isinstance(r, torch.Tensor)))
                  if x.is_floating_point()]  # fmt: skip
        given = iter(leaves)
        arguments = [
            next(given) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in (value, *rest)
        ]
        output = layer(*arguments)
        results.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaves)))
    assert len(calls) == 1
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    uninstall(layer)
    assert type(layer) in LAYERS and torch.equal(layer(value, *rest), results[0][0]) and len(calls) == 1


def _saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


TRAVELS = {
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": _saved,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "replica": lambda layer: layer._replicate_for_data_parallel(),
}


@pytest.mark.parametrize("travel", TRAVELS)
@pytest.mark.parametrize("kind", LAYERS)
def test_operators_travel_with_the_layer(kind, travel, calls):
    model = nn.ModuleList([kind()])
    install(model)
    expected = model[0](*_arguments(model[0]))
    other = TRAVELS[travel](model[0])
    if isinstance(other, LayerByLevel):
        # A replica whose method was bound to the original layer would go on with that layer's parameters.
        other.__dict__["_parameters"] = {"scale": torch.tensor(2.0)}
        expected = 2 * expected
    calls.clear()
    torch.testing.assert_close(other(*_arguments(other)), expected)
    assert len(calls) == 1 and isinstance(other, kind)
    uninstall(other)
    torch.testing.assert_close(other(*_arguments(other)), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 1 and type(other) is kind


@pytest.mark.parametrize("kind", [LayerByPoint, LayerWithCore])
def test_other_methods_of_sampling_stay_what_they_were(kind, calls):
    layer = kind()
    layer.method = "discrete"
    arguments = _arguments(layer)
    expected = layer(*arguments)
    install(layer)
    assert torch.equal(layer(*arguments), expected) and not calls


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_under_autocast_is_that_of_the_layer(kind, dtype):
    layer = kind()
    value, *rest = _arguments(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(value.to(dtype), *rest)
        install(layer)
        output = layer(value.to(dtype), *rest)
    assert output.dtype == expected.dtype
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_compile(kind):
    layer = kind()
    install(layer)
    arguments = _arguments(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), layer(*arguments))


def test_another_layer_of_the_same_name_is_refused_and_nothing_is_changed():
    class MultiScaleDeformableAttention(nn.Module):
        def forward(self, query, key=None):
            return query

    MultiScaleDeformableAttention.forward.__qualname__ = "MultiScaleDeformableAttention.forward"
    model = nn.ModuleList([LayerByLevel(), MultiScaleDeformableAttention()])
    with pytest.raises(ValueError, match=r"takes \(self, query, key\).*as mmcv does"):
        install(model)
    assert type(model[0]) is LayerByLevel


def test_a_layer_whose_own_forward_would_hide_the_operators_is_refused():
    layer = LayerByLevel()
    layer.forward = layer.forward
    with pytest.raises(ValueError, match=r"call install\(\) before"):
        install(layer)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no MultiScaleDeformableAttention layer"):
        install(nn.Linear(1, 1))
