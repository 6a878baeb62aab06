"""Command line of training: `train.py` and `stnet-train`."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stnet.command_line import explain
from stnet.console import Reporter
from stnet.data.index import SPLIT_FILES, DatasetIndex, load_index
from stnet.data.joined import join_indexes
from stnet.errors import EXTERNAL, ConfigError, DataError, NonFiniteError
from stnet.evaluation.predict import PredictionOptions
from stnet.evaluation.protocol import PROTOCOLS
from stnet.evaluation.report import NUMBERS_FILE, build_report, report_files
from stnet.evaluation.scored_stills import read_still_files, scored_set
from stnet.evaluation.stills_report import build_stills_report, show_stills, stills_files
from stnet.execution.engine import Engine, EngineOptions
from stnet.files import replacing
from stnet.model.checkpoint import load
from stnet.model.operating_points import OperatingPoints
from stnet.training.config import PRESETS, TrainConfig
from stnet.training.data_check import report_findings
from stnet.training.distributed import World, join_world
from stnet.training.interrupt import Interrupted
from stnet.training.loop import RunOptions, Trainer
from stnet.training.processes import CompanionFailedError, Companions, choose_processes
from stnet.training.run_folder import RunFolder
from stnet.training.validation import show, show_report, validate

OUT_OF_MEMORY = (
    "out of memory; raise --accumulate (same result, less memory), add --checkpoint-activations or "
    "--precision bfloat16, or lower --batch-size"
)
DEFAULTS = RunOptions()
EXAMPLES = """examples:
  train.py --data miccai_buv --output runs/a                        the published recipe
  train.py --data phantoms --output runs/tiny --preset tiny         a small model, on a CPU
  train.py --data miccai_buv --output runs/a --resume               go on where it stopped
  train.py --evaluate runs/a/best.safetensors --data miccai_buv --output runs/a/val
                                                                    evaluate only; numbers and curves go to --output
  train.py --evaluate tiny --data stills/val.json --stills --output figures
                                                                    evaluate on still images, with operating points
  torchrun --nproc_per_node=8 train.py --data ... --output ...      several GPUs
