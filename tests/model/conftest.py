"""Small models, and the recorded numbers of the original implementation."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stnet.model.checkpoint import read_checkpoint
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    """A model that runs in milliseconds."""
    return ModelConfig(
        backbone="resnet10",
        backbone_width=8,
        backbone_norm="group",
        hidden_dim=32,
        heads=2,
        feedforward_dim=32,
        dropout=0.0,
        encoder_layers=1,
        decoder_layers=2,
        queries=5,
        frames=4,
    )


@pytest.fixture
def small_model(small_config) -> Detector:
    torch.manual_seed(0)
    model = Detector(small_config).eval()
    with torch.no_grad():  # away from the initial symmetry, so that every input matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@dataclass(frozen=True)
class Recorded:
    """One recorded run of the original implementation."""

    facts: dict
    arrays: dict
    clip: torch.Tensor  # [1, F, 3, H, W] float32
    padding_mask: torch.Tensor | None
    published: dict[str, torch.Tensor]  # weights under their published names


@pytest.fixture(scope="session")
def recorded(shared: Path):
    """Load a recorded case by name; its checkpoint can be written by `write_published`."""
    parity = shared / "parity"
    spec = importlib.util.spec_from_file_location("make_checkpoint", parity / "make_checkpoint.py")
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)

    def load(name: str) -> Recorded:
        facts = json.loads((parity / f"{name}.json").read_text())
        height, width = facts["height"], facts["width"]
        clip = torch.from_numpy(stand_in.clip(facts["seed"], facts["frames"], height, width))
        mask = None
        if facts["padded_rows"] or facts["padded_columns"]:
            mask = torch.ones(1, height, width, dtype=torch.bool)
            mask[:, : height - facts["padded_rows"], : width - facts["padded_columns"]] = False
            clip = clip.masked_fill(mask, 0.0)
        weights = stand_in.state_dict(facts["seed"], "--with_box_refine" in facts["flags"])
        return Recorded(
            facts=facts,
            arrays=dict(np.load(parity / f"{name}.npz")),
            clip=clip[None],
            padding_mask=mask,
            published={key: torch.from_numpy(value) for key, value in weights.items()},
        )

    return load


@pytest.fixture(scope="session")
def published_model(tmp_path_factory):
    """Build the detector of a recorded case through the checkpoint reader."""

    def build(case: Recorded, dtype: torch.dtype) -> Detector:
        path = tmp_path_factory.mktemp("published") / "checkpoint.pth"
        torch.save({"model": case.published}, path)
        checkpoint = read_checkpoint(path)
        path.unlink()
        model = Detector(checkpoint.config)
        model.load_state_dict(checkpoint.state)
        return model.to(dtype).eval()

    return build
