"""The classic operator and whole models on a CPU beside others: tables from files of `bench.studies`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import tables
from bench.report.results import convert_optional

CLASSIC_FILE = "cpu_classic.json"
MODEL_FILES = ("cpu_model.json", "cpu_model_lite0.json")
OWN = "stnet"
DIRECTIONS = ("forward", "with gradients")


def section(folder: Path) -> str:
    """Return the tables of the files that are there; empty where there is none.

    Raises:
        DataError: a file that is no such result.
    """
    classic = convert_optional(folder / CLASSIC_FILE, "a result of bench.studies.classic", _classic)
    models = [convert_optional(folder / name, "a result of bench.studies.processor", _model) for name in MODEL_FILES]
    return "\n\n".join(text for text in (classic, *models) if text)


def _classic(content: Mapping[str, Any]) -> str:
    rows = []
    for case, found in content["cases"].items():
        own = found[OWN]
        for number, (name, times) in enumerate(found.items()):
            cells = [_time(times.get(key), own[key], content["unit"]) for key in DIRECTIONS]
            rows.append(["" if number else case, name, *cells])
    header = ["classic operator, float32", "implementation", *DIRECTIONS]
    return f"{tables.machine_line(content['machine'])}.\n\n{tables.table(header, rows)}"


def _time(value: float | None, own: float, unit: str) -> str:
    return "-" if value is None else f"{value:.3g} {unit} ({tables.times(value / own)})"


def _model(content: Mapping[str, Any]) -> str:
    models = content["models"]
    own = models[OWN]["frames_per_second"]
    rows = [
        [
            f"commit {content['before']}" if name == "before" else name,
            f"{found['frames_per_second']:.3g}",
            tables.times(own / found["frames_per_second"]),
        ]
        for name, found in models.items()
    ]
    size = f"`{content['preset']}` at {content['height']} x {content['width']}"
    return (
        f"{tables.machine_line(content['machine'])}.\n\n{tables.table([size, 'frames/s', 'stnet is faster by'], rows)}"
    )
