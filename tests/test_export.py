"""Exported programs compute what the model computes."""

import json
import logging
import re

import pytest
import torch

import stnet
from stnet.demo_command import main as demo
from stnet.export import export_torch, portable_program
from stnet.export_command import main
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="resnet10", backbone_width=8, backbone_norm="group", hidden_dim=32, heads=2, feedforward_dim=32,
        dropout=0.0, encoder_layers=1, decoder_layers=2, queries=5, frames=4, image_size=64,
    )  # fmt: skip
    model = Detector(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    stnet.save(model, path, {"seed": "0"})
    return path


def test_torch_export_equals_the_model_and_needs_no_operator_of_ours(checkpoint, tmp_path):
    program = portable_program(stnet.load(checkpoint), targets=2)
    parity = export_torch(program, torch.randn(2, 4, 3, 64, 96), tmp_path / "model.pt2")
    assert max(parity.logits, parity.boxes) < 1e-4
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert not [node for node in loaded.graph.nodes if "stnet" in str(node.target)]


def test_onnx_equals_the_model(checkpoint, tmp_path, capfd):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    arguments = [str(checkpoint), "--output", str(tmp_path), "--formats", "onnx", "--height", "64", "--width", "96"]
    assert main(arguments) == 0
    printed = capfd.readouterr()
    differences = json.loads(re.search(r"\{.*\}", printed.out).group())
    assert "W:onnxruntime" not in printed.err
    assert max(differences.values()) < 1e-4
    assert main(arguments) == 2
    assert "--overwrite" in capfd.readouterr().err


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


@pytest.mark.parametrize(("extra", "message"), [(["--targets", "9"], "4 frames"), (["--height", "8"], "--height is 8")])
def test_unusable_options_are_refused(checkpoint, tmp_path, capsys, extra, message):
    assert main([str(checkpoint), "--output", str(tmp_path), *extra]) == 2
    assert message in capsys.readouterr().err


def test_exporting_leaves_the_model_and_the_process_alone(checkpoint, tmp_path, monkeypatch):
    model = stnet.load(checkpoint)
    portable_program(model, targets=2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not [m for m in model.modules() if getattr(m, "backend", None) == "reference"]

    def broken(*_):
        raise MemoryError

    monkeypatch.setattr("stnet.export.export_torch", broken)
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
