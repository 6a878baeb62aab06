"""Training looks at its data first: compactly, with remedies, and goes on where it can."""

import io
import json
import shutil

import pytest
from rich.console import Console

from stnet.console import Reporter
from stnet.errors import ConfigError
from stnet.training import runs
from stnet.training.cli import main
from stnet.training.data_check import report_findings


@pytest.fixture
def dataset(small_dataset, tmp_path):
    return shutil.copytree(small_dataset, tmp_path / "data")


def change(dataset, edit) -> None:
    content = json.loads((dataset / "train.json").read_text())
    edit(content)
    (dataset / "train.json").write_text(json.dumps(content))


def turn_boxes(content) -> None:
    for entry in content["annotations"][:5]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x + w, y, -w, h]


def said(dataset) -> list[str]:
    text = io.StringIO()
    report_findings(dataset, Reporter(console=Console(file=text, soft_wrap=True, width=500)))
    return text.getvalue().splitlines()


def test_a_clean_set_needs_no_words(dataset):
    assert said(dataset) == []


def test_one_line_per_kind_with_count_entry_and_remedy(dataset):
    change(dataset, turn_boxes)
    (dataset / "rawframes" / "train_1" / "000002.png").unlink()
    head, *lines = said(dataset)
    assert "6 findings" in head and "stnet.data.check" in head
    assert len(lines) == 2
    boxes = next(line for line in lines if "5 x " in line)
    assert "train.json: annotations" in boxes and "--repair" in boxes
    assert any("missing frame" in line and "train_1/000002.png" in line for line in lines)


@pytest.mark.parametrize("option", [[], ["--no-check"]])
def test_findings_do_not_stop_a_training_that_is_possible(option, dataset, tmp_path, capsys, monkeypatch):
    def begin(*_, **__):
        raise ConfigError("the training begins")

    monkeypatch.setattr(runs, "Trainer", begin)
    change(dataset, turn_boxes)
    assert main(["--data", str(dataset), "--output", str(tmp_path / "run"), *option]) == 2
    captured = capsys.readouterr()
    assert "the training begins" in captured.err and ("5 findings" in captured.out) == (option == [])


def test_a_folder_that_is_taken_is_refused_before_the_data_is_looked_at(dataset, tmp_path, capsys):
    change(dataset, turn_boxes)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert main(["--data", str(dataset), "--output", str(tmp_path / "taken")]) == 2
    captured = capsys.readouterr()
    assert "not empty" in captured.err and "findings" not in captured.out


def test_what_makes_training_impossible_is_told_and_ends_with_2(dataset, tmp_path, capsys):
    (dataset / "rawframes" / "train_1" / "000002.png").unlink()
    assert main(["--data", str(dataset), "--output", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert "missing frame" in captured.out and captured.err.startswith("error: ") and "000002.png" in captured.err
    assert not (tmp_path / "run").exists()
