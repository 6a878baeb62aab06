"""What the shipped model reaches on validation stills: tables from files of `train.py --evaluate MODEL --stills`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import tables
from bench.report.results import convert_optional
from stnet.evaluation.figures_table import RATES, percent, rate
from stnet.evaluation.image_metrics import FIGURES, Figure

FILE = "model_stills.json"
WHAT = "an evaluation on stills"

SHOWN = (
    "ap50",
    "two_class_ap50",
    "ap75",
    "recall_at_0.1_fp",
    "recall_at_0.5_fp",
    "precision_at_recall_0.8",
    "fp_at_recall_0.8",
    "precision_at_recall_0.9",
    "fp_at_recall_0.9",
    "recall_of_16",
    "small_ap50",
    "several_ap50",
)
"""Figures of the page, in the words of `stnet.evaluation.image_metrics.FIGURES`."""

COUNTS = ("images", "lesions", "lesion_free", "patients")


def section(folder: Path) -> str:
    """Return tables of the figures by set and of the operating points; empty where there is no result file.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / FILE, WHAT, _tables) or ""


def headline(folder: Path) -> tuple[str, str] | None:
    """Return recall and false positives an image at the balanced operating point, with intervals.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / FILE, WHAT, lambda content: _point(_points(content)["balanced"]))


def _tables(content: Mapping[str, Any]) -> str:
    columns = {"all": content["images"], **content["sets"]}
    rows = [[name.replace("_", " "), *(str(part[name]) for part in columns.values())] for name in COUNTS]
    rows += [[FIGURES[name], *(_shown(name, part["figures"][name]) for part in columns.values())] for name in SHOWN]
    rows.append(["malignant against benign, AUC of found lesions", *(_auc(part) for part in columns.values())])
    points = [[name, *_point(result), _free_boxes(result)] for name, result in _points(content).items()]
    figures = tables.table(["percent, or a count per image; 95 % intervals by patient", *columns], rows)
    header = ["operating point", "recall, %", "false positives an image", "boxes in images without lesion"]
    return f"{figures}\n\n{tables.table(header, points)}"


def _points(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return content["chosen_on_the_other_half"]["points"]


def _point(result: Mapping[str, Any]) -> tuple[str, str]:
    return percent(Figure(**result["recall"])), rate(Figure(**result["per_image"]))


def _free_boxes(result: Mapping[str, Any]) -> str:
    return "-" if result["per_lesion_free"]["value"] is None else str(result["lesion_free_boxes"])


def _shown(name: str, figure: Mapping[str, Any]) -> str:
    return (rate if name.startswith(RATES) else percent)(Figure(**figure))


def _auc(part: Mapping[str, Any]) -> str:
    return "-" if part["malignancy_auc"] is None else f"{part['malignancy_auc']:.3f}"
