"""Configurations: presets, JSON, refusals."""

import json

import pytest

from stnet.errors import ConfigError
from stnet.model.config import PRESETS, ModelConfig
from stnet.model.detector import Detector


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = ModelConfig.preset(name)
    assert ModelConfig.from_json(config.to_json()) == config


def test_paper_preset_is_the_published_model():
    config = ModelConfig.preset("paper")
    assert (config.queries, config.frames, config.classes, config.levels) == (300, 6, 3, 4)
    assert sum(p.numel() for p in Detector(config).parameters()) > 40_000_000


def test_missing_keys_take_their_defaults():
    assert ModelConfig.from_json('{"heads": 4}') == ModelConfig(heads=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"hiden_dim": 3}', "unknown keys 'hiden_dim'"),
        ('{"heads": "8"}', "heads is '8'"),
        ('{"heads": 8.5}', "heads is 8.5"),
        ('{"heads": true}', "heads is True"),
        ('{"box_refine": 1}', "box_refine is 1"),
        ('{"heads": 0}', "heads is 0"),
        ('{"heads": 7}', "of 7 heads"),
        ('{"dropout": 1}', "dropout is 1.0"),
        ('{"backbone": "vgg"}', "backbone 'vgg'"),
        ('{"backbone_norm": "layer"}', "backbone_norm 'layer'"),
        ('{"class_names": ["a", "a"]}', "class_names"),
        ('{"class_names": "ab"}', "class_names is 'ab'"),
        ('{"frames": 65}', "frames is 65"),
    ],
)
def test_unusable_configurations_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(text)


def test_own_classes_change_the_number_of_logits():
    assert ModelConfig.from_json(json.dumps({"class_names": ["a", "b", "c"]})).classes == 4


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="paper, lite0, tiny"):
        ModelConfig.preset("huge")
