"""Training and evaluation from Python: callbacks, early stopping, what is left where a start fails."""

import csv

import pytest

import stnet
from stnet.errors import ConfigError, DataError
from stnet.training.callbacks import Callback
from stnet.training.loop import Trainer


class Log(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told, self.rows, self.epochs = [], [], []

    def start(self, run):
        self.told.append(("start", run.step, run.steps, run.folder.name))

    def step(self, row):
        self.told.append("step")
        self.rows.append(dict(row))

    def epoch(self, row):
        self.told.append("epoch")
        self.epochs.append(dict(row))

    def end(self, error):
        self.told.append(("end", error))


def test_callbacks_hear_what_the_tables_hold_and_patience_ends_the_run(small_dataset, small_recipe, tmp_path, capsys):
    log = Log()
    rates = {"learning_rate": 1e-9, "backbone_learning_rate": 1e-9}
    config = small_recipe(epochs=4, clips_per_epoch=4, patience=1, best_metric="ap", **rates)
    run = stnet.train(config, data=small_dataset, output=tmp_path / "run", device="cpu", workers=0, callbacks=[log])
    assert "stopped early: 1 evaluation brought no better ap (--patience)" in capsys.readouterr().out
    per_epoch = (len(log.told) - 2) // 2 - 1
    assert log.told == [("start", 0, 4 * per_epoch, "run"), *[*["step"] * per_epoch, "epoch"] * 2, ("end", None)]
    with open(tmp_path / "run" / "steps.csv", newline="") as table:
        assert [float(row["loss"]) for row in csv.DictReader(table)] == [row["loss"] for row in log.rows]
    assert [row["ap"] for row in log.epochs] == [row["ap"] for row in run.epochs]
    assert (tmp_path / "run" / "videos.csv").exists()  # of the full evaluation at the end
    assert repr(run) == f"TrainedRun(2 epochs in {tmp_path / 'run'}, weights best.safetensors)"

    report = stnet.evaluate(run.weights, data=small_dataset, device="cpu", quiet=True)
    assert report.metrics.overall.ap == pytest.approx(run.epochs[0]["ap"], abs=1e-6)
    with pytest.raises(ConfigError, match="another recipe"):
        stnet.train(small_recipe(epochs=9), data=small_dataset, output=tmp_path / "run", resume=True, quiet=True)


def test_a_start_that_fails_leaves_the_folder_free(small_dataset, small_recipe, tmp_path, monkeypatch):
    def fail(*_):
        raise DataError("frame 3 cannot be read")

    def start(**changes):
        place = {"data": small_dataset, "output": tmp_path / "run", "device": "cpu", "workers": 0, "quiet": True}
        stnet.train(small_recipe(epochs=1, **changes), **place)

    with pytest.raises(stnet.errors.StnetError, match=r"absent\.safetensors"):
        start(start_from="absent.safetensors")
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train_step", fail)
        with pytest.raises(DataError):
            start()
    assert not (tmp_path / "run").exists()


def test_an_error_reaches_the_callbacks(small_dataset, small_recipe, tmp_path):
    class Failing(Log):
        def step(self, row):
            raise DataError("no more")

    log = Failing()
    with pytest.raises(DataError):
        stnet.train(
            small_recipe(), data=[small_dataset], output=tmp_path / "run", device="cpu", workers=0, callbacks=[log]
        )
    assert isinstance(log.told[-1][1], DataError) and (tmp_path / "run" / "steps.csv").exists()
