"""The training run: epochs of steps, evaluations, checkpoints, and leaving cleanly when asked to."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from stnet.console import Reporter
from stnet.data.clips.dataset import ClipBatch, collate_clips
from stnet.data.clips.planning import LOCAL_FRAMES
from stnet.data.index import DatasetIndex
from stnet.errors import ConfigError, NonFiniteError
from stnet.evaluation.predict import PredictionOptions
from stnet.model.backbone import lay_out_for
from stnet.model.checkpoint import entries
from stnet.model.detector import Detector
from stnet.model.provenance import Provenance
from stnet.training.batches import ClipOrder
from stnet.training.callbacks import RunStart
from stnet.training.clips import frame_aspect, training_clips
from stnet.training.config import TrainConfig
from stnet.training.denoising import TrainedModel
from stnet.training.distributed import World, random_states, restore_random_states
from stnet.training.ema import WeightAverage
from stnet.training.interrupt import Interrupted, InterruptWatch, leave_the_group
from stnet.training.optimizer import build_optimizer, rate_factor
from stnet.training.recorder import EpochRecorder, EpochWork, peak_memory
from stnet.training.run_folder import RunFolder
from stnet.training.run_options import RunOptions
from stnet.training.starting_points import first_weights, freeze
from stnet.training.state import TrainingState, load_newest, save_state
from stnet.training.step import AUTOCAST, StepFigures, Stepper
from stnet.training.validation import Validation, validate


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
        self.recorder = EpochRecorder(
            config,
            folder,
            world.device,
            train=train,
            val=val,
            callbacks=options.callbacks if world.is_first else (),
            reporter=reporter,
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * self.order.steps

    def resume(self) -> None:
        """Go on from the newest readable checkpoint of the run folder.

        Raises:
            CheckpointError: where there is none, or it does not belong to this recipe.
            ConfigError: the data is other data than it was.
        """
        state = load_newest(self.folder.checkpoints, self.reporter.message)
        self._require_same_data(state.rest.get("data"))
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
        if self.world.gather(self.recorder.has_epoch(self.epoch + 1))[0]:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
        if self.epoch == self.config.epochs or self._is_over(self._agreed_progress()):
            self.reporter.message(f"this run is finished ({self.step} steps)")
        else:
            self.reporter.message(f"going on after step {self.step} of {self.total_steps}")

    def _amounts(self) -> dict[str, int]:
        """How much data there is: that it is the same data can be told where folders were moved."""
        scored = sum(frame.annotated for video in self.val_index.videos for frame in video.frames)
        return {"clips to train on": len(self.dataset), "frames to evaluate on": scored}

    def _require_same_data(self, before: dict[str, int] | None) -> None:
        for name, amount in self._amounts().items():
            if before is not None and before[name] != amount:
                raise ConfigError(
                    f"--data: the run being resumed has {before[name]} {name}, this data has {amount}; give the data "
                    "that it was started with, or start a new run from its weights with --start-from"
                )

    def run(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: after SIGTERM or Ctrl-C, everything saved.
            NonFiniteError: naming the clips, weights as before the step.
        """
        with self.watch, self._told():
            while self.epoch < self.config.epochs and not self._is_over(progress := self._agreed_progress()):
                if self._out_of_patience():
                    break
                progress = self._train_epoch(progress)
                self._end_epoch(progress)
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.reporter.stop()

    def _is_over(self, progress: float) -> bool:
        """Whether nothing is left to do; an epoch whose steps are made but that was never evaluated has to be ended."""
        return progress >= 1 and not self.step_in_epoch

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell the callbacks of the beginning and the end."""
        callbacks = self.options.callbacks if self.world.is_first else ()
        start = RunStart(folder=self.folder.path, config=self.config, step=self.step, steps=self.total_steps)
        for callback in callbacks:
            callback.start(start)
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            for callback in callbacks:
                callback.end(error)

    def _out_of_patience(self) -> bool:
        """Return whether too many evaluations brought nothing better; all processes have to ask together."""
        if not self.config.patience:
            return False
        if not self.world.gather(self.world.is_first and self.recorder.out_of_patience())[0]:
            return False
        waited = f"{self.config.patience} evaluation{'s' if self.config.patience > 1 else ''}"
        self.reporter.message(f"stopped early: {waited} brought no better {self.config.best_metric} (--patience)")
        return True

    def _starting_model(self) -> Detector:
        config = self.config
        model = Detector(config.model, recompute=config.checkpoint_activations)
        first = first_weights(model, config.start_from, config.backbone_weights)
        if first:
            self.reporter.message(f"starting from {config.start_from}: {first.summary()}")
        start = f"; started from {Path(config.start_from).name}" if config.start_from else ""
        model.provenance = Provenance(trained_on=self.options.trained_on + start)
        trained = freeze(model, config.freeze)
        self.reporter.message(
            f"{trained / 1e6:.1f} M parameters train; {len(self.dataset)} clips in {len(self.train_index.videos)} "
            f"videos, {self.total_steps} steps of {config.batch_size} clips on {self.world.size} x {self.world.device}"
        )
        lay_out_for(model.backbone, self.world.device)
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

    def _train_epoch(self, progress: float) -> float:
        """Make the steps of this epoch that are not done yet; return the progress after them."""
        first = self.step_in_epoch
        if first == self.order.steps or progress >= 1:
            return progress
        self.dataset.set_epoch(self.epoch)
        self.order.start(self.epoch, first)
        self.reporter.start(f"epoch {self.epoch + 1}/{self.config.epochs}", self.order.steps, first)
        self.begun, self.waited, self.trained = time.monotonic(), 0.0, 0
        batches = iter(self.loader)
        for _ in range(first, self.order.steps):
            progress = self._train_step(batches, progress)
            if progress >= 1:
                break
        return progress

    def _train_step(self, batches: Iterator[ClipBatch], progress: float) -> float:
        """Make one step with the learning rate of `progress`; return the progress after it.

        Raises:
            Interrupted: as some process was asked to stop; everything is saved.
        """
        parts = self._next(batches)
        if self.world.is_first:
            self.recorder.picture_batch(self.step, parts[0])
        factor = rate_factor(self.step, progress, self.config)
        figures = self._guarded_step(parts, factor)
        if self.average is not None:
            self.average.update(self.detector, self.step)
        self.step, self.step_in_epoch, self.trained = self.step + 1, self.step_in_epoch + 1, self.trained + 1
        if self.world.is_first:
            self.recorder.record_step(self.step, self.epoch + 1, figures, self.config.learning_rate * factor)
        self._report_step(figures)
        stop, save_due = figures.requests
        if stop or save_due:
            self._save()
        if stop:
            self.reporter.stop()
            raise Interrupted(self.watch.exit_code)
        return self._agreed_progress()

    def _agreed_progress(self) -> float:
        """Return the share of the training that is done, by steps or by time; all processes have to ask together."""
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

    def _report_step(self, figures: StepFigures) -> None:
        share = self.waited / max(time.monotonic() - self.begun, 1e-9)
        memory = peak_memory(self.world.device)
        self.reporter.advance(1, f"{figures} data {share:.0%}" + (f" memory {memory:.1f} GB" if memory else ""))

    def _end_epoch(self, progress: float) -> None:
        """Save, evaluate where it is due, and have the epoch recorded."""
        seconds = time.monotonic() - self.begun
        if self.saved_step != self.step:
            self._save()
        last = self.epoch + 1 == self.config.epochs or progress >= 1
        due = last or (self.epoch + 1) % self.config.evaluate_every == 0
        validation = self._validate() if due else None
        if self.world.is_first:
            work = EpochWork(
                epoch=self.epoch + 1, step=self.step, seconds=seconds, waited=self.waited, trained=self.trained
            )
            self.recorder.end_epoch(work, validation, self._best_model, last=last)

    @property
    def _best_model(self) -> Detector:
        """The model to evaluate and keep: the average where there is one."""
        return self.average.model if self.average is not None else self.detector

    def _validate(self) -> Validation | None:
        self.world.share_statistics(self._best_model)
        options = PredictionOptions(
            targets=min(self.config.targets, LOCAL_FRAMES), precision=AUTOCAST[self.config.precision]
        )

        def leave_if_asked() -> None:
            if self.watch.received is not None:
                raise Interrupted(self.watch.exit_code)

        return validate(
            self._best_model,
            self.val_index,
            options,
            self.config.score_threshold,
            self.world,
            self.reporter,
            leave_if_asked,
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
                "data": self._amounts(),
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "seconds": self._seconds(),
                "optimizer": self.stepper.optimizer.state_dict(),
                "scaler": self.stepper.scaler.state_dict(),
                "random": states,
            },
        )
        facts = entries(self._best_model, {"training": self.config.without_folders().to_json()})
        save_state(self.folder.checkpoints, state, facts)
