"""Processes that the command starts by itself on a CPU."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stnet.errors import ConfigError
from stnet.training.processes import choose_processes

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--preset", "tiny", "--clips-per-epoch", "8", "--batch-size", "4", "--epochs", "1", "--augmentation", "none"),
    *("--workers", "0", "--device", "cpu", "--no-check", "--model", "backbone_width=8", "hidden_dim=64", "heads=2"),
    *("feedforward_dim=32", "encoder_layers=1", "decoder_layers=2", "queries=5", "image_size=48"),
]


@pytest.fixture
def cores(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return pretend


@pytest.mark.parametrize(
    ("count", "clips", "expected"), [(2, 4, 2), (4, 6, 3), (8, 4, 4), (2, 1, 1), (16, 7, 7), (3, None, 3)]
)
def test_one_process_for_each_core_that_divides_the_batch(cores, count, clips, expected):
    cores(count)
    assert choose_processes(None, "cpu", clips) == expected


def test_processes_started_by_torchrun_start_no_more(cores, monkeypatch):
    cores(8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_processes(None, "cpu", 8) == 1
    with pytest.raises(ConfigError, match="one of several already"):
        choose_processes(2, "cpu", 8)


def test_processes_are_no_way_to_share_a_gpu(cores):
    cores(8)
    assert choose_processes(None, "cuda", 8) == 1
    with pytest.raises(ConfigError, match="torchrun"):
        choose_processes(2, "cuda:0", 8)


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "WORLD_SIZE"},
    )


def test_the_command_trains_in_two_processes_and_stops_and_goes_on(small_dataset, tmp_path):
    output = tmp_path / "run"
    arguments = ["--data", str(small_dataset), "--output", str(output), "--processes", "2", *SMALL]
    training = start(*arguments, "--clips-per-epoch", "40000")
    deadline = time.monotonic() + 120
    while not (output / "steps.csv").exists() and training.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert training.poll() is None, training.communicate()
    training.terminate()
    _, errors = training.communicate(timeout=60)
    assert training.returncode == 143, errors
    assert len(list((output / "checkpoints").glob("step-*"))) == 1
    assert '"processes": 2' in (output / "environment.json").read_text()


def test_a_mistake_ends_all_processes_with_its_message(small_dataset, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    training = start("--data", str(small_dataset), "--output", str(tmp_path / "full"), "--processes", "2", *SMALL)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 2
    assert "exists and is not empty" in errors and "Traceback" not in errors
