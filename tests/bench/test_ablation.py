"""The variants of the ablation differ in what their names say; results are kept, and not mixed."""

import json
from pathlib import Path

import pytest

from bench.studies import ablation
from stnet.training.config import TrainConfig
from stnet.training.options import build_parser, configured, given_settings
from stnet.training.run_folder import RunFolder

OUTCOME = {"step": 7, "overall": {"ap": 0.1, "ap50": 0.2, "ap75": 0.0}, "agnostic": {"ap": 0.1, "ap50": 0.3, "ap75": 0}}
OUTCOME |= {"lesions_in_frames": {"recall_at": {"0.5": None}}, "videos": {"auc": 0.5}}


def differing(one: TrainConfig, other: TrainConfig) -> set[str]:
    return {name for name in vars(one) if getattr(one, name) != getattr(other, name)}


@pytest.mark.parametrize("preset", ["tiny", "improved"])
def test_variants_change_what_they_say(preset):
    made = {name: TrainConfig.preset(preset).replace(**c) for name, c in ablation.variants(preset).items()}
    baseline, improved = made["published, learning rate x1"], made["improved"]
    switches = {"augmentation", "optimizer", "class_loss", "auxiliary_repeats", "schedule", "ema_decay", "warmup_steps"}
    assert differing(baseline, improved) == switches
    published = TrainConfig()
    assert all(getattr(baseline, name) == getattr(published, name) for name in (*switches, "denoising", "freeze"))
    assert baseline.auxiliary_losses and {config.model for config in made.values()} == {baseline.model}
    for name, config in made.items():
        if " with" in name and "phantoms" not in name:
            assert len(differing(config, improved if name.startswith("improved") else baseline)) == 1, name
    assert len(set(map(repr, made.values()))) == len(made)


def test_commands_train_that_variant(tmp_path):
    options = ablation._parser().parse_args(["--data", "d", "--minutes", "2.5", "--output", "o", "--seed", "3"])
    for name, changes in ablation.variants("tiny").items():
        command = ablation._command(options, name, changes, RunFolder(tmp_path / "run"))
        parsed = build_parser().parse_args(command[2:])
        config = configured(parsed.preset, given_settings(parsed))
        assert all(getattr(config, name) == value for name, value in changes.items())
        assert (config.minutes, config.seed, config.evaluate_every) == (2.5, 3, ablation.ENDLESS)


def test_variants_of_the_shipped_model_differ_in_weights_stills_or_augmentation(tmp_path):
    arguments = ["--preset", "lite0", "--data", "stills", "phantoms", "--minutes", "1", "--output", "o"]
    options = ablation._parser().parse_args(arguments)
    made, folders = {}, {}
    for name, changes in ablation.variants("lite0").items():
        parsed = build_parser().parse_args(ablation._command(options, name, changes, RunFolder(tmp_path / "run"))[2:])
        made[name] = configured(parsed.preset, given_settings(parsed))
        folders[name] = [folder.name for folder in parsed.data]
    plain = made.pop("lite0")
    assert {name: differing(config, plain) for name, config in made.items()} == {
        "lite0 without ImageNet weights": {"backbone_weights", "model"},
        "lite0 without real stills": set(),
        "lite0 without defences": {"without_defences"},
        "lite0 with published augmentation": {"augmentation"},
        "lite0 with improved augmentation": {"augmentation"},
    }
    assert made["lite0 without ImageNet weights"].model.backbone_norm == "batch"
    assert folders.pop("lite0 without real stills") == ["phantoms"]
    assert all(names == ["stills", "phantoms"] for names in folders.values())
    scoring = ablation._scoring(options, RunFolder(tmp_path / "run"), RunFolder(tmp_path / "scored"))
    assert [folder.name for folder in build_parser().parse_args(scoring[2:]).data] == ["stills"]


@pytest.fixture
def trainings(monkeypatch):
    """Replaces training by writing what a finished run leaves; the commands are kept, the third one fails."""
    commands = []

    def train(command: list[str], jobs: int, log: Path) -> int:
        commands.append(command)
        folder = RunFolder(Path(command[command.index("--output") + 1]))
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config_file.write_text("{}")
        if "--evaluate" in command:
            found = {"agnostic": {"ap50": 0.25}} if "--duplicate-iou" in command else OUTCOME
            folder.evaluation_file.write_text(json.dumps(found))
            return 0
        folder.append(folder.metrics_file, {"epoch": 1, "step": 7, "seconds": 60.0})
        return int(len(commands) == 4)

    monkeypatch.setattr(ablation, "_train", train)
    return commands


def test_goes_on_after_a_failure_and_keeps_what_is_done(trainings, tmp_path, capsys):
    output = tmp_path / "results" / "a.json"
    arguments = ["--data", str(tmp_path), "--minutes", "1", "--output", str(output), "--device", "cpu"]
    arguments += ["--only", "improved", "improved with denoising"]
    assert ablation.main(arguments) == 1
    assert list(json.loads(output.read_text())["variants"]) == ["improved"]
    assert ablation.main(arguments) == 0
    assert ["--resume" in command for command in trainings] == [False, False, False, False, True, False, False]
    assert [command[command.index("--duplicate-iou") + 1] for command in (trainings[2], trainings[6])] == ["1", "1"]
    found = json.loads(output.read_text())["variants"]["improved with denoising"]
    assert (found["agnostic_ap50"], found["agnostic_ap50_with_duplicates"]) == (0.3, 0.25)
    assert found["steps"] == 7 and found["settings"]["denoising"] > 0 and found["recall_at_half"] is None
    assert "improved with denoising" in capsys.readouterr().out
    assert ablation.main([*arguments, "--seed", "1"]) == 2
    assert "seed 0, not 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data"),
        (["--preset", "lite0", "--data", "d", "--minutes", "1", "--output", "o"], "name both"),
        (["--data", "d", "--minutes", "0", "--output", "o"], "--minutes 0"),
        (["--data", "d", "--minutes", "1", "--output", "o", "--only", "magic"], "'magic'"),
    ],
)
def test_wrong_use(arguments, message, capsys):
    assert ablation.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_foreign_result_file_is_left_alone(tmp_path, capsys):
    file = tmp_path / "notes.json"
    file.write_text("[1]")
    assert ablation.main(["--data", "d", "--minutes", "1", "--output", str(file)]) == 2
    assert "not a result" in capsys.readouterr().err and file.read_text() == "[1]"