"""


def build_parser() -> argparse.ArgumentParser:
    """All options; those of the recipe are the fields of TrainConfig."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train STNet on ultrasound videos with lesion boxes, or evaluate a checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--data",
        required=True,
        type=Path,
        nargs="+",
        metavar="DIR",
        help="dataset folders (BUV layout), trained on together; with --stills annotation files",
    )
    run.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to create for the run or the evaluation; never overwritten"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    run.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="processes to train with on a CPU, one thread each (default: one for each core that divides the batch)",
    )
    run.add_argument(
        "--workers", type=_count, default=DEFAULTS.workers, metavar="N", help="loader processes (default %(default)s)"
    )
    run.add_argument(
        "--save-minutes",
        type=float,
        default=DEFAULTS.save_minutes,
        metavar="MINUTES",
        help="time between checkpoints within an epoch (default %(default)g)",
    )
    run.add_argument("--no-check", action="store_true", help="skip the look at the data set before training")
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    run.add_argument("--deterministic", action="store_true", help="bit-identical repeats on a GPU too, slower")

    evaluation = parser.add_argument_group("evaluation only")
    evaluation.add_argument("--evaluate", metavar="CHECKPOINT", help="checkpoint file, or the name of a shipped one")
    evaluation.add_argument("--split", default="val", help="val, train or an annotation file (default %(default)s)")
    evaluation.add_argument(
        "--stills", action="store_true", help="--data names COCO files of still images; each is held as a video"
    )
    evaluation.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=PROTOCOLS[0],
        help="all: every annotated frame; published: the centre frames of STNet's own script (default %(default)s)",
    )

    evaluation.add_argument(
        "--duplicate-iou",
        type=float,
        metavar="IOU",
        help="drop detections that overlap a better one by more than this; 1: none (default: the checkpoint's setting)",
    )

    recipe = parser.add_argument_group("recipe", "defaults come from the preset")
    recipe.add_argument("--preset", choices=tuple(PRESETS), default="paper", help="recipe (default %(default)s)")
    recipe.add_argument(
        "--model",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="NAME=VALUE",
        help="change the preset's model, for example queries=100 dropout=0",
    )
    presets = {name: TrainConfig.preset(name) for name in PRESETS}
    for known in dataclasses.fields(TrainConfig):
        if known.name != "model":
            _add_setting(recipe, known, {name: getattr(preset, known.name) for name, preset in presets.items()})
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by a signal."""
    options = build_parser().parse_args(arguments)
    try:
        # Called from Python it stays in its process unless asked otherwise.
        given = options.processes or (None if arguments is None else 1)
        count = choose_processes(given, options.device, _shared_clips(options))
        with Companions(count, sys.argv[1:] if arguments is None else arguments):
            return _run(options)
    except CompanionFailedError as error:
        return _fail(str(error), 1)
    except EXTERNAL as error:
        return _fail(explain(error), 2)


def _run(options: argparse.Namespace) -> int:
    world = None
    try:
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it some versions refuse products
            torch.use_deterministic_algorithms(True)
        world = join_world(options.device)
        reporter = Reporter(quiet=not world.is_first)
        if options.evaluate:
            _evaluate(options, world, reporter)
        else:
            _train(options, world, reporter)
    except NonFiniteError as error:
        return _fail(f"{error}; nothing was updated", 1)
    except EXTERNAL as error:
        return _fail(explain(error), 2)
    except torch.OutOfMemoryError:
        return _fail(OUT_OF_MEMORY, 1)
    except Interrupted as stopped:
        print("stopped; go on with --resume", file=sys.stderr)
        return stopped.exit_code
    finally:
        if world is not None:
            world.close()
    return 0


def _shared_clips(options: argparse.Namespace) -> int | None:
    """Clips of a forward pass, which the processes share; None for an evaluation, where they share videos."""
    if options.evaluate:
        return None
    if options.resume and options.output is not None:
        config = RunFolder(options.output).reopen()
    else:
        config = configured(options.preset, given_settings(options))
    return config.batch_size // config.accumulate


def _train(options: argparse.Namespace, world: World, reporter: Reporter) -> None:
    if options.duplicate_iou is not None:
        raise ConfigError("--duplicate-iou: goes with --evaluate; to train, give --model duplicate_iou=VALUE")
    if options.stills:
        raise ConfigError(
            "--stills: goes with --evaluate; to train on stills make a data set of them: python -m stnet.data.stills"
        )
    if options.output is None:
        raise ConfigError("--output: name a folder for the run, or evaluate a checkpoint with --evaluate")
    folder = RunFolder(options.output)
    given = given_settings(options)
    if options.resume:
        config = _unchanged(folder.reopen(), given)
    else:
        config = configured(options.preset, given)
        if not options.no_check and world.is_first:
            for place in options.data:
                report_findings(place, reporter)
    train = _load(options, "train", config.model.class_names if options.resume else None, reporter)
    val = _load(options, "val", train.class_names, reporter)
    config = config.replace(model=dataclasses.replace(config.model, class_names=train.class_names))
    if not options.resume and world.is_first:
        facts = {
            "data": [str(folder.resolve()) for folder in options.data],
            "processes": world.size,
            "device": str(world.device),
        }
        folder.create(config, facts)
    run_options = RunOptions(
        workers=options.workers,
        save_minutes=options.save_minutes,
        tensorboard=options.tensorboard,
        trained_on=f"{len(train.videos):,} videos of {', '.join(folder.resolve().name for folder in options.data)}",
    )
    trainer = Trainer(config, train, val, folder, world, run_options, reporter)
    if options.resume:
        trainer.resume()
    trainer.run()
    reporter.message(f"done; weights, curves and pictures are in {folder.path}")


def _evaluate(options: argparse.Namespace, world: World, reporter: Reporter) -> None:
    given = given_settings(options)
    unused = sorted(set(given) - {"precision", "score_threshold", "video_threshold"})
    unused += [name for name in ("resume", "no_check") if getattr(options, name)]
    if unused:
        name = unused[0]
        raise ConfigError(f"--{name.replace('_', '-')}: has no meaning with --evaluate; leave it out")
    _check_evaluation(options)
    settings = TrainConfig(**given)
    model = load(options.evaluate, device=world.device)
    # What users run, in the precision that they get where none is asked for.
    points = model.operating_points
    model = Engine(model, EngineOptions(device=world.device, dtype=given.get("precision")))
    predict = PredictionOptions(protocol=options.protocol, duplicate_iou=options.duplicate_iou)
    if options.stills:
        _evaluate_stills(options, model, points, predict, settings.score_threshold, world, reporter)
        return
    index = _load(options, options.split, model.config.class_names, reporter)
    result = validate(model, index, predict, settings.score_threshold, world, reporter)
    if result is None:
        return
    report = build_report(
        result.frames,
        index.class_names,
        score_threshold=settings.score_threshold,
        video_threshold=settings.video_threshold,
        metrics=result.metrics,
    )
    show(result.metrics, f"{options.evaluate} on {index.annotation_file}, protocol {options.protocol}", reporter)
    show_report(report, reporter)
    if options.output is not None:
        facts = {"split": options.split, "protocol": options.protocol, "duplicate_iou": _duplicate_iou(model, predict)}
        _write_files(options, report_files(report, _facts(options) | facts))
        reporter.message(f"numbers, the table of videos and curves are in {options.output}")


def _check_evaluation(options: argparse.Namespace) -> None:
    """Refuse what would fail, or mean nothing, after minutes of computing."""
    if options.output is not None and (options.output / NUMBERS_FILE).exists():
        raise ConfigError(f"--output: {options.output / NUMBERS_FILE} exists; choose another folder")
    if options.stills and (options.split != "val" or options.protocol != PROTOCOLS[0]):
        raise ConfigError(
            "--split, --protocol: have no meaning with --stills, whose --data names the files; leave them out"
        )
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


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe settings named on the command line; `model` as a dictionary of texts."""
    names = {known.name for known in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    tuples = {name: tuple(value) for name, value in given.items() if isinstance(value, list) and name != "model"}
    return given | tuples


def configured(preset: str, given: dict[str, Any]) -> TrainConfig:
    """A preset with the given settings changed.

    Raises:
        ConfigError: for settings that do not exist or do not fit.
    """
    config = TrainConfig.preset(preset)
    changes = dict(given)
    if "model" in changes:
        changes["model"] = _changed_model(config.model, changes["model"])
    return config.replace(**changes)


def _changed_model(model, assignments: list[str]):
    known = {item.name: getattr(model, item.name) for item in dataclasses.fields(model)}
    changes = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or name not in known or name == "class_names":
            allowed = ", ".join(key for key in known if key != "class_names")
            raise ConfigError(f"--model {assignment}: expected NAME=VALUE with a NAME of {allowed}")
        changes[name] = _parsed(f"--model {assignment}", text, type(known[name]))
    return dataclasses.replace(model, **changes)


def _parsed(what: str, text: str, wanted: type) -> Any:
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{what}: expected true or false")
        return text.lower() == "true"
    try:
        return wanted(text)
    except ValueError as error:
        raise ConfigError(f"{what}: expected {wanted.__name__}") from error


def _unchanged(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The stored recipe, which the command line may repeat but not change."""
    wanted = dict(given)
    if "model" in wanted:
        wanted["model"] = _changed_model(config.model, wanted["model"])
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"--{name.replace('_', '-')}: the run being resumed has {getattr(config, name)!r}, not {value!r}; "
                "leave the option out, or start a new run from its weights with --start-from"
            )
    return config


def _add_setting(group: argparse._ArgumentGroup, known: dataclasses.Field, defaults: dict[str, Any]) -> None:
    flag = "--" + known.name.replace("_", "-")
    shown = ", ".join(f"{name} {_shown(value)}" for name, value in defaults.items())
    text = f"{known.metadata['help']} ({shown})".replace("%", "%%")
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if isinstance(known.default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif isinstance(known.default, tuple):
        group.add_argument(flag, nargs="*", choices=known.metadata["choices"], **common)
    elif known.metadata["choices"]:
        group.add_argument(flag, choices=known.metadata["choices"], **common)
    else:
        group.add_argument(flag, type=type(known.default), metavar=type(known.default).__name__.upper(), **common)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value) or "none"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _load(
    options: argparse.Namespace, split: str, class_names: tuple[str, ...] | None, reporter: Reporter
) -> DatasetIndex:
    """A split of the data set, its repairs reported.

    Raises:
        DataError: see `load_index`; or nobody looked at any of its frames.
    """
    index = _joined(options.data, split, class_names)
    if index.repairs:
        reporter.message(f"{index.annotation_file}: {len(index.repairs)} entries repaired or dropped, for example:")
        for repair in index.repairs[:3]:
            reporter.message(f"  {repair.kind}: {repair}")
    if not any(frame.annotated for video in index.videos for frame in video.frames):
        raise DataError(f'{index.annotation_file}: every frame says "annotated": false; some have to be looked at')
    return index


def _joined(folders: list[Path], split: str, class_names: tuple[str, ...] | None) -> DatasetIndex:
    """A split of all data sets together; with several, those that have no such split leave it to the others."""
    if len(folders) > 1:
        known = SPLIT_FILES.get(split)
        if known is None:
            raise ConfigError(f"--split {split}: a file belongs to one data set, but --data names {len(folders)}")
        folders = [folder for folder in folders if any((folder / name).is_file() for name in known)] or folders[:1]
    return join_indexes([load_index(folder, split, class_names=class_names) for folder in folders])


def _fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
