"""Training and evaluation from Python; the commands do the same."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stnet.choices import PROTOCOLS
from stnet.console import Reporter
from stnet.data.index import SPLIT_FILES, DatasetIndex, load_index
from stnet.data.joined import join_indexes
from stnet.devices import is_out_of_memory
from stnet.errors import EXTERNAL, ConfigError, DataError, NonFiniteError
from stnet.evaluation.predict import PredictionOptions
from stnet.evaluation.report import Report, build_report
from stnet.execution.engine import Engine, EngineOptions
from stnet.json_settings import first_difference
from stnet.model.checkpoint import load
from stnet.model.detector import Detector
from stnet.training.callbacks import Callback
from stnet.training.config import TrainConfig
from stnet.training.data_check import report_findings
from stnet.training.distributed import World, join_world
from stnet.training.loop import Trainer
from stnet.training.run_folder import RunFolder
from stnet.training.run_options import RunOptions
from stnet.training.validation import validate

Places = str | Path | Sequence[str | Path]


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What a training left behind.

    Attributes:
        folder: of the run.
        weights: the best ones, or the last ones where none was best; what `stnet.load` takes.
        epochs: the rows of `metrics.csv`, values that are missing left out.
    """

    folder: Path
    weights: Path
    epochs: tuple[dict[str, float], ...]

    def __repr__(self) -> str:
        return f"TrainedRun({len(self.epochs)} epochs in {self.folder}, weights {self.weights.name})"


def train(
    config: TrainConfig | str,
    *,
    data: Places,
    output: str | Path,
    resume: bool = False,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    workers: int | None = None,
    check: bool = True,
    quiet: bool = False,
) -> TrainedRun:
    """Train a model, in this process, or in all of those that torchrun started.

    Args:
        config: the recipe, or the name of a preset.
        data: a data set folder, or several.
        output: folder to create for the run; never overwritten.
        resume: go on with the run in `output`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
        callbacks: are told how it goes.
        workers: loader processes; None: as many as are worth it.
        check: look at the data first.
        quiet: print nothing.

    Raises:
        StnetError: settings, data or files that cannot be used.
        Interrupted: after Ctrl-C or SIGTERM, everything saved.
    """
    folder = RunFolder(Path(output))
    config = TrainConfig.preset(config) if isinstance(config, str) else config
    if resume:
        stored = folder.reopen()
        config = config.replace(model=dataclasses.replace(config.model, class_names=stored.model.class_names))
        found = first_difference(stored, config)
        if found is not None:
            name, has, wanted = found
            raise ConfigError(
                f"{folder.config_file}: the run being resumed has another recipe, {name} {has!r}, not {wanted!r}; "
                "pass that one"
            )
        config = stored
    known = {} if workers is None else {"workers": workers}
    world = join_world(device)
    try:
        reporter = Reporter(quiet=quiet or not world.is_first)
        train_run(
            config,
            _paths(data),
            folder,
            resume=resume,
            check=check,
            options=RunOptions(callbacks=tuple(callbacks), **known),
            world=world,
            reporter=reporter,
        )
    finally:
        world.close()
    weights = folder.best_file if folder.best_file.exists() else folder.last_file
    return TrainedRun(folder=folder.path, weights=weights, epochs=tuple(folder.rows(folder.metrics_file)))


def evaluate(
    model: Detector | str | Path,
    *,
    data: Places,
    split: str = "val",
    protocol: str = PROTOCOLS[0],
    device: str = "auto",
    dtype: str | None = None,
    duplicate_iou: float | None = None,
    score_threshold: float = TrainConfig().score_threshold,
    quiet: bool = False,
) -> Report:
    """Evaluate a model on annotated videos, in this process.

    Args:
        model: the model, its file, run folder or shipped name.
        data: a data set folder, or several.
        split: `val`, `train` or an annotation file.
        protocol: `all` annotated frames, or those of the `published` script.
        device: as of `train`.
        dtype: as of `VideoDetector`.
        duplicate_iou: drop detections that overlap a better one by more; None: the model's setting.
        score_threshold: operating point of recall and false positives, of the scores that users see: calibrated where
            the model has operating points.
        quiet: print nothing.

    Raises:
        StnetError: settings, data or files that cannot be used.
    """
    reporter, world = Reporter(quiet=quiet), World()
    detector = model if isinstance(model, Detector) else load(model)
    engine = Engine(detector, EngineOptions(device=None if device == "auto" else device, dtype=dtype))
    index = load_split(_paths(data), split, engine.config.class_names, reporter)
    options = PredictionOptions(protocol=protocol, duplicate_iou=duplicate_iou)
    result = validate(engine, index, options, score_threshold, world, reporter)
    return build_report(
        result.frames,
        index.class_names,
        score_threshold=score_threshold,
        video_threshold=TrainConfig().video_threshold,
        metrics=result.metrics,
        points=detector.operating_points,
    )


