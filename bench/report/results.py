"""Result files read back: one run of the suites, from pytest-benchmark's JSON or from the GPU suite's."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from stnet.errors import DataError

T = TypeVar("T")
RESULTS = Path(__file__).parents[1] / "results"
CPU_FILE, GPU_FILE, HOST_FILE = "cpu_benchmark.json", "gpu_suite.json", "host_time.json"
OTHER_GPUS = "gpu_suite_*.json"
BENCHMARK_STAGES = ("operators", "inference", "training step")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One implementation in one case: what it was (`info`) and its quantiles of wall time in seconds (`stats`)."""

    name: str
    group: str
    info: dict[str, Any]
    stats: dict[str, float]

    @property
    def seconds(self) -> float:
        """Median time: on a GPU of the device with a cold L2 cache, else of the wall clock."""
        return self.info.get("device_cold", self.stats["median"])

    def __getitem__(self, key: str) -> Any:
        return self.info.get(key)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Measurements of one machine; `without_time` lists what was missing, wrong or skipped, with the reason.

    `stages` are the GPU suite's, empty for a run of pytest alone, and so are `predictions`: what was expected before.
    """

    machine: dict[str, Any]
    measurements: tuple[Measurement, ...]
    without_time: tuple[dict[str, str], ...]
    stages: dict[str, dict[str, Any]]
    predictions: tuple[dict[str, Any], ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return bool(self.machine.get("gpu"))

    def select(self, **wanted: Any) -> list[Measurement]:
        """Measurements whose info has these values."""
        return [m for m in self.measurements if all(m[key] == value for key, value in wanted.items())]

    def find(self, **wanted: Any) -> Measurement | None:
        """Return the first measurement with these values, or None."""
        return next(iter(self.select(**wanted)), None)


def load(path: Path) -> Run:
    """Read a result file of either kind.

    Raises:
        DataError: the file cannot be read or is no result file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _suite(content) if "stages" in content else _pytest((content,), {})
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a result file of the benchmarks ({type(error).__name__}: {error})") from error


def convert_optional(path: Path, what: str, convert: Callable[[Any], T]) -> T | None:
    """Return what a result file that need not be there is converted to; None where it is not.

    Args:
        path: of the file.
        what: it is, for messages.
        convert: its content.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    if not path.exists():
        return None
    try:
        return convert(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not {what} ({type(error).__name__}: {error})") from error


def load_folder(folder: Path) -> list[Run]:
    """Return the runs a results folder holds: the GPU's, those of other GPUs, the CPU's; each may be missing."""
    others = sorted(path.name for path in folder.glob(OTHER_GPUS))
    return [load(folder / name) for name in (GPU_FILE, *others, CPU_FILE) if (folder / name).exists()]


def grouped(measurements: Iterable[Measurement], key: Callable[[Measurement], Any]) -> dict[Any, list[Measurement]]:
    """Measurements by key, in the order of appearance."""
    groups: dict[Any, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(key(measurement), []).append(measurement)
    return groups


def _suite(content: dict[str, Any]) -> Run:
    stages = content["stages"]
    parts = [stages[name]["result"] for name in BENCHMARK_STAGES if stages.get(name, {}).get("result")]
    parts = [part for part in parts if "benchmarks" in part]
    run = _pytest(parts, stages)
    machine = stages.get("environment", {}).get("result") or run.machine
    return replace(run, machine=machine, predictions=tuple(content.get("predictions", ())))


def _pytest(parts: Iterable[dict[str, Any]], stages: dict[str, Any]) -> Run:
    parts = tuple(parts)
    entries = [entry for part in parts for entry in part["benchmarks"]]
    return Run(
        machine=parts[0]["machine_info"] if parts else {},
        measurements=tuple(
            Measurement(name=e["name"], group=e["group"], info=e["extra_info"], stats=e["stats"]) for e in entries
        ),
        without_time=tuple(entry for part in parts for entry in part.get("without_time", ())),
        stages=stages,
    )
