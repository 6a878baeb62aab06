"""The stand-in extension under an autograd function written the way the Deformable DETR family writes it."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from stnet.integrations import msda


@pytest.fixture
def extension():
    msda.install()
    yield importlib.import_module("MultiScaleDeformableAttention")
    msda.uninstall()
    assert "MultiScaleDeformableAttention" not in sys.modules


def _problem(levels, dtype=torch.float32, batch=3, queries=11, heads=2, dim=4, points=3):
    generator = torch.Generator().manual_seed(len(levels))
    shapes = torch.tensor(levels)
    cells = shapes.prod(dim=1)
    starts = torch.cat([cells.new_zeros(1), cells.cumsum(0)[:-1]])
    value = torch.randn(batch, int(cells.sum()), heads, dim, generator=generator)
    locations = torch.rand(batch, queries, heads, len(levels), points, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(levels), points, generator=generator)
    return value.to(dtype), shapes, starts, locations.to(dtype), weights.to(dtype)


def _expected(value, shapes, starts, locations, weights):
    """Written from the equation: a sum of weighted bilinear samples, level by level."""
    batch, _, heads, dim = value.shape
    total = 0.0
    for level, (height, width) in enumerate(shapes.tolist()):
        start = int(starts[level])
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        total = total + (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.view(batch, heads * dim, -1).transpose(1, 2)


TWENTY_LEVELS = [(6, 8), (3, 4), (2, 2), (1, 1)] * 5  # four levels of five stacked frames, as the published STNet does


@pytest.mark.parametrize("levels", [[(4, 6)], [(5, 3), (2, 7), (1, 1)], TWENTY_LEVELS], ids=["1", "3", "20"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_forward_and_backward(extension, levels, dtype):
    value, shapes, starts, locations, weights = _problem(levels, dtype)
    output = extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, 64)
    leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
    expected = _expected(leaves[0], shapes, starts, leaves[1], leaves[2])
    torch.testing.assert_close(output, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not output.requires_grad

    upstream = torch.randn_like(output)
    gradients = extension.ms_deform_attn_backward(value, shapes, starts, locations, weights, upstream, 64)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [0, 1, 65])
def test_any_batch_size_whatever_im2col_step(extension, batch):
    arguments = _problem([(4, 6), (2, 3)], batch=batch)
    output = extension.ms_deform_attn_forward(*arguments, 64)
    assert output.shape == (batch, 11, 8)
    gradients = extension.ms_deform_attn_backward(*arguments, torch.ones_like(output), 64)
    assert [g.shape for g in gradients] == [arguments[0].shape, arguments[3].shape, arguments[4].shape]


def test_extension_inside_a_package(tmp_path, monkeypatch):
    package = tmp_path / "somedino"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layer.py").write_text("from somedino import _C\n")
    monkeypatch.syspath_prepend(tmp_path)
    msda.install("somedino._C")
    try:
        layer = importlib.import_module("somedino.layer")
        assert layer._C.ms_deform_attn_forward(*_problem([(4, 6)]), 64).shape == (3, 11, 8)
        assert msda.MODULE_NAME not in sys.modules
    finally:
        msda.uninstall("somedino._C")


def test_keywords_as_in_the_extension(extension):
    names = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")
    problem = _problem([(4, 6), (2, 3)])
    named = extension.ms_deform_attn_forward(**dict(zip(names, problem, strict=True)), im2col_step=64)
    assert torch.equal(named, extension.ms_deform_attn_forward(*problem, 64))


def test_installing_twice_is_one_module_and_never_hides_a_compiled_one(monkeypatch):
    assert msda.install() is msda.install()
    msda.uninstall()
    compiled = ModuleType("MultiScaleDeformableAttention")
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", compiled)
    with pytest.raises(RuntimeError, match="replace=True"):
        msda.install()
    assert msda.install(replace=True) is not compiled
