"""The notebook in examples/ runs through as it is written, from stills to a model and a report."""

import json
from pathlib import Path

import matplotlib
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "stills_to_report.ipynb"


def test_the_notebook_goes_from_stills_to_a_report(tmp_path, monkeypatch, capsys):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)  # nothing but text is kept
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "DatasetIndex(" in said and "exit status 0" in said and "before Report(6 frames" in said
    assert names["run"].weights.exists() and len(names["run"].epochs) == 1
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "results").rglob("annotated.png"))) == 6
    assert len((tmp_path / "results" / "summary.csv").read_text().splitlines()) == 7
