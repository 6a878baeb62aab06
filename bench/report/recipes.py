"""Tables of the recipe comparisons that `bench.studies.ablation` left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import tables
from stnet.errors import DataError

PATTERN = "ablation_*.json"
COLUMNS = (
    ("AP", "ap"),
    ("AP50", "ap50"),
    ("class-agnostic AP50", "agnostic_ap50"),
    ("the same, duplicates kept", "agnostic_ap50_with_duplicates"),
    ("recall at 0.5 false positives per frame", "recall_at_half"),
)


def variants_table(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per variant, in percent; the best value of each column is bold."""
    best = {
        key: max((row[key] for row in variants.values() if row[key] is not None), default=None) for _, key in COLUMNS
    }
    rows = [
        [name, f"{row['steps']:.0f}", *(_percent(row[key], row[key] == best[key]) for _, key in COLUMNS)]
        for name, row in variants.items()
    ]
    return tables.table(["recipe", "steps", *(title for title, _ in COLUMNS)], rows)


def sections(folder: Path) -> str:
    """Return a sentence and a table for every result file of a folder.

    Raises:
        DataError: for a file that is no such result.
    """
    return "\n\n".join(_section(path) for path in sorted(folder.glob(PATTERN)))


def _section(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        machine, jobs = content["machine"], content["jobs"]
        beside = f", {jobs} trainings side by side" if jobs > 1 else ""
        where = machine["gpu"]["name"] if machine.get("gpu") else f"{machine['cores']} cores of {machine['cpu']}"
        sentence = (
            f"`{content['data']}`, preset `{content['preset']}`, {content['minutes']:g} minutes each{beside}, "
            f"seed {content['seed']}, on {where}; torch {machine['versions']['torch']}; {machine['date']}:"
        )
        return f"{sentence}\n\n{variants_table(content['variants'])}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a result of bench.studies.ablation ({type(error).__name__}: {error})") from error


def _percent(value: float | None, best: bool) -> str:
    if value is None:
        return "-"
    return f"**{100 * value:.1f}**" if best else f"{100 * value:.1f}"
