"""The options of `train.py` and `stnet evaluate`: nothing that computes is imported for them."""

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stnet.choices import PROTOCOLS
from stnet.errors import ConfigError, DataError
from stnet.model.config import ModelConfig
from stnet.training.config import PRESETS, TrainConfig
from stnet.training.run_options import RunOptions

DEFAULTS = RunOptions()
DEFAULT_PRESET = "paper"
DEFAULT_SPLIT = "val"
EVALUATED = ("precision", "score_threshold", "video_threshold")
"""Settings of the recipe that mean something in an evaluation, too."""

TRAINING_ONLY = ("resume", "no_check", "tensorboard", "workers", "save_minutes", "preset")
"""Options beside the recipe's that mean nothing in an evaluation."""

EVALUATION_ONLY = {
    "split": "",
    "protocol": "",
    "stills": "; to train on stills make a data set of them: python -m stnet.data.stills",
    "duplicate_iou": "; to train, give --model duplicate_iou=VALUE",
}
"""Options that mean nothing in a training, and what serves there instead."""

NOT_FOR_STILLS = {"split": "--data names the files", "protocol": "all are scored", "video_threshold": "no videos"}
"""What means nothing in an evaluation on stills, and why."""

GOES_WITH: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "drop_at": (lambda config: config.schedule == "step", "--schedule step"),
    "auxiliary_repeats": (lambda config: config.auxiliary_losses, "--auxiliary-losses"),
    "without_defences": (lambda config: config.augmentation == "stills", "--augmentation stills"),
    "backbone_learning_rate": (
        lambda config: "backbone" not in config.freeze,
        "a backbone that --freeze does not name",
    ),
}
"""Settings that mean something in some recipes alone: in which, and what to give for that."""

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


