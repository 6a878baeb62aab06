"""What is taken from a checkpoint, and what is kept from training."""

import dataclasses

import pytest
import torch

from stnet.errors import CheckpointError, ConfigError
from stnet.model.checkpoint import load, save
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.training.starting_points import first_weights, freeze, load_backbone_weights, start_from


def test_what_fits_is_taken_and_the_rest_is_listed(small_recipe, tmp_path):
    config = small_recipe().model
    theirs = Detector(config)
    save(theirs, tmp_path / "start.safetensors")
    ours = Detector(dataclasses.replace(config, class_names=("a", "b", "c"), encoder_layers=2))
    before = ours.decoder.class_heads[0].weight.clone()
    start = start_from(ours, str(tmp_path / "start.safetensors"))
    assert torch.equal(ours.backbone.conv1.weight, theirs.backbone.conv1.weight)
    assert torch.equal(ours.decoder.class_heads[0].weight, before)
    assert "decoder.class_heads.0.weight" in start.different
    assert start.missing and all(name.startswith("encoder.layers.1.") for name in start.missing)
    assert not start.unused and start.taken + len(start.different) == len(theirs.state_dict())
    assert "decoder.class_heads.0.bias" in start.summary()


def test_class_heads_go_by_the_names_of_the_classes(small_recipe, tmp_path):
    config = dataclasses.replace(small_recipe().model, class_names=("cyst", "solid"))
    theirs = Detector(config)
    save(theirs, tmp_path / "start.safetensors")
    turned = Detector(dataclasses.replace(config, class_names=("solid", "cyst")))
    assert not start_from(turned, str(tmp_path / "start.safetensors")).different
    for name, value in turned.decoder.class_heads.state_dict().items():
        assert torch.equal(value, theirs.decoder.class_heads.state_dict()[name][[0, 2, 1]])
    others = Detector(dataclasses.replace(config, class_names=("cyst", "node")))
    start = start_from(others, str(tmp_path / "start.safetensors"))
    assert start.different and all(name.startswith("decoder.class_heads.") for name in start.different)
    assert torch.equal(others.decoder.box_heads[0].layers[0].weight, theirs.decoder.box_heads[0].layers[0].weight)


def test_a_whole_backbone_of_a_checkpoint_needs_no_other_weights(small_recipe, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    config = dataclasses.replace(small_recipe().model, backbone="resnet18", backbone_width=64, backbone_norm="batch")
    theirs = Detector(config)
    save(theirs, tmp_path / "whole.safetensors")
    ours = Detector(config)
    first_weights(ours, str(tmp_path / "whole.safetensors"), "absent.pth")
    assert torch.equal(ours.backbone.conv1.weight, theirs.backbone.conv1.weight)

    known = torchvision.models.resnet18(weights=None)
    torch.save(known.state_dict(), tmp_path / "known.pth")
    heads = {name: value for name, value in theirs.state_dict().items() if "decoder" in name}
    torch.save({"model": heads}, tmp_path / "heads.pth")
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        first_weights(ours, str(tmp_path / "heads.pth"), "absent.pth")
    first_weights(ours, str(tmp_path / "heads.pth"), str(tmp_path / "known.pth"))
    assert torch.equal(ours.backbone.conv1.weight, known.conv1.weight)
    assert torch.equal(ours.decoder.class_heads[0].weight, theirs.decoder.class_heads[0].weight)
    assert first_weights(ours, "", "") is None


def test_a_checkpoint_that_fits_nowhere_is_refused(small_recipe, tmp_path):
    torch.save({"model": {"something.else": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="none of its 1 tensors"):
        start_from(Detector(small_recipe().model), str(tmp_path / "other.pth"))


def test_backbone_weights_come_from_a_torchvision_file(small_recipe, tmp_path):
    import torchvision

    config = dataclasses.replace(small_recipe().model, backbone="resnet18", backbone_width=64, backbone_norm="batch")
    known = torchvision.models.resnet18(weights=None)
    torch.save(known.state_dict(), tmp_path / "resnet18.pth")
    model = Detector(config)
    load_backbone_weights(model, str(tmp_path / "resnet18.pth"))
    assert torch.equal(model.backbone.layer3[0].conv1.weight, known.layer3[0].conv1.weight)
    with pytest.raises(CheckpointError, match="neither"):
        load_backbone_weights(model, "resnet-nowhere")


@pytest.mark.parametrize("part", ["backbone", "encoder", "decoder", "heads"])
def test_frozen_parts_do_not_train(small_recipe, part):
    model = Detector(small_recipe().model)
    whole = sum(p.numel() for p in model.parameters())
    left = freeze(model, (part,))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert 0 < left < whole and frozen
    expected = {"backbone": "backbone.", "encoder": "encoder.", "decoder": "decoder.", "heads": "decoder.box_heads."}
    assert any(name.startswith(expected[part]) for name in frozen)


def test_a_frozen_backbone_keeps_its_statistics(small_recipe):
    model = Detector(dataclasses.replace(small_recipe().model, backbone_norm="batch"))
    freeze(model, ("backbone",))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train().extract_features(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_something_must_train(small_recipe):
    with pytest.raises(ConfigError, match="nothing is left"):
        freeze(Detector(small_recipe().model), ("backbone", "encoder", "decoder"))
    model = Detector(small_recipe().model)
    assert freeze(model, ()) == sum(p.numel() for p in model.parameters())


def test_shipped_weights_start_a_training():
    model = Detector(ModelConfig.preset("tiny"))
    start = start_from(model, "tiny")
    shipped = load("tiny").state_dict()
    assert not start.missing and not start.different
    assert all(torch.equal(value, shipped[name]) for name, value in model.state_dict().items())
