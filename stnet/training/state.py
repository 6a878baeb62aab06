"""Checkpoints of a run in progress: written atomically, checked when read, the previous one kept.

A checkpoint is a folder `step-000001234` with `model.safetensors`, `average.safetensors` (with EMA), `state.pt`
(optimizer, scaler, position, random states; plain types only) and `manifest.json` with the size and SHA-256 of
each. It is written under a temporary name, synchronized to disk and renamed: a folder named `step-*` is complete.
The average is a model as it is: it can be evaluated, used, and started from while the training goes on.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stnet.errors import CheckpointError
from stnet.files import synchronize

KEPT = 2
PREFIX = "step-"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps done.
        model, average: weights by name; `average` is None without EMA.
        rest: plain types and tensors: optimizer, scaler, position in the data, random states, running figures.
    """

    step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    rest: dict[str, Any]


def save_state(folder: Path, state: TrainingState, metadata: Mapping[str, str]) -> Path:
    """Write a checkpoint into `folder` and drop all but the newest two; return its path.

    Args:
        folder: of the run's checkpoints.
        state: what to write.
        metadata: of the averaged weights, which makes a model of them (`stnet.model.checkpoint.entries`).

    Raises:
        CheckpointError: for weights that are not finite, or where the disk refuses; older checkpoints stay.
    """
    _refuse_non_finite(state)
    final = folder / f"{PREFIX}{state.step:09d}"
    temporary = folder / f"tmp-{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        _write(temporary / "model.safetensors", lambda path: save_file(_portable(state.model), path))
        if state.average is not None:
            average = _portable(state.average)
            _write(temporary / "average.safetensors", lambda path: save_file(average, path, dict(metadata)))
        _write(temporary / "state.pt", lambda path: torch.save({"step": state.step, **state.rest}, path))
        manifest = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        _write(temporary / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=2), encoding="utf-8"))
        synchronize(temporary)
        if final.exists():  # the same step saved again, for example by a resumed run that was stopped at once
            shutil.rmtree(final)
        os.replace(temporary, final)
        synchronize(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written ({error}); free some space, then go on with --resume"
        ) from error
    for old in checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first; temporary ones are not among them."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.name.startswith(PREFIX) and path.is_dir()]
    return sorted((path for path in named if path.name.removeprefix(PREFIX).isdigit()), reverse=True)


def load_newest(folder: Path, report: Callable[[str], None] = print) -> TrainingState:
    """Read the newest checkpoint that is intact, reporting those that are not.

    Raises:
        CheckpointError: where none can be read.
    """
    for path in checkpoints(folder):
        try:
            return load_state(path)
        except CheckpointError as error:
            report(f"skipped a damaged checkpoint: {error}")
    raise CheckpointError(f"{folder}: no readable checkpoint; start again without --resume")


def load_state(path: Path) -> TrainingState:
    """Read one checkpoint folder, on the CPU.

    Raises:
        CheckpointError: for missing, changed or unreadable files.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name in ("model.safetensors", "state.pt"):
            if name not in manifest:
                raise CheckpointError(f"{path / MANIFEST}: {name} is not listed")
        for name, expected in manifest.items():
            if name != Path(name).name or _fingerprint(path / name) != expected:
                raise CheckpointError(f"{path / name}: size or checksum differs from {MANIFEST}")
        average = path / "average.safetensors"
        rest = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        return TrainingState(
            step=rest.pop("step"),
            model=load_file(path / "model.safetensors"),
            average=load_file(average) if average.name in manifest else None,
            rest=rest,
        )
    except pickle.UnpicklingError as error:  # its text advises to load the file without care
        raise CheckpointError(f"{path / 'state.pt'}: refused, holds objects other than a training's state") from error
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    write(path)
    synchronize(path)


def _portable(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU; tensors under several names are stored under each."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _refuse_non_finite(state: TrainingState) -> None:
    for weights in (state.model, state.average or {}):
        for name, value in weights.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise CheckpointError(f"{name} is not finite; nothing was saved")


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f"tmp-{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
