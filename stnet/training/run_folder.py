"""The folder a run leaves behind.

config.json        the recipe, enough to repeat the run together with the data
environment.json   versions, device, commit, command, data
steps.csv          loss of every optimizer step
metrics.csv        one row per epoch: losses, speed, evaluation
curves.png         both, drawn after every epoch
train_batch_N.png  the first batches as the model saw them, boxes drawn
val_clip_N.png     predictions in the first validation videos, refreshed after every evaluation
best.safetensors   best weights so far (averaged ones with EMA); last.safetensors: after the last epoch
evaluation.json    the last evaluation in full; after the last epoch with videos.csv, roc.png, precision_recall.png,
                   froc.png and scores.png (see stnet.evaluation.report)
checkpoints/       what --resume continues from
"""

import csv
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stnet import files
from stnet.environment import describe
from stnet.errors import ConfigError
from stnet.evaluation.report import NUMBERS_FILE
from stnet.training.config import TrainConfig


class RunFolder:
    """Paths and tables of one run.

    Args:
        path: the folder; `create` or `reopen` it before anything else.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.steps_file = path / "steps.csv"
        self.metrics_file = path / "metrics.csv"
        self.curves_file = path / "curves.png"
        self.evaluation_file = path / NUMBERS_FILE
        self.checkpoints = path / "checkpoints"
        self.best_file = path / "best.safetensors"
        self.last_file = path / "last.safetensors"

    def create(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Start a run in a new or empty folder.

        Args:
            config: the recipe.
            facts: written beside what the run is made on; `device` is the one that computes.

        Raises:
            ConfigError: where the folder holds anything.
        """
        self.require_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files.write_text(self.config_file, config.to_json() + "\n")
        except OSError as error:
            raise ConfigError(f"--output {self.path}: cannot be written ({error})") from error
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        self.write_json("environment.json", describe(facts.get("device", "cpu")) | {"command": command} | dict(facts))

    def require_new(self) -> None:
        """Require that a run can be started here.

        Raises:
            ConfigError: the folder holds anything.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"--output {self.path}: exists and is not empty; choose another folder, or go on with --resume"
            )

    def discard(self) -> None:
        """Remove what a run that made no step has written, so that the corrected command finds the folder free."""
        for pattern in (self.config_file.name, "environment.json", "train_batch_*.png", "tensorboard/*"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        for path in (self.path / "tensorboard", self.path):
            with suppress(OSError):
                path.rmdir()

    def reopen(self) -> TrainConfig:
        """Return the recipe of a run that is to go on.

        Raises:
            ConfigError: where there is none.
        """
        if not self.config_file.is_file():
            raise ConfigError(f"--resume: {self.path} holds no run (no config.json); start one without --resume")
        return TrainConfig.from_json(self.config_file.read_text(encoding="utf-8"), str(self.config_file))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder."""
        files.write_json(self.path / name, content)

    def append(self, file: Path, row: Mapping[str, Any]) -> None:
        """Add a row to a CSV file; the first row decides the columns. None becomes an empty cell."""
        columns = _columns(file) or list(row)
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns, restval="", extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({name: "" if value is None else value for name, value in row.items()})

    def rows(self, file: Path) -> list[dict[str, float]]:
        """Return the numbers of a CSV file; empty cells are left out."""
        if not file.exists():
            return []
        with file.open(newline="", encoding="utf-8") as handle:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(handle)]

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps after `step`, which a resumed run makes again, and one that was not written whole."""
        for file in (self.steps_file, self.metrics_file):
            if not file.exists():
                continue
            with file.open(newline="", encoding="utf-8") as handle:
                # A full disk or a killed process leaves a line without its end, which may read as another number.
                reader = csv.DictReader(line for line in handle if line.endswith("\n"))
                columns, kept = reader.fieldnames, [row for row in reader if int(row["step"]) <= step]
            if columns is None:
                file.unlink()
                continue
            with files.replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
                writer = csv.DictWriter(handle, columns)
                writer.writeheader()
                writer.writerows(kept)


def _columns(file: Path) -> list[str]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])