def train_run(
    config: TrainConfig,
    data: Sequence[Path],
    folder: RunFolder,
    *,
    resume: bool,
    check: bool,
    options: RunOptions,
    world: World,
    reporter: Reporter,
) -> None:
    """Train in a run folder. The folder is made once everything was checked, and goes where no step could be made.

    Args:
        config: the recipe.
        data: data set folders.
        folder: of the run.
        resume: it is there and is gone on with.
        check: look at the data first.
        options: what does not change the result; what was trained on is filled in.
        world: this process among others.
        reporter: where progress goes.

    Raises:
        OSError, StnetError: what cannot be used.
        Interrupted: everything is saved.
    """
    new = not resume and world.is_first
    if new:
        folder.require_new()
        if check:
            for place in data:
                report_findings(place, reporter)
    train_index = load_split(data, "train", config.model.class_names if resume else None, reporter)
    val_index = load_split(data, "val", train_index.class_names, reporter)
    config = config.replace(model=dataclasses.replace(config.model, class_names=train_index.class_names))
    names = ", ".join(place.resolve().name for place in data)
    options = dataclasses.replace(options, trained_on=f"{len(train_index.videos):,} videos of {names}")
    trainer = Trainer(config, train_index, val_index, folder, world, options, reporter)
    if new:
        folder.create(config, _facts(data, world))
    if resume:
        trainer.resume()
    try:
        trainer.run()
    except (*EXTERNAL, RuntimeError) as error:
        expected = isinstance(error, EXTERNAL) or is_out_of_memory(error)
        if new and trainer.step == 0 and expected and not isinstance(error, NonFiniteError):  # which leaves its clips
            folder.discard()
        raise
    reporter.message(f"done; weights, curves and pictures are in {folder.path}")


def load_split(
    folders: Sequence[Path], split: str, class_names: tuple[str, ...] | None, reporter: Reporter
) -> DatasetIndex:
    """Return a split of data sets, its repairs reported.

    Raises:
        DataError: see `load_index`; or nobody looked at any of its frames.
    """
    index = _joined(list(folders), split, class_names)
    if index.repairs:
        reporter.message(f"{index.annotation_file}: {len(index.repairs)} entries repaired or dropped, for example:")
        for repair in index.repairs[:3]:
            reporter.message(f"  {repair.kind}: {repair}")
    if not any(frame.annotated for video in index.videos for frame in video.frames):
        raise DataError(f'{index.annotation_file}: every frame says "annotated": false; some have to be looked at')
    return index


def _facts(data: Sequence[Path], world: World) -> dict[str, Any]:
    return {"data": [str(place.resolve()) for place in data], "processes": world.size, "device": str(world.device)}


def _paths(data: Places) -> list[Path]:
    return [Path(data)] if isinstance(data, str | Path) else [Path(place) for place in data]


def _joined(folders: list[Path], split: str, class_names: tuple[str, ...] | None) -> DatasetIndex:
    """Return a split of all data sets together; with several, those that have no such split leave it to the others."""
    if len(folders) > 1:
        known = SPLIT_FILES.get(split)
        if known is None:
            raise ConfigError(f"--split {split}: a file belongs to one data set, but --data names {len(folders)}")
        folders = [folder for folder in folders if any((folder / name).is_file() for name in known)] or folders[:1]
    return join_indexes([load_index(folder, split, class_names=class_names) for folder in folders])
