"""Packages that carry deformable attention as a function, through the real forward of their models."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

from stnet.integrations import functions
from tests.integrations.comparing import Calls, compare, scrambled
from tests.integrations.covered import PACKAGES

pytestmark = pytest.mark.integration


def _ultralytics():
    from ultralytics.nn.tasks import RTDETRDetectionModel

    layers = [[-1, 1, "Conv", [width, 3, 2]] for width in (16, 32, 32, 64, 64)]
    head = [[[2, 3, 4], 1, "RTDETRDecoder", ["nc", 64, 20, 4, 4, 2]]]
    return RTDETRDetectionModel({"nc": 3, "backbone": layers, "head": head}, verbose=False)


def _rfdetr():
    from rfdetr import RFDETRNano

    return RFDETRNano(
        pretrain_weights=None, device="cpu", resolution=128, positional_encoding_size=8, num_queries=20, group_detr=1
    ).model.model


def _libreyolo_rtdetr():
    from libreyolo.models.rtdetr.nn import RTDETRModel

    return RTDETRModel(num_classes=3, num_queries=20, num_denoising=0)


def _libreyolo_rtdetrv2():
    from libreyolo.models.rtdetrv2.nn import RTDETRv2Model

    points = [3, 5, 2]
    return RTDETRv2Model(
        num_classes=3, num_queries=20, num_decoder_layers=2, num_denoising=0, num_decoder_points=points
    )


def _libreyolo_dfine():
    from libreyolo.models.dfine.nn import LibreDFINEModel

    model = LibreDFINEModel("n", nb_classes=3, eval_spatial_size=None)
    model.decoder.num_queries = 20
    return model


def _libreyolo_deim():
    from libreyolo.models.deim.nn import LibreDEIMModel

    model = LibreDEIMModel("n", nb_classes=3, eval_spatial_size=None)
    model.decoder.num_queries = 20
    return model


MODELS = {
    "ultralytics": {"RT-DETR": _ultralytics},
    "rfdetr": {"RF-DETR Nano": _rfdetr},
    "libreyolo": {
        "RT-DETR": _libreyolo_rtdetr,
        "RT-DETRv2": _libreyolo_rtdetrv2,
        "D-FINE": _libreyolo_dfine,
        "DEIM": _libreyolo_deim,
    },
}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in MODELS for name in PACKAGES[package]])
def test_outputs_and_gradients_stay_the_same(package, name, monkeypatch):
    pytest.importorskip(package)
    model = scrambled(MODELS[package][name](), others=0.0)
    pixels = torch.rand(2, 3, 128, 128)
    calls = Calls(monkeypatch)

    replaced = compare(
        model,
        lambda model: model(pixels.to(next(model.parameters()).dtype)),
        lambda *models: functions.install(package, *models),
        lambda *models: functions.uninstall(package, *models),
    )
    assert replaced and calls
    calls.clear()
    model.float()(pixels)
    assert not calls


def test_libreyolo_has_no_function_that_is_not_in_the_table():
    """So that a new version tells of new ones: functions that sample at `sampling_locations` by `grid_sample`."""
    libreyolo = pytest.importorskip("libreyolo")
    found = set()
    for info in pkgutil.walk_packages(libreyolo.__path__, "libreyolo."):
        spec = importlib.util.find_spec(info.name) if "models" in info.name else None
        if spec is None or not spec.origin.endswith(".py") or "grid_sample" not in Path(spec.origin).read_text():
            continue
        module = importlib.import_module(info.name)
        for name, item in vars(module).items():
            if inspect.isfunction(item) and item.__module__ == info.name:
                parameters = inspect.signature(item).parameters
                if "sampling_locations" in parameters and "attention_weights" in parameters:
                    found.add((info.name, name))
    known = {row[:2] for row in functions.TABLE if row[0].startswith("libreyolo")}
    assert found == known | {
        ("libreyolo.models.grounding_dino.nn", "_msda"),
        ("libreyolo.models.gtr.utils", "deformable_attention_core_func"),  # called by nobody
    }
