"""What models reach on stills under changed conditions: tables from files of `stnet.evaluation.conditions`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import tables
from bench.report.results import convert_optional

FILE = "conditions.json"
RECIPES_FILE = "conditions_defences.json"
"""Of trainings of equal time with and without the defences, see `bench.studies.ablation`."""

CONTINUED_FILE = "conditions_continued.json"
"""Of trainings that went on for an hour from the same weights: the shipped one is the mean of the first two."""

UNSEEN_FILE = "conditions_unseen.json"
"""Of trainings that have not seen the hospital of the stills, two of each time."""

COLUMNS = {
    "AP50": "ap50",
    "AP75": "ap75",
    "small AP50": "small_ap50",
    "recall": "recall",
    "of small ones": "small_recall",
    "of several": "several_recall",
}
"""Percentages, by title."""


def section(folder: Path, file: str = FILE) -> str:
    """Return a table for each model; empty where there is no result file.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / file, "a result of stnet.evaluation.conditions", _tables) or ""


def _tables(content: Mapping[str, Any]) -> str:
    return "\n\n".join(_table(model, found) for model, found in content["models"].items())


def _table(model: str, conditions: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, *(_percent(result[key]) for key in COLUMNS.values()), f"{result['small']}, {result['several']}"]
        + [_count(result["alarms"]), _count(result["lesion_free_alarms"])]
        for name, result in conditions.items()
    ]
    header = [f"`{model}`, %", *COLUMNS, "small, several", "false positives", "boxes without lesion"]
    return tables.table(header, rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
