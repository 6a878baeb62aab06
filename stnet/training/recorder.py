"""What the first process of a run writes down: rows of steps and epochs, curves, pictures, weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stnet.console import Reporter
from stnet.data.clips.dataset import ClipBatch
from stnet.data.index import DatasetIndex
from stnet.evaluation.report import build_report, report_files
from stnet.files import replacing
from stnet.model.checkpoint import METRICS_KEY, save
from stnet.model.detector import Detector
from stnet.training.callbacks import Callback
from stnet.training.config import TrainConfig
from stnet.training.criterion import TERMS
from stnet.training.curves import draw_curves
from stnet.training.pictures import draw_batch, draw_predictions
from stnet.training.run_folder import RunFolder
from stnet.training.step import StepFigures
from stnet.training.validation import Validation, flat, show, show_report

PICTURED_BATCHES = 3
PICTURED_VIDEOS = 4
GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class EpochWork:
    """What an epoch took.

    Attributes:
        epoch: its number, from 1.
        step: optimizer steps of the whole run after it.
        seconds: of this process in this epoch.
        waited: seconds of these spent waiting for clips.
        trained: steps made in this time; fewer than the epoch has where it was resumed.
    """

    epoch: int
    step: int
    seconds: float
    waited: float
    trained: int


class EpochRecorder:
    """Fills a run folder.

    Args:
        config: the recipe.
        folder: created or reopened already.
        device: the one that computes.
        train, val: what is trained and evaluated on.
        callbacks: are told of steps and epochs.
        reporter: where results are shown.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        device: torch.device,
        *,
        train: DatasetIndex,
        val: DatasetIndex,
        callbacks: Sequence[Callback],
        reporter: Reporter,
    ):
        self.config, self.folder, self.device, self.reporter = config, folder, device, reporter
        self.train_index, self.val_index = train, val
        self.callbacks = callbacks

    def picture_batch(self, step: int, batch: ClipBatch) -> None:
        """Draw the first batches as the model sees them."""
        if step < PICTURED_BATCHES:
            draw_batch(batch, self.train_index.class_names, self.folder.path / f"train_batch_{step}.png")

    def record_step(self, step: int, epoch: int, figures: StepFigures, learning_rate: float) -> None:
        """Add the row of an optimizer step."""
        row = {
            "step": step,
            "epoch": epoch,
            "loss": figures.loss,
            **figures.terms,
            "grad_norm": figures.grad_norm,
            "learning_rate": learning_rate,
        }
        self.folder.append(self.folder.steps_file, row)
        for callback in self.callbacks:
            callback.step(row)

    def has_epoch(self, epoch: int) -> bool:
        """Return whether an epoch was recorded already, by an earlier stretch of the run."""
        return any(row["epoch"] == epoch for row in self.folder.rows(self.folder.metrics_file))

    def end_epoch(self, work: EpochWork, validation: Validation | None, model: Detector, *, last: bool) -> None:
        """Write the epoch's row, curves, pictures and weights, and show them.

        Args:
            work: what the epoch took.
            validation: its evaluation, if one was due.
            model: whose weights are kept.
            last: the run ends here.
        """
        steps = self.folder.rows(self.folder.steps_file)
        row = self._row(work, [step for step in steps if step["epoch"] == work.epoch], validation)
        if validation is not None:
            self._keep_validation(work, validation, last or self.out_of_patience(row))
        best = self._is_best(row)
        metadata = {METRICS_KEY: json.dumps(row), "training": self.config.without_folders().to_json()}
        save(model, self.folder.last_file, metadata)
        if best:
            save(model, self.folder.best_file, metadata)
        # After the weights: a resumed run takes an epoch that has its row for done and would never save them.
        self.folder.append(self.folder.metrics_file, row)
        rows = self.folder.rows(self.folder.metrics_file)
        _replace(self.folder.curves_file, lambda path: draw_curves(steps, rows, path))
        self._show(work, row, validation, best)
        for callback in self.callbacks:
            callback.epoch(row)

    def out_of_patience(self, newest: dict[str, Any] | None = None) -> bool:
        """Return whether as many evaluations as the recipe allows brought nothing better.

        Args:
            newest: the row of an epoch that is not written yet.
        """
        name = self.config.best_metric
        rows = [*self.folder.rows(self.folder.metrics_file), *([newest] if newest else [])]
        values = [row[name] for row in rows if row.get(name) is not None]
        return (
            bool(self.config.patience and values)
            and len(values) - 1 - values.index(max(values)) >= self.config.patience
        )

    def _row(self, work: EpochWork, steps: list[dict[str, float]], validation: Validation | None) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": work.epoch, "step": work.step}
        for name in ("loss", *TERMS, "grad_norm"):
            row[name] = sum(step[name] for step in steps) / len(steps)
        row |= {
            "seconds": round(work.seconds, 1),
            "clips_per_second": round(work.trained * self.config.batch_size / work.seconds, 3),
            "data_wait": round(work.waited / work.seconds, 4),
            "memory_gb": peak_memory(self.device),
        }
        return row | flat(validation.metrics if validation else None, self.train_index.class_names)

    def _keep_validation(self, work: EpochWork, result: Validation, last: bool) -> None:
        names = self.val_index.class_names
        facts = {"epoch": work.epoch, "step": work.step}
        if last:
            report = build_report(
                result.frames,
                names,
                score_threshold=self.config.score_threshold,
                video_threshold=self.config.video_threshold,
                metrics=result.metrics,
            )
            for name, write in report_files(report, facts).items():
                _replace(self.folder.path / name, write)
            show_report(report, self.reporter)
        else:
            self.folder.write_json(self.folder.evaluation_file.name, facts | result.metrics.to_dict())
        for number, video in enumerate(self.val_index.videos[:PICTURED_VIDEOS]):
            frames = [frame for frame in result.frames if frame.video == video.name]
            if frames:
                path = self.folder.path / f"val_clip_{number}.png"
                draw_predictions(video, frames, names, self.config.score_threshold, path)

    def _is_best(self, row: dict[str, Any]) -> bool:
        name = self.config.best_metric
        if row[name] is None:
            return False
        before = [old[name] for old in self.folder.rows(self.folder.metrics_file) if name in old]
        return not before or row[name] > max(before)

    def _show(self, work: EpochWork, row: dict[str, Any], validation: Validation | None, best: bool) -> None:
        self.reporter.stop()
        text = f"epoch {work.epoch}/{self.config.epochs}: loss {row['loss']:.3f}"
        if work.trained:
            text += f", {row['clips_per_second']:.2f} clips/s, {row['data_wait']:.0%} of the time waiting for data"
        self.reporter.message(text)
        if validation is not None:
            title = f"validation after epoch {work.epoch}{' (best so far)' if best else ''}"
            show(validation.metrics, title, self.reporter)


def peak_memory(device: torch.device) -> float | None:
    """Return the most memory in gigabytes that tensors have taken on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / GIGABYTE, 2)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    with replacing(path) as temporary:
        write(temporary)
