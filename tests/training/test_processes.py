"""Two processes against one on the same global batches."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

from stnet.training.distributed import World

ROOT = Path(__file__).resolve().parents[2]
RECIPE = [
    *("--preset", "tiny", "--clips-per-epoch", "40", "--batch-size", "4", "--epochs", "1", "--augmentation", "none"),
    *(
        "--workers",
        "0",
        "--device",
        "cpu",
        "--processes",
        "1",
        "--denoising",
        "2",
        "--model",
        "backbone_width=8",
        "hidden_dim=64",
    ),
    *("heads=2", "feedforward_dim=32", "encoder_layers=1", "decoder_layers=2", "queries=5", "image_size=48"),
]


def train(launcher: list[str], data: Path, output: Path, *options: str) -> None:
    command = [*launcher, str(ROOT / "train.py"), "--data", str(data), "--output", str(output), *options, *RECIPE]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(folder: Path) -> list[list[float]]:
    with (folder / "steps.csv").open() as file:
        return [[float(row[name]) for name in ("loss", "classification", "l1", "giou")] for row in csv.DictReader(file)]


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def runs(small_dataset, tmp_path_factory) -> Path:
    """The folders `one` and `two`, trained by as many processes."""
    folder = tmp_path_factory.mktemp("runs")
    train([sys.executable], small_dataset, folder / "one", "--processes", "1")
    train(torchrun(), small_dataset, folder / "two")
    return folder


def test_two_processes_train_like_one(runs):
    one, two = losses(runs / "one"), losses(runs / "two")
    assert len(one) == len(two) == 10
    for step, (alone, together) in enumerate(zip(one, two, strict=True)):
        assert together == pytest.approx(alone, abs=1e-5, rel=1e-5), f"step {step}"


def _shared_statistics(rank: int, folder: Path, found) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(rank + 5)
    World(rank=rank, size=2).share_statistics(nn.Sequential(norm))
    found.put(norm.running_mean.tolist())
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes that have imported everything")
def test_all_processes_evaluate_with_the_statistics_that_are_saved(tmp_path):
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=_shared_statistics, args=(rank, tmp_path, found)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == [[5, 5], [5, 5]]
    for process in processes:
        process.join()


@pytest.mark.slow
def test_two_processes_evaluate_like_one(runs, small_dataset, tmp_path):
    evaluate = ["--evaluate", str(runs / "one" / "last.safetensors"), "--data", str(small_dataset)]
    for name, launcher in (("alone", [sys.executable]), ("together", torchrun())):
        command = [*launcher, str(ROOT / "train.py"), *evaluate, "--device", "cpu", "--output", str(tmp_path / name)]
        # torchrun gives each process one thread; sums of another number of threads round differently.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, timeout=240, cwd=ROOT, env=environment)
    alone, together = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("alone", "together"))
    assert alone == together
