"""Checkpoints survive what can happen while they are written."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from stnet.errors import CheckpointError
from stnet.training.state import (
    TrainingState,
    _fingerprint,
    checkpoints,
    load_newest,
    load_state,
    save_state,
)


def state(step: int, size: int = 16) -> TrainingState:
    weights = {"a.weight": torch.full((size,), float(step)), "a.count": torch.tensor(step)}
    rest = {"rng": torch.get_rng_state(), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "epoch": 2}
    return TrainingState(step=step, model=weights, average={"a.weight": torch.ones(size)}, rest=rest)


def test_round_trip(tmp_path):
    save_state(tmp_path, state(7), {})
    loaded = load_newest(tmp_path)
    assert loaded.step == 7 and loaded.rest["epoch"] == 2
    assert torch.equal(loaded.model["a.weight"], torch.full((16,), 7.0))
    assert torch.equal(loaded.rest["rng"], torch.get_rng_state())


def test_the_previous_checkpoint_is_kept(tmp_path):
    for step in (1, 2, 30):
        save_state(tmp_path, state(step), {})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000030", "step-000000002"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save_state(tmp_path, state(3), {})
    save_state(tmp_path, state(3), {})
    assert load_newest(tmp_path).step == 3 and len(checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_previous(tmp_path, name, damage):
    save_state(tmp_path, state(1), {})
    victim = save_state(tmp_path, state(2), {}) / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    {
        "cut": lambda: victim.write_bytes(content[: len(content) // 2]),
        "flip": lambda: victim.write_bytes(content),
        "gone": victim.unlink,
    }[damage]()
    reports = []
    assert load_newest(tmp_path, reports.append).step == 1
    assert len(reports) == 1 and "step-000000002" in reports[0]


def test_nothing_readable_is_an_error_with_advice(tmp_path):
    with pytest.raises(CheckpointError, match="without --resume"):
        load_newest(tmp_path)


def test_a_manifest_cannot_point_outside(tmp_path):
    path = save_state(tmp_path, state(1), {})
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"state.pt"', '"../state.pt"'))
    with pytest.raises(CheckpointError):
        load_state(path)


def test_non_finite_weights_are_never_saved(tmp_path):
    save_state(tmp_path, state(1), {})
    broken = state(2)
    broken.model["a.weight"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"a\.weight is not finite"):
        save_state(tmp_path, broken, {})
    assert load_newest(tmp_path).step == 1


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = save_state(tmp_path, state(1), {})

    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    torch.save({"step": 1, "x": Canary()}, path / "state.pt")
    manifest = path / "manifest.json"

    entries = json.loads(manifest.read_text())
    entries["state.pt"] = _fingerprint(path / "state.pt")
    manifest.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError):
        load_state(path)
    assert not (tmp_path / "canary").exists()


WRITER = """
import sys, torch
from pathlib import Path
from stnet.training.state import TrainingState, save_state
folder, first = Path(sys.argv[1]), int(sys.argv[2])
for step in range(first, first + 100000):
    weights = {f"w{i}": torch.full((200_000,), float(step)) for i in range(4)}
    save_state(folder, TrainingState(step=step, model=weights, average=None, rest={"epoch": step}), {})
    print(step, flush=True)
"""


def kill_while_saving(folder, times: int) -> None:
    generator = random.Random(0)
    first = 1
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(first)], stdout=subprocess.PIPE, text=True
        )
        acknowledged = int(process.stdout.readline())
        time.sleep(generator.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        loaded = load_newest(folder)
        assert loaded.step >= acknowledged, "a checkpoint reported as saved was lost"
        assert all(torch.equal(value, torch.full((200_000,), float(loaded.step))) for value in loaded.model.values())
        first = loaded.step + 1


def test_killed_while_saving(tmp_path):
    kill_while_saving(tmp_path, 3)


@pytest.mark.slow
def test_killed_while_saving_at_twenty_moments(tmp_path):
    kill_while_saving(tmp_path, 20)
