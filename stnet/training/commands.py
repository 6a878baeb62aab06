"""What `train.py` and `stnet evaluate` do, once it is known what is asked of them."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stnet.choices import PROTOCOLS
from stnet.command_line import explain
from stnet.console import Reporter
from stnet.devices import is_out_of_memory
from stnet.errors import EXTERNAL, ConfigError, NonFiniteError
from stnet.evaluation.predict import PredictionOptions
from stnet.evaluation.report import NUMBERS_FILE, build_report, report_files
from stnet.evaluation.scored_stills import read_still_files, scored_set
from stnet.evaluation.stills_report import build_stills_report, show_stills, stills_files
from stnet.execution.engine import Engine, EngineOptions
from stnet.files import replacing
from stnet.json_settings import first_difference
from stnet.model.checkpoint import load
from stnet.model.operating_points import OperatingPoints
from stnet.training.callbacks import TensorBoard
from stnet.training.config import TrainConfig
from stnet.training.distributed import World, join_world
from stnet.training.interrupt import Interrupted
from stnet.training.options import (
    DEFAULT_PRESET,
    DEFAULT_SPLIT,
    changed_model,
    configured,
    given_settings,
    is_given,
)
from stnet.training.processes import CompanionFailedError, Companions, choose_processes
from stnet.training.run_folder import RunFolder
from stnet.training.run_options import RunOptions
from stnet.training.runs import load_split, train_run
from stnet.training.validation import show, show_report, validate

OUT_OF_MEMORY = (
    "out of memory; raise --accumulate (same result, less memory), add --checkpoint-activations or "
    "--precision bfloat16, or lower --batch-size"
)


def run(options: argparse.Namespace, arguments: Sequence[str], processes: int | None) -> int:
    """Train or evaluate, in several processes where that is worth it.

    Args:
        options: of a parser in `options.py`.
        arguments: of `stnet`, which make another process do its share of the same.
        processes: how many, where `options` leave that open; None: as many as are worth it.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by a signal.
    """
    try:
        config = None if options.evaluate else _recipe(options)
        # Processes share the clips of a forward pass; those that evaluate share videos.
        clips = None if config is None else config.batch_size // config.accumulate
        count = choose_processes(options.processes or processes, options.device, clips)
        with Companions(count, arguments):
            return _run(options, config)
    except CompanionFailedError as error:
        return _fail(str(error), 1)
    except EXTERNAL as error:
        return _fail(explain(error), 2)


def _run(options: argparse.Namespace, config: TrainConfig | None) -> int:
    world = None
    try:
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it some versions refuse products
            torch.use_deterministic_algorithms(True)
        world = join_world(options.device)
        reporter = Reporter(quiet=not world.is_first)
        if config is None:
            _evaluate(options, world, reporter)
        else:
            _train(options, config, world, reporter)
    except NonFiniteError as error:
        return _fail(f"{error}; nothing was updated", 1)
    except EXTERNAL as error:
        return _fail(explain(error), 2)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _fail(OUT_OF_MEMORY, 1)
    except Interrupted as stopped:
        print("stopped; go on with --resume", file=sys.stderr)
        return stopped.exit_code
    finally:
        if world is not None:
            world.close()
    return 0


def _recipe(options: argparse.Namespace) -> TrainConfig:
    """Return the recipe to train by; that of a run which goes on may be repeated by options, but not changed."""
    given = given_settings(options)
    if not options.resume:
        return configured(options.preset or DEFAULT_PRESET, given)
    stored = RunFolder(options.output).reopen()
    for name, value in given.items():
        value = changed_model(stored.model, value) if name == "model" else value
        _require_stored(stored, f"--{name.replace('_', '-')}", {name: value})
    if options.preset is not None:
        preset = configured(options.preset, given)
        model = dataclasses.replace(preset.model, class_names=stored.model.class_names)  # the data's
        _require_stored(stored, f"--preset {options.preset}", vars(preset) | {"model": model})
    return stored


def _require_stored(stored: TrainConfig, option: str, settings: dict[str, Any]) -> None:
    """Require that an option asks for settings that the stored recipe has."""
    for name, wanted in settings.items():
        found = first_difference(getattr(stored, name), wanted, name)
        if found is not None:
            different, has, wanted = found
            raise ConfigError(
                f"{option}: the run being resumed has {different} {has!r}, not {wanted!r}; "
                "leave the option out, or start a new run from its weights with --start-from"
            )


def _train(options: argparse.Namespace, config: TrainConfig, world: World, reporter: Reporter) -> None:
    differing = {name: getattr(options, name) for name in ("workers", "save_minutes") if is_given(options, name)}
    run_options = RunOptions(callbacks=(TensorBoard(),) if options.tensorboard and world.is_first else (), **differing)
    train_run(
        config,
        options.data,
        RunFolder(options.output),
        resume=options.resume,
        check=not options.no_check,
        options=run_options,
        world=world,
        reporter=reporter,
    )


def _evaluate(options: argparse.Namespace, world: World, reporter: Reporter) -> None:
    given = given_settings(options)
    _check_evaluation(options)
    settings = TrainConfig(**given)
    model = load(options.evaluate, device=world.device)
    # What users run, in the precision that they get where none is asked for.
    points = model.operating_points
    model = Engine(model, EngineOptions(device=world.device, dtype=given.get("precision")))
    predict = PredictionOptions(protocol=options.protocol or PROTOCOLS[0], duplicate_iou=options.duplicate_iou)
    if options.stills:
        _evaluate_stills(options, model, points, predict, settings.score_threshold, world, reporter)
        return
    split = options.split or DEFAULT_SPLIT
    index = load_split(options.data, split, model.config.class_names, reporter)
    result = validate(model, index, predict, settings.score_threshold, world, reporter)
    if result is None:
        return
    report = build_report(
        result.frames,
        index.class_names,
        score_threshold=settings.score_threshold,
        video_threshold=settings.video_threshold,
        metrics=result.metrics,
        points=points,
    )
    show(report.metrics, f"{options.evaluate} on {index.annotation_file}, protocol {predict.protocol}", reporter)
    show_report(report, reporter)
    if options.output is not None:
        facts = {"split": split, "protocol": predict.protocol, "duplicate_iou": _duplicate_iou(model, predict)}
        _write_files(options, report_files(report, _facts(options) | facts | {"calibrated": points is not None}))
        reporter.message(f"numbers, the table of videos and curves are in {options.output}")


def _check_evaluation(options: argparse.Namespace) -> None:
    """Refuse what would fail after minutes of computing."""
    if options.output is not None and (options.output / NUMBERS_FILE).exists():
        raise ConfigError(f"--output: {options.output / NUMBERS_FILE} exists; choose another folder")
    files = [path for path in options.data if path.is_file()]
    if files and not options.stills:
        raise ConfigError(f"--data {files[0]}: is a file; name a folder, or add --stills for a COCO file of stills")


def _evaluate_stills(
    options: argparse.Namespace,
    model: Engine,
    points: OperatingPoints | None,
    predict: PredictionOptions,
    score_threshold: float,
    world: World,
    reporter: Reporter,
) -> None:
    names = model.config.class_names
    sets = []
    for name, stills in read_still_files(options.data, names).items():
        result = validate(model, stills.index, predict, score_threshold, world, reporter)
        if result is not None:
            sets.append(scored_set(name, stills, result.frames))
    if not sets:  # not the first process
        return
    report = build_stills_report(sets, names, points=points, score_threshold=score_threshold)
    show_stills(report, f"{options.evaluate} on {', '.join(map(str, options.data))}", reporter)
    if options.output is not None:
        facts = {"stills": True, "duplicate_iou": _duplicate_iou(model, predict)}
        _write_files(options, stills_files(report, _facts(options) | facts))
        reporter.message(f"numbers, the table of stills and curves are in {options.output}")


def _duplicate_iou(model: Engine, predict: PredictionOptions) -> float:
    return model.config.duplicate_iou if predict.duplicate_iou is None else predict.duplicate_iou


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    return {"checkpoint": options.evaluate, "data": [str(path) for path in options.data]}


def _write_files(options: argparse.Namespace, files: dict[str, Callable[[Path], Any]]) -> None:
    for name in files:
        if (options.output / name).exists():
            raise ConfigError(f"--output: {options.output / name} exists; choose another folder")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            with replacing(options.output / name) as temporary:
                write(temporary)
    except OSError as error:
        raise ConfigError(f"--output {options.output}: cannot be written ({error})") from error


def _fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code
