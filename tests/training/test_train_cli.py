"""The command line: its frozen surface, its refusals, and how it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stnet.errors import ConfigError
from stnet.training import commands
from stnet.training.cli import main
from stnet.training.config import TrainConfig
from stnet.training.options import (
    DEFAULT_PRESET,
    build_evaluation_parser,
    build_parser,
    configured,
    given_settings,
    require_fitting,
)
from stnet.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--preset", "tiny", "--clips-per-epoch", "6", "--workers", "0", "--device", "cpu", "--model"),
    *("backbone_width=8", "hidden_dim=64", "heads=2", "feedforward_dim=32", "encoder_layers=1", "decoder_layers=1"),
    *("queries=5", "image_size=48"),
]
# A new option, or one that goes, is a deliberate change of this list.
OPTIONS = [
    "--accumulate",
    "--augmentation",
    "--auxiliary-losses",
    "--auxiliary-repeats",
    "--backbone-learning-rate",
    "--backbone-weights",
    "--batch-size",
    "--best-metric",
    "--checkpoint-activations",
    "--class-loss",
    "--clip-norm",
    "--clips-per-epoch",
    "--data",
    "--denoising",
    "--deterministic",
    "--device",
    "--drop-at",
    "--duplicate-iou",
    "--ema-decay",
    "--epochs",
    "--evaluate",
    "--evaluate-every",
    "--freeze",
    "--help",
    "--learning-rate",
    "--minutes",
    "--model",
    "--no-auxiliary-losses",
    "--no-check",
    "--no-checkpoint-activations",
    "--offsets-factor",
    "--optimizer",
    "--output",
    "--precision",
    "--patience",
    "--preset",
    "--processes",
    "--protocol",
    "--resume",
    "--save-minutes",
    "--schedule",
    "--score-threshold",
    "--seed",
    "--split",
    "--start-from",
    "--stills",
    "--targets",
    "--tensorboard",
    "--video-threshold",
    "--warmup-steps",
    "--weight-decay",
    "--without-defences",
    "--workers",
]


def test_options_are_frozen():
    found = {flag for action in build_parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert sorted(found) == sorted(OPTIONS)


def test_no_option_means_the_preset():
    options = build_parser().parse_args(["--data", "d"])
    assert given_settings(options) == {}
    assert configured(options.preset or DEFAULT_PRESET, {}) == TrainConfig.preset("paper")


def test_options_change_the_preset():
    arguments = ["--data", "d", "--epochs", "3", "--no-auxiliary-losses", "--freeze", "backbone", "encoder"]
    arguments += ["--model", "queries=7", "dropout=0", "box_refine=false", "--learning-rate", "1e-3"]
    config = configured("tiny", given_settings(build_parser().parse_args(arguments)))
    assert (config.epochs, config.auxiliary_losses, config.freeze) == (3, False, ("backbone", "encoder"))
    assert (config.model.queries, config.model.dropout, config.model.box_refine) == (7, 0.0, False)
    assert config.learning_rate == 1e-3 and config.batch_size == TrainConfig.preset("tiny").batch_size


@pytest.mark.parametrize("assignment", ["queries", "depth=3", "queries=many", "box_refine=1", "class_names=a"])
def test_wrong_model_settings_are_refused(assignment):
    with pytest.raises(ConfigError, match=f"--model {assignment}"):
        configured("tiny", {"model": [assignment]})


@pytest.mark.parametrize(
    ("arguments", "spoiler"),
    [
        ("--drop-at 0.5", "--schedule cosine"),
        ("--auxiliary-repeats 2", "--no-auxiliary-losses"),
        ("--augmentation stills --without-defences marks", "--augmentation none"),
        ("--backbone-learning-rate 1e-3", "--freeze backbone"),
    ],
)
def test_settings_that_mean_nothing_in_a_recipe_are_refused(arguments, spoiler):
    def given(text):
        return given_settings(build_parser().parse_args(["--data", "d", *text.split()]))

    configured("paper", given(arguments))
    with pytest.raises(ConfigError, match=r"goes with .*; leave it out"):
        configured("paper", given(f"{arguments} {spoiler}"))


def test_an_evaluation_says_in_which_precision_it_computes():
    assert "(default float16 on a GPU, float32 on a CPU)" in " ".join(build_evaluation_parser().format_help().split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "DATA"], "--output"),
        (["--data", "DATA/nowhere", "--output", "OUT"], "nowhere"),
        (["--data", "DATA", "--output", "OUT", "--resume"], "holds no run"),
        (["--data", "DATA", "--output", "DATA"], "not empty"),
        (["--data", "DATA", "--output", "OUT", "--device", "cuda:99"], "cuda:99"),
        (["--data", "DATA", "--output", "OUT", "--device", "tpu"], "tpu"),
        (["--data", "DATA", "--output", "OUT", "--start-from", "absent.safetensors"], "absent.safetensors"),
        (["--data", "DATA", "--evaluate", "absent.pth"], "absent.pth"),
        (["--data", "DATA", "--evaluate", "tiny", "--duplicate-iou", "0"], "duplicate_iou is 0"),
        (["--data", "DATA/val.json", "--evaluate", "tiny"], "add --stills"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(arguments, message, small_dataset, tmp_path, capsys):
    places = {"DATA": str(small_dataset), "OUT": str(tmp_path / "out")}
    for key, place in places.items():
        arguments = [argument.replace(key, place) for argument in arguments]
    recipe = [] if "--evaluate" in arguments else SMALL
    assert main([*recipe, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


EVALUATION_ONLY = {"--split", "--protocol", "--stills", "--duplicate-iou"}
EVALUATING = {"--evaluate", "--output", "--data", "--device", "--processes", "--deterministic", "--precision"}
EVALUATING |= {"--score-threshold", "--video-threshold", *EVALUATION_ONLY}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--evaluate tiny", EVALUATING),
        ("--evaluate tiny --stills", EVALUATING - {"--video-threshold", "--split", "--protocol"}),
        ("--output run", {*OPTIONS} - EVALUATION_ONLY),
        ("--output run --resume", {*OPTIONS} - EVALUATION_ONLY - {"--evaluate"}),
    ],
)
def test_no_option_is_ignored(given, meant):
    """Not even where it is given its default."""
    parser = build_parser()
    for action in parser._actions:
        value = [] if action.nargs == 0 else [(action.choices or ["1"])[0]]
        for flag in {*action.option_strings} - {"-h", "--help"}:
            options = parser.parse_args(["--data", "d", *given.split(), flag, *value])
            if flag in meant:
                require_fitting(options)
            else:
                with pytest.raises(ConfigError, match=r"goes with --evaluate|has no meaning with"):
                    require_fitting(options)


def test_a_run_that_goes_on_keeps_its_recipe(tmp_path, monkeypatch, capsys):
    """What the command line repeats, as in a job that is queued again, is accepted; what differs is refused."""
    run = RunFolder(tmp_path / "run")
    recipe = configured("tiny", {"epochs": 3, "model": ["queries=7"]})
    run.create(recipe.replace(model=replace(recipe.model, class_names=("cyst",))), {})
    trained = []
    monkeypatch.setattr(commands, "train_run", lambda config, *_, **options: trained.append(options["resume"]))
    resume = ["--data", str(tmp_path), "--output", str(run.path), "--resume"]
    same = ["--epochs", "3", "--model", "queries=7"]
    for again in ([], same, ["--preset", "tiny", *same]):
        assert main([*resume, *again]) == 0
    assert trained == [True] * 3
    for other, message in (
        (["--epochs", "9"], "--epochs: the run being resumed has epochs 3, not 9"),
        (["--model", "queries=8"], "--model: the run being resumed has model.queries 7, not 8"),
        (["--preset", "tiny", "--model", "queries=7"], "--preset tiny: the run being resumed has epochs 3, not 12"),
        (["--preset", "lite0", *same], "--preset lite0: the run being resumed has model.backbone 'resnet10', not "),
    ):
        assert main([*resume, *other]) == 2
        assert message in capsys.readouterr().err
    assert trained == [True] * 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_nobody_annotated_is_refused_before_training(split, small_dataset, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "rawframes").symlink_to(small_dataset / "rawframes")
    for name in ("train", "val"):
        content = json.loads((small_dataset / f"{name}.json").read_text())
        if name == split:
            content["annotations"] = []
            content["images"] = [image | {"annotated": False} for image in content["images"]]
        (data / f"{name}.json").write_text(json.dumps(content))
    assert main(["--data", str(data), "--output", str(tmp_path / "out"), *SMALL]) == 2
    assert f"{split}.json: every frame" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_train_then_evaluate_then_resume(small_dataset, tmp_path, capsys):
    run = tmp_path / "a run"
    train = ["--data", str(small_dataset), "--output", str(run)]
    # Sums by another number of threads round differently: training and evaluation alike, in this process alone.
    assert main([*train, *SMALL, "--epochs", "1", "--processes", "1"]) == 0
    assert "done" in capsys.readouterr().out

    assert main([*train, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out

    evaluate = ["--evaluate", str(run / "last.safetensors"), "--data", str(small_dataset), "--device", "cpu"]
    assert main([*evaluate, "--output", str(tmp_path / "result")]) == 0
    out = capsys.readouterr().out
    assert "class-agnostic" in out and "false positives per frame" in out and "3 videos: 2 malignant" in out
    alone = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    during = json.loads((run / "evaluation.json").read_text())
    for name in ("overall", "agnostic", "recall", "lesions_in_frames", "videos"):
        assert alone[name] == during[name], name
    assert (tmp_path / "result" / "videos.csv").read_text() == (run / "videos.csv").read_text()
    assert main([*evaluate, "--output", str(tmp_path / "result")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*evaluate, "--protocol", "published"]) == 0
    assert "8 frames" in capsys.readouterr().out

    everything = ["--duplicate-iou", "1", "--output", str(tmp_path / "everything")]
    assert main([*evaluate, *everything]) == 0
    scored = json.loads((tmp_path / "everything" / "evaluation.json").read_text())
    assert (alone["duplicate_iou"], scored["duplicate_iou"]) == (0.5, 1.0)


def start(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_signals_save_once_and_set_the_exit_code(number, code, small_dataset, tmp_path):
    """Twice to the whole group, loader workers included, as terminals and torchrun do."""
    run = tmp_path / "run"
    arguments = ["--data", str(small_dataset), "--output", str(run), *SMALL, "--workers", "2", "--epochs", "500"]
    process = start(arguments)
    steps = run / "steps.csv"
    deadline = time.monotonic() + 240
    while not (steps.exists() and len(steps.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    for _ in range(2):
        os.killpg(process.pid, number)
        time.sleep(0.01)
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, out + err
    assert "--resume" in err and "Traceback" not in err
    done = len(steps.read_text().splitlines()) - 1
    saved = sorted((run / "checkpoints").iterdir())[-1]
    assert saved.name == f"step-{done:09d}"
