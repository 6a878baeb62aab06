"""What models reach on stills under changed conditions: tables from files of `stnet.evaluation.conditions`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import tables
from bench.report.results import convert_optional

SOURCE = "a result of stnet.evaluation.conditions"

FILE = "conditions.json"
RECIPES_FILE = "conditions_defences.json"
"""Of trainings of equal time with and without the defences, see `bench.studies.ablation`."""

CONTINUED_FILE = "conditions_continued.json"
"""Of trainings that went on for an hour from the same weights: the shipped one is the mean of the first two."""

EQUAL_TIME_FILE = "conditions_equal_time.json"
"""Of means of two trainings of an hour each: plain ones, and one with the defences and one without."""

UNSEEN_MEANS_FILE = "conditions_unseen_means.json"
"""The same after trainings that have not seen the hospital of the stills."""

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


def section(folder: Path) -> str:
    """Return a table of all figures for each model; empty where there is no result file.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / FILE, SOURCE, _tables) or ""


def comparison(folder: Path, file: str) -> str:
    """Return one table with a column for each model, and one of how far they are ahead of the first where it is told.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / file, SOURCE, _side_by_side) or ""


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


def _side_by_side(content: Mapping[str, Any]) -> str:
    models = content["models"]
    (first, conditions), ahead = next(iter(models.items())), content.get("ahead_of_the_first")
    rows = [
        [name, *(f"{_percent(found[name]['ap50'])}, {_count(found[name]['alarms'])}" for found in models.values())]
        for name in conditions
    ]
    compared = tables.table(["AP50 in %, false positives an image", *models], rows)
    return f"{compared}\n\n{_ahead(first, ahead)}" if ahead else compared


def _ahead(first: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    measures = list(next(iter(models.values())))
    rows = [[measure, *(_points(found[measure]) for found in models.values())] for measure in measures]
    return tables.table([f"points of AP50 ahead of {first}", *models], rows)


def _points(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    if figure["interval"] is None:
        return f"{100 * figure['value']:+.1f}"
    lower, upper = figure["interval"]
    return f"{100 * figure['value']:+.1f} ({100 * lower:+.1f} to {100 * upper:+.1f})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
