"""Hugging Face models give the same outputs and gradients with the operators installed."""

import copy
import importlib
import inspect
import io
import pickle
import pkgutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from stnet.integrations.transformers import install, uninstall
from tests.integrations.comparing import Calls, compare, results, scrambled, tensors
from tests.integrations.hugging_face import MODELS, call, rt_detr_v2

pytestmark = pytest.mark.integration
CHOOSES_BY_ATTENTION = {"Grounding DINO", "MM Grounding DINO", "Mask2Former", "OneFormer"}
"""Models that choose queries by the output of their encoder, or attend by masks they predict."""


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 128, 128)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_stay_the_same(name, monkeypatch, pixels):
    model = scrambled(MODELS[name]())
    calls = Calls(monkeypatch)
    dtypes = [torch.float64] if name in CHOOSES_BY_ATTENTION else [torch.float32, torch.float64]
    layers = compare(model, lambda model: call(model, pixels), install, uninstall, dtypes)
    assert len(calls) == layers * len(dtypes) >= 2
    calls.clear()
    before = results(model, lambda model: call(model, pixels))[0]
    assert not calls
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "sampling_offsets.bias" in key:
                parameter.add_(2.0)
    after = results(model, lambda model: call(model, pixels))[0]
    assert (
        max((a - b).abs().max() for a, b in zip(after, before, strict=True)) > 2e-6
    )  # the comparison could have failed


@pytest.mark.parametrize("name", MODELS)
def test_operators_travel_with_the_model(name, monkeypatch, pixels, tmp_path):
    model = scrambled(MODELS[name]()).eval()
    layers = install(model)
    calls = Calls(monkeypatch)
    # Some models of transformers cannot be pickled whole, for their own hooks; their layers can.
    others = [copy.deepcopy(model), copy.deepcopy(model)]
    for key, layer in model.named_modules():
        if hasattr(layer, "_own_class"):
            others[1].set_submodule(key, pickle.loads(pickle.dumps(layer)))
    with torch.no_grad():
        expected = tensors(call(model, pixels))
        calls.clear()
        for other in others:
            for got, known in zip(tensors(call(other, pixels)), expected, strict=True):
                torch.testing.assert_close(got, known, equal_nan=True)
        assert len(calls) == layers * len(others)

        # What is saved and loaded the usual way is the weights alone.
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        calls.clear()
        loaded_outputs = tensors(call(loaded, pixels))
        assert not calls and install(loaded) == layers
        assert len(loaded_outputs) == len(expected)


def test_whole_model_by_torch_save(monkeypatch, pixels):
    model = scrambled(MODELS["RT-DETR"]()).eval()
    install(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded, calls = torch.load(file, weights_only=False), Calls(monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(call(loaded, pixels).logits, call(model, pixels).logits)
    assert len(calls) == 4


@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name, pixels):
    """bfloat16, which `grid_sample` takes on the CPU too."""
    model = scrambled(MODELS[name]()).eval().bfloat16()
    install(model)
    with torch.no_grad():
        assert all(x.dtype in (torch.bfloat16, torch.float32) for x in tensors(call(model, pixels)))


def test_compiled_model(pixels, monkeypatch):
    model = scrambled(MODELS["RT-DETR"]()).eval()
    install(model)
    calls = Calls(monkeypatch)
    with torch.no_grad():
        expected = call(model, pixels).logits
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(pixel_values=pixels).logits, expected, rtol=1e-3, atol=1e-3)
    assert calls


def test_discrete_sampling_stays_what_it_was(pixels):
    model = rt_detr_v2(decoder_method="discrete").train()
    with torch.no_grad():
        eager = copy.deepcopy(model)(pixel_values=pixels).logits
        install(model)
        assert torch.equal(model(pixel_values=pixels).logits, eager)


def test_every_model_with_deformable_attention_is_listed():
    """So that a new version of transformers tells of new ones: modules that sample at `sampling_locations`."""
    import transformers.models

    found = set()
    for info in pkgutil.iter_modules(transformers.models.__path__):
        path = Path(transformers.models.__path__[0], info.name, f"modeling_{info.name}.py")
        text = path.read_text() if path.exists() else ""
        if "grid_sample(" in text and "sampling_locations" in text:
            found.add(info.name)
    assert found == {build.__name__ for build in MODELS.values()}


def test_every_layer_with_deformable_attention_is_known():
    """A class named so is one that `install` takes, or holds one."""
    from torch import nn

    from stnet.integrations.transformers import LAYER, _called

    for build in MODELS.values():
        module = importlib.import_module(f"transformers.models.{build.__name__}.modeling_{build.__name__}")
        classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, nn.Module)]
        for kind in [c for c in classes if "deformableattention" in c.__name__.lower()]:
            source = inspect.getsource(kind.__init__) if "__init__" in vars(kind) else ""
            assert (
                kind.__name__ == LAYER
                or _called(kind.forward) is not None
                or f"{LAYER}()" in source
                or "self.ms_deformable_attn_core = multi_scale_deformable_attention_v2" in source
            ), kind
