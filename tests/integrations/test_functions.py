"""Functions of other packages, here of packages that are written like them."""

import functools
import importlib
import importlib.util
import pickle
import sys

import pytest
import torch
from torch import nn

from stnet.integrations import functions, layouts
from tests.integrations.comparing import Calls
from tests.integrations.eager import deformable_attention, multi_scale_deformable_attention_v2, problem

SHAPES = [(4, 6), (2, 3)]
CELLS = [24, 6]

LAYERS = """
from tests.integrations.eager import deformable_attention

try:
    from PACKAGE import _C
except ImportError:
    def create_dummy_class(name):
        raise ImportError(f"Cannot import 'PACKAGE._C', therefore {name} is not available")

def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)

def layer(cuda, value, shapes, starts, locations, weights):
    if cuda:
        return _C.ms_deform_attn_forward(value, shapes, starts, locations, weights, 64)
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
"""


HOMES = {"detrex": "layers.multi_scale_deform_attn", "groundingdino": "models.GroundingDINO.ms_deform_attn"}


@pytest.fixture(params=HOMES)
def package(request, write_package):
    name, home = request.param, HOMES[request.param]
    write_package({
        f"{name}/{home.replace('.', '/')}.py": LAYERS.replace("PACKAGE", name),
        f"{name}/user.py": f"from {name}.{home} import multi_scale_deformable_attn_pytorch\n",
    })  # fmt: skip
    yield name
    functions.uninstall(name)


@pytest.mark.parametrize("imported", ["before", "after"])
def test_packages_by_their_names(imported, package, monkeypatch):
    if imported == "before":
        importlib.import_module(f"{package}.user")
    home = f"{package}.{HOMES[package]}"
    replaced = functions.install(package)
    assert replaced == functions.install(package)
    assert replaced == [f"{package}._C", f"{home}.multi_scale_deformable_attn_pytorch"]
    module, user = importlib.import_module(home), importlib.import_module(f"{package}.user")
    calls = Calls(monkeypatch)
    value, shapes, starts, locations, weights = problem(SHAPES)
    expected = deformable_attention(value, SHAPES, locations, weights)
    for cuda in (True, False):
        torch.testing.assert_close(module.layer(cuda, value, shapes, starts, locations, weights), expected)
    torch.testing.assert_close(user.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights), expected)
    assert len(calls) == 2  # the extension is no function of layouts

    functions.uninstall(package)
    assert not hasattr(user.multi_scale_deformable_attn_pytorch, "__wrapped__")
    assert user.multi_scale_deformable_attn_pytorch is module.multi_scale_deformable_attn_pytorch
    assert not hasattr(sys.modules[package], "_C")


def test_a_package_that_is_absent_or_unknown_leaves_nothing_behind(write_package):
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError, match="detrex"):
        functions.install("detrex")
    with pytest.raises(ValueError, match="no function of 'numpy' is known, only of detrex"):
        functions.install("numpy")
    write_package({"rfdetr/models.py": ""})
    with pytest.raises(ValueError, match=r"this version of rfdetr has no rfdetr\.models\.ops"):
        functions.install("rfdetr")
    assert sys.meta_path == before


def test_functions_that_are_missing_in_a_version_are_named(write_package):
    write_package({"detrex/layers/other.py": ""})
    write_package({"groundingdino/models/GroundingDINO/ms_deform_attn.py": "import a_module_nobody_has\n"})
    with pytest.raises(ValueError, match="this version of detrex has no"):
        functions.install("detrex")
    with pytest.raises(ModuleNotFoundError, match="a_module_nobody_has"):
        functions.install("groundingdino")
    assert importlib.util.find_spec("detrex._C") is None is importlib.util.find_spec("groundingdino._C")


ORIGINAL = """
from tests.integrations.eager import multi_scale_deformable_attention_v2 as sample

def deformable_attention_core_func_v2(
    value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"
):
    return sample(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)

def another(value, mask):
    return value
"""


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.core = functools.partial(function, method="default")


