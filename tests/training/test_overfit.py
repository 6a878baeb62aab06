"""The one-clip check learns."""

from unittest.mock import Mock

import pytest

from stnet.errors import ConfigError
from stnet.training import overfit as command
from stnet.training.config import TrainConfig
from stnet.training.overfit import main, overfit


@pytest.mark.timeout(600)
def test_tiny_overfits_one_phantom_clip():
    result = overfit(TrainConfig.preset("tiny"), steps=300)
    assert result.steps <= 300 and result.metrics.overall.ap50 >= 0.95


def test_wrong_use_is_explained(capsys):
    assert main(["--preset", "tiny", "--steps", "0"]) == 2
    assert "--steps 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [(KeyboardInterrupt, 130, "interrupted\n"), (MemoryError, 2, "error: out of memory; ")],
)
def test_it_ends_like_every_command(monkeypatch, capsys, failure, status, line):
    monkeypatch.setattr(command, "overfit", Mock(side_effect=failure))
    assert main(["--preset", "tiny"]) == status
    assert capsys.readouterr().err.startswith(line)


def test_a_rate_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="learning_rate"):
        TrainConfig.preset("tiny").replace(learning_rate=2.0)
