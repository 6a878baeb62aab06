"""The training run: epochs of steps, evaluations, checkpoints, and leaving cleanly when asked to."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from stnet.data.clips.dataset import ClipBatch, collate_clips
from stnet.data.clips.planning import LOCAL_FRAMES
from stnet.data.index import DatasetIndex
from stnet.evaluation.predict import PredictionOptions
from stnet.evaluation.report import build_report, report_files
from stnet.model.checkpoint import save
from stnet.model.detector import Detector
from stnet.training.batches import ClipOrder
from stnet.training.clips import frame_aspect, training_clips
from stnet.training.config import TrainConfig
from stnet.training.curves import draw_curves
from stnet.training.denoising import TrainedModel
from stnet.training.distributed import World, random_states, restore_random_states
from stnet.training.ema import WeightAverage
from stnet.training.interrupt import Interrupted, InterruptWatch, leave_the_group
from stnet.training.matcher import NonFiniteError
from stnet.training.optimizer import build_optimizer, rate_factor
from stnet.training.pictures import draw_batch, draw_predictions
from stnet.training.progress import Reporter
from stnet.training.run_folder import RunFolder
from stnet.training.starting_points import freeze, load_backbone_weights, start_from
from stnet.training.state import TrainingState, load_newest, replace_file, save_state
from stnet.training.step import AUTOCAST, StepFigures, Stepper
from stnet.training.validation import Validation, flat, show, show_report, validate

PICTURED_BATCHES = 3
PICTURED_VIDEOS = 4
GIGABYTE = 1e9


def default_workers() -> int:
    """Eight loader processes, or this training process's share of the processor where that is less."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (os.cpu_count() or 1) // processes))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What may differ between two runs of the same recipe without changing their result.

    Attributes:
        workers: processes that load clips (see `default_workers`); 0 loads in this process.
        save_minutes: minutes between checkpoints within an epoch.
        tensorboard: also write TensorBoard events.
    """

    workers: int = field(default_factory=default_workers)
    save_minutes: float = 30.0
    tensorboard: bool = False


class Trainer:
    """One training run in one run folder.

    Args:
        config: the recipe.
        train, val: what to train and evaluate on; their classes are those of the model.
        folder: created or reopened already.
        world: this process among others.
        options: what does not change the result.
        reporter: where progress goes.

    Raises:
        ConfigError, DataError, CheckpointError: for settings, data or files that cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: DatasetIndex,
        val: DatasetIndex,
        folder: RunFolder,
        world: World,
        options: RunOptions,
        reporter: Reporter,
    ):
        self.config, self.train_index, self.val_index = config, train, val
        self.folder, self.world, self.options, self.reporter = folder, world, options, reporter
        self.dataset = training_clips(train, config)
        self.order = ClipOrder(
            len(self.dataset),
            clips_per_epoch=config.clips_per_epoch,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            rank=world.rank,
            world=world.size,
            aspects=[frame_aspect(self.dataset, item) for item in range(len(self.dataset))],
        )
        torch.manual_seed(config.seed)
        self.detector = self._starting_model()
        self.average = WeightAverage(self.detector, config.ema_decay) if config.ema_decay else None
        self.model = TrainedModel(self.detector, denoising=config.denoising > 0).to(world.device).train()
        optimizer = build_optimizer(self.model, config)
        # Heads of earlier layers without their losses, and denoising queries of lesion-free batches, go unused.
        every_parameter_used = not config.denoising and (config.auxiliary_losses or not config.model.box_refine)
        self.stepper = Stepper(world.wrap(self.model, every_parameter_used), optimizer, config, world)
        torch.manual_seed(config.seed + 1 + world.rank)  # dropout differs between processes
        self.loader = self._loader()
        self.watch = InterruptWatch()
        self.step = self.epoch = self.step_in_epoch = 0
        self.started = self.begun = self.saved_at = time.monotonic()
        self.seconds_before = 0.0
        self.saved_step = -1
        self.waited, self.trained = 0.0, 0  # since `begun`
        self.events = _events(folder) if options.tensorboard and world.is_first else None

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.order.steps

    def resume(self) -> None:
        """Go on from the newest readable checkpoint of the run folder.

        Raises:
            CheckpointError: where there is none, or it does not belong to this recipe.
        """
        state = load_newest(self.folder.checkpoints, self.reporter.message)
        self.model.load_state_dict(state.model)
        if self.average is not None and state.average is not None:
            self.average.model.load_state_dict(state.average)
        self.stepper.optimizer.load_state_dict(state.rest["optimizer"])
        self.stepper.scaler.load_state_dict(state.rest["scaler"])
        self.step, self.epoch = state.step, state.rest["epoch"]
        self.step_in_epoch = state.rest["step_in_epoch"]
        self.seconds_before = state.rest["seconds"]
        self.saved_step = state.step
        states = state.rest["random"]
        if len(states) == self.world.size:
            restore_random_states(states[self.world.rank], self.world.device)
        else:
            self.reporter.message(
                f"this run was saved by {len(states)} processes and goes on with {self.world.size}: "
                "dropout draws other random numbers from here on"
            )
        if self.world.is_first:
            self.folder.forget_after(self.step)
        if self.world.gather(self._epoch_is_recorded())[0]:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
        if self.epoch == self.config.epochs or self._progress() >= 1:
            self.reporter.message(f"this run is finished ({self.step} steps)")
        else:
            self.reporter.message(f"going on after step {self.step} of {self.total_steps}")

    def run(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: after SIGTERM or Ctrl-C, everything saved.
            NonFiniteError: naming the clips, weights as before the step.
        """
        with self.watch:
            while self.epoch < self.config.epochs and self._progress() < 1:
                self._train_epoch()
                self._end_epoch()
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.reporter.stop()

    def _starting_model(self) -> Detector:
        config = self.config
        model = Detector(config.model)
        if config.backbone_weights:
            load_backbone_weights(model, config.backbone_weights)
        if config.start_from:
            self.reporter.message(
                f"starting from {config.start_from}: {start_from(model, config.start_from).summary()}"
            )
        trained = freeze(model, config.freeze)
        self.reporter.message(
            f"{trained / 1e6:.1f} M parameters train; {len(self.dataset)} clips in {len(self.train_index.videos)} "
            f"videos, {self.total_steps} steps of {config.batch_size} clips on {self.world.size} x {self.world.device}"
        )
        model.recompute = config.checkpoint_activations
        if self.world.device.type == "cpu":
            # Depthwise kernels of 5 x 5 get their gradients three times as fast (oneDNN, one thread).
            model.backbone.to(memory_format=torch.channels_last)
        return model.to(self.world.device)

    def _loader(self) -> DataLoader:
        workers = self.options.workers
        return DataLoader(
            self.dataset,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=collate_clips,
            worker_init_fn=leave_the_group,
            pin_memory=self.world.device.type == "cuda",
            persistent_workers=workers > 0,
            # Its own generator: workers must not draw from the one that dropout uses.
            generator=torch.Generator(),
        )

    def _train_epoch(self) -> None:
        """The steps of this epoch that are not done yet."""
        first = self.step_in_epoch
        if first == self.order.steps or (first and self._progress() >= 1):
            return
        self.dataset.set_epoch(self.epoch)
        self.order.start(self.epoch, first)
        self.reporter.start(f"epoch {self.epoch + 1}/{self.config.epochs}", self.order.steps, first)
        self.begun, self.waited, self.trained = time.monotonic(), 0.0, 0
        batches = iter(self.loader)
        for _ in range(first, self.order.steps):
            parts = self._next(batches)
            if self.world.is_first and self.step < PICTURED_BATCHES:
                draw_batch(parts[0], self.train_index.class_names, self.folder.path / f"train_batch_{self.step}.png")
            factor = rate_factor(self.step, self._progress(), self.config)
            figures = self._guarded_step(parts, factor)
            if self.average is not None:
                self.average.update(self.detector, self.step)
            self.step, self.step_in_epoch, self.trained = self.step + 1, self.step_in_epoch + 1, self.trained + 1
            self._record(figures, factor)
            stop, save_due = figures.requests
            if stop or save_due:
                self._save()
            if stop:
                self.reporter.stop()
                raise Interrupted(self.watch.exit_code)
            if self._progress() >= 1:
                break

    def _progress(self) -> float:
        """Share of the training that is done, by steps or by time, the same on all processes."""
        by_steps = self.step / self.total_steps
        if not self.config.minutes:
            return by_steps
        return max(by_steps, self.world.gather(self._seconds())[0] / (60 * self.config.minutes))

    def _seconds(self) -> float:
        """Time this run has taken, without the time between being stopped and resumed."""
        return self.seconds_before + time.monotonic() - self.started

    def _next(self, batches: Iterator[ClipBatch]) -> list[ClipBatch]:
        asked = time.monotonic()
        parts = list(islice(batches, self.config.accumulate))
        self.waited += time.monotonic() - asked
        return parts

    def _guarded_step(self, parts: list[ClipBatch], factor: float) -> StepFigures:
        save_due = time.monotonic() - self.saved_at > 60 * self.options.save_minutes
        requests = (self.watch.received is not None, save_due)
        try:
            return self.stepper.run(parts, self.step, factor, requests)
        except NonFiniteError as error:
            self.folder.write_json("nonfinite.json", {"step": self.step + 1, "error": str(error)})
            raise

    def _record(self, figures: StepFigures, factor: float) -> None:
        row = {
            "step": self.step,
            "epoch": self.epoch + 1,
            "loss": figures.loss,
            "classification": figures.classification,
            "l1": figures.l1,
            "giou": figures.giou,
            "grad_norm": figures.grad_norm,
            "learning_rate": self.config.learning_rate * factor,
        }
        if self.world.is_first:
            self.folder.append(self.folder.steps_file, row)
        self._emit(row)
        share = self.waited / max(time.monotonic() - self.begun, 1e-9)
        memory = _peak_memory(self.world.device)
        self.reporter.advance(
            1,
            f"loss {figures.loss:.3f} (class {figures.classification:.3f} l1 {figures.l1:.3f} giou {figures.giou:.3f}) "
            f"data {share:.0%}" + (f" memory {memory:.1f} GB" if memory else ""),
        )

    def _end_epoch(self) -> None:
        """Save, evaluate where it is due, and write the epoch's row, curves and weights."""
        seconds = time.monotonic() - self.begun
        if self.saved_step != self.step:
            self._save()
        last = self.epoch + 1 == self.config.epochs or self._progress() >= 1
        due = last or (self.epoch + 1) % self.config.evaluate_every == 0
        validation = self._validate(last) if due else None
        if not self.world.is_first:
            return
        steps = self.folder.rows(self.folder.steps_file)
        of_epoch = [row for row in steps if row["epoch"] == self.epoch + 1]
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step}
        for name in ("loss", "classification", "l1", "giou", "grad_norm"):
            row[name] = sum(step[name] for step in of_epoch) / len(of_epoch)
        row |= {
            "seconds": round(seconds, 1),
            "clips_per_second": round(self.trained * self.config.batch_size / seconds, 3),
            "data_wait": round(self.waited / seconds, 4),
            "memory_gb": _peak_memory(self.world.device),
        }
        row |= flat(validation.metrics if validation else None, self.train_index.class_names)
        best = self._is_best(row)
        self.folder.append(self.folder.metrics_file, row)
        self._emit({name: value for name, value in row.items() if value is not None})
        replace_file(
            self.folder.curves_file,
            lambda path: draw_curves(steps, self.folder.rows(self.folder.metrics_file), path),
        )
        self._write_weights(row, best)
        self._report_epoch(row, validation, best)

    def _epoch_is_recorded(self) -> bool:
        return any(row["epoch"] == self.epoch + 1 for row in self.folder.rows(self.folder.metrics_file))

    def _validate(self, last: bool) -> Validation | None:
        options = PredictionOptions(
            targets=min(self.config.targets, LOCAL_FRAMES), precision=AUTOCAST[self.config.precision]
        )

        def leave_if_asked() -> None:
            if self.watch.received is not None:
                raise Interrupted(self.watch.exit_code)

        model = self.average.model if self.average is not None else self.detector
        result = validate(
            model, self.val_index, options, self.config.score_threshold, self.world, self.reporter, leave_if_asked
        )
        if result is not None:
            self._keep_validation(result, last)
        return result

    def _keep_validation(self, result: Validation, last: bool) -> None:
        names = self.val_index.class_names
        facts = {"epoch": self.epoch + 1, "step": self.step}
        if last:
            report = build_report(
                result.frames,
                names,
                score_threshold=self.config.score_threshold,
                video_threshold=self.config.video_threshold,
                metrics=result.metrics,
            )
            for name, write in report_files(report, facts).items():
                replace_file(self.folder.path / name, write)
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

    def _write_weights(self, row: dict[str, Any], best: bool) -> None:
        model = self.average.model if self.average is not None else self.detector
        metadata = {"metrics": json.dumps(row), "training": self.config.to_json()}
        save(model, self.folder.last_file, metadata)
        if best:
            save(model, self.folder.best_file, metadata)

    def _report_epoch(self, row: dict[str, Any], validation: Validation | None, best: bool) -> None:
        self.reporter.stop()
        text = f"epoch {row['epoch']}/{self.config.epochs}: loss {row['loss']:.3f}"
        if self.trained:
            text += f", {row['clips_per_second']:.2f} clips/s, {row['data_wait']:.0%} of the time waiting for data"
        self.reporter.message(text)
        if validation is not None:
            show(
                validation.metrics,
                f"validation after epoch {row['epoch']}{' (best so far)' if best else ''}",
                self.reporter,
            )

    def _save(self) -> None:
        states = self.world.gather(random_states(self.world.device))
        self.saved_at, self.saved_step = time.monotonic(), self.step
        if not self.world.is_first:
            return
        state = TrainingState(
            step=self.step,
            model=self.model.state_dict(),
            average=self.average.model.state_dict() if self.average is not None else None,
            rest={
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "seconds": self._seconds(),
                "optimizer": self.stepper.optimizer.state_dict(),
                "scaler": self.stepper.scaler.state_dict(),
                "random": states,
            },
        )
        save_state(self.folder.checkpoints, state)

    def _emit(self, row: dict[str, float]) -> None:
        if self.events is not None:
            for name, value in row.items():
                self.events.add_scalar(name, value, self.step)


def _peak_memory(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / GIGABYTE, 2)


def _events(folder: RunFolder):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder.path / "tensorboard")
