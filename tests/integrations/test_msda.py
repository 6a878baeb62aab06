"""The stand-in extension under an autograd function written the way the Deformable DETR family writes it."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from stnet.integrations import msda
from tests.integrations.eager import deformable_attention, problem


@pytest.fixture
def extension():
    msda.install()
    yield importlib.import_module("MultiScaleDeformableAttention")
    msda.uninstall()
    assert "MultiScaleDeformableAttention" not in sys.modules


TWENTY_LEVELS = [(6, 8), (3, 4), (2, 2), (1, 1)] * 5  # four levels of five stacked frames, as the published STNet does


@pytest.mark.parametrize("levels", [[(4, 6)], [(5, 3), (2, 7), (1, 1)], TWENTY_LEVELS], ids=["1", "3", "20"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_forward_and_backward(extension, levels, dtype):
    value, shapes, starts, locations, weights = problem(levels, dtype)
    output = extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, 64)
    leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
    expected = deformable_attention(leaves[0], shapes.tolist(), *leaves[1:])
    torch.testing.assert_close(output, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not output.requires_grad

    upstream = torch.randn_like(output)
    gradients = extension.ms_deform_attn_backward(value, shapes, starts, locations, weights, upstream, 64)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [0, 1, 65])
def test_any_batch_size_whatever_im2col_step(extension, batch):
    arguments = problem([(4, 6), (2, 3)], batch=batch)
    output = extension.ms_deform_attn_forward(*arguments, 64)
    assert output.shape == (batch, 11, 8)
    gradients = extension.ms_deform_attn_backward(*arguments, torch.ones_like(output), 64)
    assert [g.shape for g in gradients] == [arguments[0].shape, arguments[3].shape, arguments[4].shape]


def test_the_import_system_knows_it(extension):
    assert extension.__spec__ == importlib.util.find_spec("MultiScaleDeformableAttention")
    assert importlib.reload(extension) is extension and extension.ms_deform_attn_forward
    msda.uninstall()
    assert importlib.util.find_spec("MultiScaleDeformableAttention") is None


@pytest.fixture
def somedino(tmp_path, monkeypatch):
    """A package written like the original Grounding DINO, whose layers do without the extension while they can."""
    package = tmp_path / "somedino"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layer.py").write_text(LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    yield "somedino"
    msda.uninstall("somedino._C")
    for name in [name for name in sys.modules if name.startswith("somedino")]:
        del sys.modules[name]


LAYER = """
import functools

try:
    from somedino import _C
except ImportError:
    pass
try:
    import somedino._C as MSDA
except ImportError:
    MSDA = None

def logged(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)
    return call

class Function:
    @staticmethod
    def forward(*args):
        return _C.ms_deform_attn_forward(*args)

    @staticmethod
    @logged
    def backward(*args):
        return MSDA.ms_deform_attn_backward(*args)
"""


@pytest.mark.parametrize("when", ["before", "after the package", "after the layer"])
def test_extension_inside_a_package_may_be_installed(when, somedino):
    if when == "after the package":
        importlib.import_module(somedino)
    if when == "after the layer":
        layer = importlib.import_module("somedino.layer")
        with pytest.raises(NameError):
            layer.Function.forward()
    msda.install("somedino._C")
    layer = importlib.import_module("somedino.layer")
    arguments = problem([(4, 6)])
    output = layer.Function.forward(*arguments, 64)
    assert output.shape == (3, 11, 8)
    assert len(layer.Function.backward(*arguments, output, 64)) == 3
    assert sys.modules["somedino"]._C is layer._C is importlib.import_module("somedino._C")
    assert importlib.util.find_spec("somedino._C") is not None
    assert msda.MODULE_NAME not in sys.modules

    msda.uninstall("somedino._C")
    assert not hasattr(sys.modules["somedino"], "_C") and importlib.util.find_spec("somedino._C") is None
    if when == "after the layer":
        with pytest.raises(NameError):
            layer.Function.forward()


def test_names_that_mean_something_are_left_alone(somedino):
    layer = importlib.import_module("somedino.layer")
    layer.MSDA = compiled = ModuleType("compiled")
    msda.install("somedino._C")
    assert layer.MSDA is compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_under_autocast_the_values_decide_on_the_dtype(extension, dtype):
    arguments = problem([(4, 6), (2, 3)], dtype)
    expected = extension.ms_deform_attn_forward(*arguments, 64)
    wanted = extension.ms_deform_attn_backward(*arguments, torch.ones_like(expected), 64)
    with torch.autocast("cpu", dtype=torch.float16):
        output = extension.ms_deform_attn_forward(*arguments, 64)
        gradients = extension.ms_deform_attn_backward(*arguments, torch.ones_like(output), 64)
    assert output.dtype == dtype and torch.equal(output, expected)
    assert all(g.dtype == dtype and torch.equal(g, w) for g, w in zip(gradients, wanted, strict=True))


def test_keywords_as_in_the_extension(extension):
    names = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")
    arguments = problem([(4, 6), (2, 3)])
    named = extension.ms_deform_attn_forward(**dict(zip(names, arguments, strict=True)), im2col_step=64)
    assert torch.equal(named, extension.ms_deform_attn_forward(*arguments, 64))


def test_installing_twice_is_one_module_and_never_hides_a_compiled_one(monkeypatch):
    assert msda.install() is msda.install()
    msda.uninstall()
    compiled = ModuleType("MultiScaleDeformableAttention")
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", compiled)
    with pytest.raises(RuntimeError, match="replace=True"):
        msda.install()
    assert msda.install(replace=True) is not compiled
    msda.uninstall()
    assert importlib.import_module("MultiScaleDeformableAttention") is compiled
