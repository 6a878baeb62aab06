"""Trainings told to TensorBoard, Weights & Biases and MLflow, without a network."""

import importlib.util
import json
from pathlib import Path

import pytest

import stnet
from stnet.training.callbacks import RunStart
from stnet.training.config import TrainConfig

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tell(callback: stnet.Callback, folder: Path) -> None:
    """What a training of two steps tells."""
    callback.start(RunStart(folder=folder, config=TrainConfig.preset("tiny"), step=0, steps=2))
    for step in (1, 2):
        callback.step({"step": step, "epoch": 1, "loss": 3.0 - step, "learning_rate": 1e-4})
    callback.epoch({"epoch": 1, "step": 2, "loss": 1.5, "ap": 0.25, "memory_gb": None})
    callback.end(None)


def test_tensorboard(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell(stnet.TensorBoard(), tmp_path)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("ap")] == [(2, 0.25)]
    assert [one.value for one in events.Scalars("learning_rate")] == pytest.approx([1e-4, 1e-4])


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(example("wandb_callback").WandB(project="stnet", mode="offline"), tmp_path)
    wandb.teardown()  # the file is written by a process of its own, which ends now
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    assert b"epoch/ap" in record.read_bytes() and b"step/loss" in record.read_bytes()


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path / 'runs'}")
    tell(example("mlflow_callback").MLflow(), tmp_path)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.metrics["epoch/ap"] == 0.25 and run.data.metrics["step/loss"] == 1.0
    assert run.info.status == "FINISHED" and json.loads(run.data.params["epochs"]) >= 1