def build_parser(prog: str = "train.py") -> argparse.ArgumentParser:
    """Return the parser of `train.py`; the options of the recipe are the fields of TrainConfig."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train STNet on ultrasound videos with lesion boxes, or evaluate a checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run(parser.add_argument_group("run"))
    evaluation = parser.add_argument_group("evaluation only")
    evaluation.add_argument(
        "--evaluate", metavar="CHECKPOINT", help="checkpoint, run folder or the name of a shipped model"
    )
    _add_evaluation(evaluation)

    recipe = parser.add_argument_group("recipe", "defaults come from the preset")
    recipe.add_argument("--preset", choices=tuple(PRESETS), help=f"recipe (default: {DEFAULT_PRESET})")
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


def _add_run(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--data",
        required=True,
        type=Path,
        nargs="+",
        metavar="DIR",
        help="data set folders (docs/data-formats.md), trained on together; with --stills COCO files",
    )
    run.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to create for the run or the evaluation; never overwritten"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in --output; data and recipe stay")
    run.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    run.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="processes to train with on a CPU, one thread each (default: one for each core that divides the batch)",
    )
    run.add_argument("--workers", type=_count, metavar="N", help=f"loader processes (default: {DEFAULTS.workers})")
    run.add_argument(
        "--save-minutes",
        type=_minutes,
        metavar="MINUTES",
        help=f"time between checkpoints within an epoch (default: {DEFAULTS.save_minutes:g})",
    )
    run.add_argument("--no-check", action="store_true", help="skip the look at the data set before training")
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    run.add_argument("--deterministic", action="store_true", help="bit-identical repeats on a GPU too, slower")


def build_evaluation_parser(prog: str = "stnet evaluate") -> argparse.ArgumentParser:
    """Return the parser of `stnet evaluate`, which gives what `train.py --evaluate` does."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Evaluate a model on annotated videos, or with --stills on still images; as `train.py --evaluate`.",
    )
    parser.add_argument("evaluate", metavar="CHECKPOINT", help="checkpoint, run folder or the name of a shipped model")
    parser.add_argument(
        "--data", required=True, type=Path, nargs="+", metavar="DIR", help="dataset folders; with --stills COCO files"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for numbers and curves (default: none)")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    parser.add_argument("--processes", type=_positive, metavar="N", help="processes on a CPU (default: 1 per core)")
    _add_evaluation(parser)
    recipe = TrainConfig()
    # Not the recipe's: an evaluation computes as `infer.py` does, by `EngineOptions.resolved_dtype`.
    defaults = {"precision": "float16 on a GPU, float32 on a CPU"}
    for known in dataclasses.fields(TrainConfig):
        if known.name in EVALUATED:
            _add_setting(parser, known, {"default": defaults.get(known.name, getattr(recipe, known.name))})
    parser.set_defaults(**dict.fromkeys(TRAINING_ONLY), deterministic=False)
    return parser


def require_data(options: argparse.Namespace) -> None:
    """Require that the data is there.

    Raises:
        DataError: it is not.
    """
    for path in options.data:
        if not path.exists():
            stills = options.evaluate and options.stills
            remedy = "file; check the path" if stills else "folder; give the folder that holds the annotation files"
            raise DataError(f"{path}: no such {remedy}")


def require_fitting(options: argparse.Namespace) -> None:
    """Require that every option that was given means something beside the others.

    Raises:
        ConfigError: one would be ignored, or `--output` is missing.
    """
    if options.evaluate == "":  # as of a variable of the shell that is not set
        raise ConfigError("--evaluate: is empty; name a checkpoint")
    if options.evaluate is None:
        for name, instead in EVALUATION_ONLY.items():
            _refuse(options, name, f"goes with --evaluate{instead}")
        if options.output is None:
            raise ConfigError("--output: name a folder for the run, or evaluate a checkpoint with --evaluate")
        return
    for name in (*sorted(set(given_settings(options)) - set(EVALUATED)), *TRAINING_ONLY):
        _refuse(options, name, "has no meaning with --evaluate; leave it out")
    if options.stills:
        for name, reason in NOT_FOR_STILLS.items():
            _refuse(options, name, f"has no meaning with --stills ({reason}); leave it out")


def _refuse(options: argparse.Namespace, name: str, reason: str) -> None:
    if is_given(options, name):
        raise ConfigError(f"--{name.replace('_', '-')}: {reason}")


def is_given(options: argparse.Namespace, name: str) -> bool:
    """Tell whether an option stands on the command line, be it with its default."""
    value = getattr(options, name, None)
    return name in given_settings(options) or (value is not None and value is not False)


def _add_evaluation(evaluation: argparse._ActionsContainer) -> None:
    evaluation.add_argument("--split", help=f"val, train or an annotation file (default: {DEFAULT_SPLIT})")
    evaluation.add_argument(
        "--stills", action="store_true", help="--data names COCO files of still images; each is held as a video"
    )
    evaluation.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="all: every annotated frame; published: the centre frames of STNet's own script "
        f"(default: {PROTOCOLS[0]})",
    )
    evaluation.add_argument(
        "--duplicate-iou",
        type=float,
        metavar="IOU",
        help="drop detections that overlap a better one by more than this; 1: none (default: the checkpoint's setting)",
    )


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe settings named on the command line; `model` as a list of `NAME=VALUE`."""
    names = {known.name for known in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    tuples = {name: tuple(value) for name, value in given.items() if isinstance(value, list) and name != "model"}
    return given | tuples


def configured(preset: str, given: dict[str, Any]) -> TrainConfig:
    """Return a preset with the given settings changed.

    Raises:
        ConfigError: for settings that do not exist, do not fit, or mean nothing in this recipe.
    """
    config = TrainConfig.preset(preset)
    changes = dict(given)
    if "model" in changes:
        changes["model"] = changed_model(config.model, changes["model"])
    config = config.replace(**changes)
    for name, (meant, other) in GOES_WITH.items():
        if name in given and not meant(config):
            raise ConfigError(f"--{name.replace('_', '-')}: goes with {other}; leave it out in this recipe")
    return config


def changed_model(model: ModelConfig, assignments: list[str]) -> ModelConfig:
    """Return a model's configuration with `NAME=VALUE` texts applied.

    Raises:
        ConfigError: for settings that do not exist or do not fit.
    """
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


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes")
    return value
