"""The one-clip check learns."""

import pytest

from stnet.errors import ConfigError
from stnet.training.config import TrainConfig
from stnet.training.overfit import main, overfit


@pytest.mark.timeout(600)
def test_tiny_overfits_one_phantom_clip():
    result = overfit(TrainConfig.preset("tiny"), steps=300)
    assert result.steps <= 300 and result.metrics.overall.ap50 >= 0.95


def test_wrong_use_is_explained(capsys):
    assert main(["--preset", "tiny", "--steps", "0"]) == 2
    assert "--steps 0" in capsys.readouterr().err


def test_a_rate_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="learning_rate"):
        TrainConfig.preset("tiny").replace(learning_rate=2.0)
