"""Exported programs compute what the model computes."""

import json
import logging
import re
import shutil

import pytest
import torch

import stnet
import stnet.export
from stnet.demo_command import main as demo
from stnet.export import WRITERS, ClipProgram, ClipSizes, export_package, export_torch, parity
from stnet.export_command import main
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.model.operating_points import OperatingPoints


def write_small_model(path):
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="resnet10", backbone_width=8, backbone_norm="group", hidden_dim=32, heads=2, feedforward_dim=32,
        dropout=0.0, encoder_layers=1, decoder_layers=1, queries=5, frames=3, image_size=72, duplicate_iou=0.5,
    )  # fmt: skip
    model = Detector(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.operating_points = OperatingPoints(
        class_names=("benign", "malignant"), slopes=(0.9, 1.1), offsets=(0.3, 0.1),
        sensitive=0.0, balanced=0.01, specific=0.5, chosen_on="nothing",
    )  # fmt: skip
    stnet.save(model, path, {"seed": "0"})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("checkpoint") / "small.safetensors")


@pytest.mark.slow
def test_torch_export_equals_the_model_and_needs_no_operator_of_ours(checkpoint, tmp_path):
    model = stnet.load(checkpoint).eval()
    program = export_torch(ClipProgram(model, 2), ClipSizes(), tmp_path / "model.pt2")
    for shape in ((1, 65, 141), (3, 90, 66)):
        found = parity(model, program, 2, torch.randn(shape[0], 3, 3, *shape[1:]))
        assert max(found.logits, found.boxes) < 1e-4
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert not [node for node in loaded.graph.nodes if "stnet" in str(node.target)]


def test_a_fused_program_keeps_the_operator(checkpoint, tmp_path):
    model = stnet.load(checkpoint).eval()
    program = export_torch(ClipProgram(model, 2, "auto"), ClipSizes(), tmp_path / "model.pt2")
    for shape in ((1, 65, 141), (3, 90, 66)):
        found = parity(model, program, 2, torch.randn(shape[0], 3, 3, *shape[1:]))
        assert max(found.logits, found.boxes) < 1e-4
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert [node for node in loaded.graph.nodes if "stnet.stda_forward" in str(node.target)]


@pytest.mark.slow
def test_a_package_for_this_processor_equals_the_model(checkpoint, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    model = stnet.load(checkpoint).eval()
    program = export_package(ClipProgram(model, 2, "auto"), ClipSizes(), tmp_path / "model.pt2")
    for shape in ((1, 65, 141), (3, 90, 66)):
        found = parity(model, program, 2, torch.randn(shape[0], 3, 3, *shape[1:]))
        assert max(found.logits, found.boxes) < 1e-4


def test_card_of_the_shipped_model_lists_its_metrics(tmp_path):
    assert main(["tiny", "--output", str(tmp_path), "--formats", "safetensors"]) == 0
    card = (tmp_path / "README.md").read_text()
    sections = dict(re.findall(r"## (\w+)\n\n```json\n(.*?)\n```", card, re.DOTALL))
    assert "Trained on 240 phantoms" in card and "Caution: tiny knows made-up phantoms only" in card
    assert json.loads(sections["model"])["queries"] and json.loads(sections["metrics"])["ap50"] > 0.5


def test_safetensors_come_with_a_model_card(checkpoint, tmp_path):
    assert main([str(checkpoint), "--output", str(tmp_path), "--formats", "safetensors"]) == 0
    original, copy = stnet.load(checkpoint).state_dict(), stnet.load(tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(value, copy[key]) for key, value in original.items())
    card = (tmp_path / "README.md").read_text()
    assert "Not a medical device" in card and "seed: 0" in card


def test_a_place_that_cannot_be_written_is_named(checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(checkpoint), "--output", str(tmp_path / "file" / "x"), "--formats", "safetensors"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/file/x: cannot be written")


@pytest.mark.parametrize(("extra", "message"), [(["--targets", "9"], "3 frames"), (["--height", "8"], "--height is 8")])
def test_unusable_options_are_refused(checkpoint, tmp_path, capsys, extra, message):
    assert main([str(checkpoint), "--output", str(tmp_path), *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    """PyTorch, given a path, ends the whole process there."""
    resource = pytest.importorskip("resource")
    small = torch.export.export(torch.nn.Linear(300, 300), (torch.zeros(1, 300),))
    monkeypatch.setattr(stnet.export, "exported", lambda *_: small)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert main([str(checkpoint), "--output", str(tmp_path / "full"), "--formats", "torch"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"error: {tmp_path / 'full' / 'model.pt2'}: File too large" in capsys.readouterr().err
    assert not list((tmp_path / "full").iterdir())


def test_a_missing_package_is_named_before_anything_is_written(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stnet.export, "find_spec", lambda name: None)
    assert main([str(checkpoint), "--output", str(tmp_path), "--formats", "safetensors", "onnx"]) == 2
    assert "pip install 'stnet[onnx]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_exporting_leaves_the_model_and_the_process_alone(checkpoint, tmp_path, monkeypatch):
    model = stnet.load(checkpoint)
    ClipProgram(model, 2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not [m for m in model.modules() if getattr(m, "backend", None) == "reference"]

    def broken(*_):
        raise MemoryError

    monkeypatch.setitem(WRITERS, "torch", broken)
    before = logging.root.manager.disable
    assert main([str(checkpoint), "--output", str(tmp_path), "--formats", "torch"]) == 2
    assert logging.root.manager.disable == before


def test_a_place_that_cannot_be_written_is_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for command in (
        lambda: main([str(checkpoint), "--output", str(tmp_path / "file")]),
        lambda: demo([*("--frames", "2"), "--output", str(tmp_path / "file")]),
    ):
        assert command() == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("error: ") and str(tmp_path / "file") in err
