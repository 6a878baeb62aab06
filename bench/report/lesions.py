"""How lesions are linked, and what their scores tell: tables from the studies of tracking and malignancy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import tables
from bench.report.results import convert_optional

COUNTS = ("count", "malignant", "found")
TRACKING_FILE, MALIGNANCY_FILE = "tracking.json", "malignancy.json"


def tracking(folder: Path) -> str:
    """Return a sentence and a table of identities by tracker; empty where there is no result file.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / TRACKING_FILE, "a result of bench.studies.tracking", _tracking) or ""


def malignancy(folder: Path) -> str:
    """Return a table of areas under the ROC curve by rule; empty where there is no result file.

    Raises:
        DataError: a file that is no such result.
    """
    return convert_optional(folder / MALIGNANCY_FILE, "a result of bench.studies.malignancy", _malignancy) or ""


def _tracking(content: Mapping[str, Any]) -> str:
    sentence = (
        f"What `{content['checkpoint']}` finds in {content['videos']} unseen phantoms of {content['frames']} frames "
        f"(seed {content['seed']}), the same findings for all; of ByteTrack and OC-SORT the best of several settings:"
    )
    rows = [
        [name, f"{found['idf1']:.3f}", str(found["switches"]), f"{found['hota']:.3f}"]
        for name, found in content["results"].items()
    ]
    return f"{sentence}\n\n{tables.table(['tracker', 'IDF1', 'identity switches', 'HOTA'], rows)}"


def _malignancy(content: Mapping[str, Any]) -> str:
    return "\n\n".join(_areas(content["results"], what) for what in ("videos", "lesions"))


def _areas(results: Mapping[str, Any], what: str) -> str:
    found = {name: result[what] for name, result in results.items()}
    rules = [rule for rule in max(found.values(), key=len) if rule not in COUNTS]
    rows = [
        [name, *(str(result[key]) for key in COUNTS), *(_area(result.get(rule)) for rule in rules)]
        for name, result in found.items()
    ]
    return tables.table([f"AUC of {what}", *COUNTS, *rules], rows)


def _area(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