def test_a_model_that_was_built_before_is_given_the_function(write_package, monkeypatch):
    write_package({"dfine_like/utils.py": ORIGINAL})
    own = importlib.import_module("dfine_like.utils").deformable_attention_core_func_v2
    model = nn.Sequential(Layer(own))
    calls = Calls(monkeypatch)
    name = ("dfine_like.utils", "deformable_attention_core_func_v2")
    functions.replace(*name, layouts.by_point, model)
    value, _, _, locations, weights = problem(SHAPES)
    locations, weights = locations.flatten(3, 4)[:, :, :, :4], weights.flatten(3, 4)[:, :, :, :4]
    arguments = (value, SHAPES, locations, weights, [3, 1])
    torch.testing.assert_close(model[0].core(*arguments), own(*arguments))
    assert len(calls) == 1
    assert pickle.loads(pickle.dumps(model))[0].core.func is model[0].core.func

    assert torch.equal(model[0].core(*arguments, method="discrete"), own(*arguments, "discrete"))
    with torch.no_grad():
        traced = torch.jit.trace(lambda value: model[0].core(value, *arguments[1:]), value, check_trace=False)
    assert len(calls) == 1 and "stnet" not in str(traced.inlined_graph)

    functions.restore(*name, model)
    assert model[0].core.func is own is sys.modules["dfine_like.utils"].deformable_attention_core_func_v2
    with pytest.raises(ValueError, match=r"another takes \(value, mask\); only"):
        functions.replace("dfine_like.utils", "another", layouts.by_level)
    with pytest.raises(AttributeError, match="nothing"):
        functions.replace("dfine_like.utils", "nothing", layouts.by_level)


def _own(*arguments):
    raise AssertionError("the replaced function was called")


@pytest.mark.parametrize("shapes", ["ints", "tensor"])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda v, ls, ws: (layouts.by_level, v, ls, ws),
        lambda v, ls, ws: (layouts.by_level, v, ls.flatten(3, 4), ws.flatten(3, 4)),
        lambda v, ls, ws: (layouts.by_level, [x.flatten(0, 1) for x in _levels(v)], ls, ws),
        lambda v, ls, ws: (layouts.heads_first, v.permute(0, 2, 3, 1), ls, ws.flatten(3, 4)),
        lambda v, ls, ws: (_by_point(3, 3), v, ls.flatten(3, 4), ws.flatten(3, 4)),
        lambda v, ls, ws: (_by_point(3, 3), _levels(v), ls.flatten(3, 4), ws.flatten(3, 4)),
        lambda v, ls, ws: (_by_point(3, 3), _maps(v), ls.flatten(3, 4), ws.flatten(3, 4)),
    ],
    ids=[
        "levels",
        "levels and points as one",
        "levels apart",
        "heads first",
        "points",
        "[N, H, D, hw]",
        "[NH, D, h, w]",
    ],
)
def test_layouts(arrange, shapes):
    value, on_device, _, locations, weights = problem(SHAPES)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    expected = deformable_attention(value, SHAPES, locations, weights)
    layout, *arguments = arrange(*leaves)
    output = layout(arguments[0], SHAPES if shapes == "ints" else on_device, *arguments[1:])
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(output)
    for got, wanted in zip(*(torch.autograd.grad(x, leaves, upstream) for x in (output, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def _by_point(*counts):
    return lambda *arguments: layouts.by_point(*arguments, list(counts), own=_own)


def _levels(value):
    return list(value.permute(0, 2, 3, 1).split(CELLS, dim=-1))


def _maps(value):
    return [x.flatten(0, 1).unflatten(-1, shape) for x, shape in zip(_levels(value), SHAPES, strict=True)]


@pytest.mark.parametrize("counts", [(3, 5), (1, 1), (4, 0)])
def test_levels_with_numbers_of_points_of_their_own(counts):
    value, _, _, locations, weights = problem(SHAPES, points=4)
    locations, weights = locations.flatten(3, 4)[:, :, :, : sum(counts)], weights.flatten(3, 4)[:, :, :, : sum(counts)]
    expected = multi_scale_deformable_attention_v2(value, SHAPES, locations, weights, list(counts))
    torch.testing.assert_close(_by_point(*counts)(value, SHAPES, locations, weights), expected)
