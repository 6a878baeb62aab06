"""The recipe: presets, limits and JSON."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stnet.errors import ConfigError
from stnet.training.config import PRESETS, TrainConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = TrainConfig.preset(name)
    assert TrainConfig.from_json(config.to_json()) == config


@given(
    st.integers(1, 200),
    st.floats(1e-7, 1, exclude_min=True),
    st.booleans(),
    st.sets(st.sampled_from(["backbone", "encoder", "decoder", "heads"])),
)
def test_any_recipe_survives_json(epochs, rate, auxiliary, frozen):
    config = TrainConfig(epochs=epochs, learning_rate=rate, auxiliary_losses=auxiliary, freeze=tuple(sorted(frozen)))
    assert TrainConfig.from_json(config.to_json()) == config


def test_paper_is_the_published_recipe():
    paper = TrainConfig.preset("paper")
    assert (paper.epochs, paper.epochs * paper.drop_at, paper.targets, paper.clip_norm) == (50, 40, 3, 0.1)
    assert (paper.learning_rate, paper.backbone_learning_rate, paper.weight_decay) == (5e-5, 2e-5, 1e-4)
    assert paper.offsets_factor == 0.1 and paper.schedule == "step" and paper.class_loss == "focal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"epoch": 3}', "unknown keys 'epoch'"),
        ('{"epochs": "3"}', "epochs is '3'; expected int"),
        ('{"epochs": true}', "epochs is True"),
        ('{"auxiliary_losses": 1}', "auxiliary_losses is 1"),
        ('{"model": {"depth": 3}}', "depth"),
    ],
)
def test_wrong_json_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 6, "accumulate": 4}, "divisor of the batch size 6"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"targets": 7}, "6 frames"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"freeze": ("neck",)}, "freeze is 'neck'"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**changes)


def test_every_setting_has_a_help_text():
    for known in dataclasses.fields(TrainConfig):
        assert known.name == "model" or known.metadata["help"]


def test_absent_settings_keep_their_defaults():
    assert TrainConfig.from_json(json.dumps({"epochs": 3})) == TrainConfig(epochs=3)
