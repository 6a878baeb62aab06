"""A detector small enough for tests, with heads scrambled so that its detections differ from frame to frame."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stnet
from stnet.execution import engine
from stnet.inference import cli
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.video import VideoWriter

SMALL = ModelConfig(
    backbone="resnet10",
    backbone_width=8,
    backbone_norm="batch",
    hidden_dim=64,
    heads=4,
    feedforward_dim=32,
    encoder_layers=1,
    decoder_layers=1,
    queries=7,
    image_size=32,
    max_image_size=64,
)


def scrambled(config: ModelConfig, seed: int = 0) -> Detector:
    """A detector with random weights everywhere, BatchNorm statistics and zero-initialized layers included."""
    torch.manual_seed(seed)
    model = Detector(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * parameter.std(correction=0).clamp(min=0.2))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        for head in model.decoder.class_heads:
            head.bias.zero_()
    return model


@pytest.fixture(scope="session")
def small_model() -> Detector:
    return scrambled(SMALL)


@pytest.fixture
def bfloat16_everywhere(monkeypatch):
    """Let bfloat16 be chosen also on a processor that has to emulate it."""
    monkeypatch.setattr(engine, "cpu_computes_bfloat16", lambda: True)


@pytest.fixture(scope="session")
def checkpoint(small_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    stnet.save(small_model, path, {})
    return path


def noise(frames: int, height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random frames, uint8 [N, H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (frames, height // 8 + 1, width // 8 + 1, 3))
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)[:, :height, :width].astype(np.uint8)


@pytest.fixture(scope="session")
def make_frames():
    return noise


@pytest.fixture(scope="session")
def make_clip():
    """Writes an mp4 of smooth random frames."""

    def write(path: Path, frames: int = 7, height: int = 40, width: int = 48, seed: int = 0) -> Path:
        with VideoWriter(path, Fraction(25), height, width) as writer:
            for number in range(frames):
                writer.write(noise(1, height, width, seed * 10_000 + number)[0])
        return path

    return write


@pytest.fixture
def infer(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path):
        try:
            status = cli.main([str(a) for a in arguments] + ["--checkpoint", str(checkpoint), "--device", "cpu"])
        except SystemExit as exit_:
            status = exit_.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    run.checkpoint = checkpoint
    return run
