"""The stages of the GPU suite: what each runs and what it keeps of it."""

import csv
import json
import os
import re
import shlex
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bench.gpu_suite.processes import Ended, run_logged
from bench.timing import baselines, limits
from stnet.environment import describe
from stnet.files import replacing
from stnet.kernels.triton.launch_table import TABLE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
SETTLING_SECONDS = 20.0  # for a stage to write its results after its last benchmark
OUTCOME = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
# What pytest writes of a test, and what it writes with several processes.
TEST_LINE = re.compile(rf"^(tests/.*?) ({OUTCOME})\b", re.MULTILINE)
PARALLEL_TEST_LINE = re.compile(rf"^\[gw\d+\] +\[ *\d+%\] ({OUTCOME}) (tests/.*?) *$", re.MULTILINE)
REASON_LINE = re.compile(r"^(?:FAILED|ERROR) (.+? - .*)$", re.MULTILINE)
SLOW_LINE = re.compile(r"^(\d+\.\d+s (?:call|setup) +tests/.*?) *$", re.MULTILINE)
MOST_REASONS = 40
GPU_MARK = "pytest.mark.gpu"
MOST_PROCESSES = 12  # tests and tuner mostly wait for the compiler, and every case compiles kernels of its own
# Nearly all that a cold cache has to compile, for widths that the published model does not have and, of candidates, for
# bfloat16, which has the rows of float16: last, as time allows.
OTHER_WIDTHS = (
    "(test_matches_float64 and not (32-2 or 32-4)) or "
    "(test_every_candidate_on_the_device and not (32-torch.float16 or 32-torch.float32))"
)
PHANTOMS = {"cuda": (24, 6, 24), "cpu": (2, 1, 6)}  # training videos, validation videos, frames of each
PHANTOM_SIZE = {"cuda": (128, 160), "cpu": (64, 64)}
TRAINING = {
    "cuda": "--preset tiny --precision bfloat16 --epochs 6 --clips-per-epoch 1000 --batch-size 16",
    "cpu": "--preset tiny --epochs 1 --clips-per-epoch 2 --batch-size 1 --model queries=10 image_size=64",
}


class StageError(Exception):
    """A stage that came to nothing, or to less than it should have: `result` is what there is."""

    def __init__(self, reason: str, result: dict[str, Any] | None = None):
        super().__init__(reason)
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the stages share.

    Attributes:
        device: "cuda" or "cpu".
        size: of the benchmarks, see `bench.shapes.SIZES`.
        dtypes: of the benchmarks, comma-separated; empty: their default.
        data: dataset to train on; None: phantoms are made.
        training: options of the training command; empty: TRAINING.
        scratch: folder for files that are not results.
        pictures: archive of pictures to add to.
        log: everything the stages print.
        interrupted: set when a stage's command was stopped because the suite was told to stop.
    """

    device: str
    size: str
    dtypes: str
    data: Path | None
    training: str
    scratch: Path
    pictures: Path
    log: BinaryIO
    interrupted: threading.Event = field(default_factory=threading.Event)

    @property
    def launch_table(self) -> Path:
        """What the tuner found; there once that stage has run."""
        return self.scratch / "launch_table.json"

    def run(self, *command: str, seconds: float, threads: int | None = None) -> Ended:
        """Run a Python module or script with the tuned launch table in force; `threads` for PyTorch."""
        variables = {TABLE_VARIABLE: str(self.launch_table)} if self.launch_table.exists() else {}
        variables |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        ended = run_logged([sys.executable, *command], self.log, seconds, folder=ROOT, variables=variables)
        if ended.interrupted:
            self.interrupted.set()
        return ended


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the suite.

    Attributes:
        name: its key in the results.
        share: seconds that it needs with a cold cache; less where time is short, more where it is ample.
        least: seconds without which it does not begin.
        spare: it gets only what the others do not need.
        run: gives its result, from the context and its seconds.
    """

    name: str
    share: float
    least: float
    run: Callable[[Context, float], dict[str, Any]]
    spare: bool = False


def seconds_of(stage: Stage, later: Sequence[Stage], left: float) -> float:
    """Return the seconds of a stage, of those left for it and the later ones."""
    remaining = (stage, *later)
    wanted = sum(x.share for x in remaining)
    if stage.spare or left >= wanted:
        return left * stage.share / wanted
    return stage.share * min(1.0, left / sum(x.share for x in remaining if not x.spare))


def environment(context: Context, seconds: float) -> dict[str, Any]:
    """Machine, versions, commit, the rates it reaches, and which baselines are missing."""
    device = torch.device(context.device)
    reached = limits.measure_limits(device)
    if context.device == "cuda":
        torch.cuda.empty_cache()  # the other stages run in processes of their own
    return {**describe(device), "limits": reached, "missing": baselines.missing()}


def gpu_tests(selection: str, *, decisive: bool) -> Callable[[Context, float], dict[str, Any]]:
    """Return a stage that runs those tests marked `gpu` which pytest's -k selects; on a CPU all of them are skipped.

    Where they are decisive, running out of time is a failure; else what has been tested counts.
    """

    def run(context: Context, seconds: float) -> dict[str, Any]:
        options = ["-vv", "-m", "gpu", "-k", selection, "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        options += ["--durations=20", "--durations-min=1", *files_with_gpu_tests()]
        cores, processes = os.cpu_count() or 1, 1
        if context.device == "cuda" and find_spec("xdist"):
            processes = _compiling_processes()
            options += ["-n", str(processes), "--dist", "loadgroup"]
        ended = context.run("-m", "pytest", *options, seconds=seconds, threads=max(1, cores // processes))
        outcomes = outcomes_in(ended.output)
        counts = {kind: list(outcomes.values()).count(kind) for kind in sorted(set(outcomes.values()))}
        bad = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
        result = {"counts": counts, "failed": bad, "reasons": REASON_LINE.findall(ended.output)[:MOST_REASONS]}
        result["slowest"] = SLOW_LINE.findall(ended.output)
        if ended.out_of_time and not decisive and outcomes and not bad:
            return result | {"note": f"stopped when its time was over, after {len(outcomes)} tests"}
        if ended.out_of_time:
            raise StageError(f"time ran out after {len(outcomes)} tests", result)
        if ended.status != 0:
            raise StageError(f"pytest exit status {ended.status}: {len(bad)} tests failed", result)
        return result

    return run


def _compiling_processes() -> int:
    return min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) * 3 // 4))


def files_with_gpu_tests() -> list[str]:
    """Test files in which something is marked: every process imports all that it is given, half of it in vain."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if GPU_MARK in path.read_text(encoding="utf-8")]


def outcomes_in(output: str) -> dict[str, str]:
    """Outcome of every test that pytest's verbose output names, with one process or several."""
    parallel = {name: outcome for outcome, name in PARALLEL_TEST_LINE.findall(output)}
    return {**dict(TEST_LINE.findall(output)), **parallel}


def tuning(context: Context, seconds: float) -> dict[str, Any]:
    """Tune the launch table, this GPU's measured rows first; nothing to tune on a CPU."""
    if context.device != "cuda":
        return {"note": "no GPU to tune for", "lines": [], "table": None}
    begin = (seconds - SETTLING_SECONDS) / 60
    arguments = ["--output", str(context.launch_table), "--minutes", f"{begin:.2f}", "--seconds", "0.05"]
    arguments += ["--processes", str(_compiling_processes())]
    ended = context.run("-m", "stnet.kernels.tune", *arguments, seconds=seconds + SETTLING_SECONDS)
    table = _read_json(context.launch_table)
    told = (" ms", "WRONG", "FAILED", "error:")
    lines = [line for line in ended.output.splitlines() if any(word in line for word in told)]
    result = {"lines": lines, "table": table}
    if ended.out_of_time and table:
        return result | {"note": "stopped in the middle of a key; those before it are measured"}
    failed = [line for line in lines if line.startswith("error:")]
    if failed:
        raise StageError(f"{len(failed)} keys could not be tuned, the first: {failed[0]}", result)
    if ended.status != 0:
        raise StageError(f"the tuner's exit status is {ended.status}", result)
    return result


def restore_launch_table(context: Context, result: dict[str, Any] | None) -> None:
    """Put an earlier run's tuned table where the stages look for it."""
    if result and result.get("table"):
        context.launch_table.write_text(json.dumps(result["table"]), encoding="utf-8")


def benchmarks(*files: str) -> Callable[[Context, float], dict[str, Any]]:
    """Return a stage that runs timing suites; when time runs out those that are left are skipped and listed.

    Benchmarks of others may fail: that is a result. One of ours may not.
    """

    def run(context: Context, seconds: float) -> dict[str, Any]:
        out = context.scratch / "benchmarks.json"
        out.unlink(missing_ok=True)
        options = [f"--bench-device={context.device}", f"--bench-size={context.size}", f"--benchmark-json={out}"]
        options += [f"--bench-seconds={max(1.0, seconds - SETTLING_SECONDS):.0f}", "-p", "no:cacheprovider"]
        if context.dtypes:
            options.append(f"--bench-dtypes={context.dtypes}")
        if context.size == "smoke":
            options.append("--bench-budget=0.01")
        paths = [f"bench/timing/{name}.py" for name in files]
        ended = context.run("-m", "pytest", *paths, *options, "--benchmark-quiet", seconds=seconds + SETTLING_SECONDS)
        result = _read_json(out)
        if result is None:
            raise StageError("time ran out" if ended.out_of_time else f"no results (exit status {ended.status})")
        failed = [entry for entry in result["without_time"] if entry["outcome"] == "failed"]
        own = [entry["benchmark"] for entry in failed if entry["implementation"].startswith("stnet")]
        if ended.out_of_time:
            raise StageError(f"time ran out after {len(result['benchmarks'])} benchmarks", result)
        if own:
            raise StageError(f"{len(own)} of our own benchmarks failed, the first is {own[0]}", result)
        return result

    return run


def training(context: Context, seconds: float) -> dict[str, Any]:
    """Make a real training: losses, metrics per epoch, and its pictures in the archive."""
    deadline = time.monotonic() + seconds - SETTLING_SECONDS
    data = context.data or _phantoms(context, seconds)
    folder = _fresh(context.scratch, "training")
    options = shlex.split(context.training or TRAINING[context.device])
    arguments = ("--data", str(data), "--output", str(folder), "--device", context.device, *options)
    ended = context.run("-m", "stnet", "train", *arguments, seconds=deadline - time.monotonic())
    steps, epochs = _read_csv(folder / "steps.csv"), _read_csv(folder / "metrics.csv")
    result = {"options": options, "data": "given" if context.data else "phantoms", "steps": len(steps)}
    result |= {"first_step": steps[0] if steps else None, "last_step": steps[-1] if steps else None, "epochs": epochs}
    add_pictures(context.pictures, {f"training/{path.name}": path for path in sorted(folder.glob("*.png"))})
    if ended.out_of_time and steps:
        result["note"] = "stopped when its time was over"
    elif ended.status != 0:
        raise StageError(f"the training command's exit status is {ended.status}", result)
    return result


STAGES = (
    Stage(name="environment", share=6, least=1, run=environment),
    Stage(name="gpu tests", share=150, least=20, run=gpu_tests(f"not ({OTHER_WIDTHS})", decisive=True)),
    Stage(name="tuning", share=75, least=30, run=tuning),
    Stage(name="operators", share=90, least=30, run=benchmarks("bench_operators")),
    Stage(
        name="inference",
        share=80,
        least=30,
        run=benchmarks("bench_inference", "bench_live", "bench_growth", "bench_layers"),
    ),
    Stage(name="training step", share=50, least=30, run=benchmarks("bench_training")),
    Stage(name="training", share=60, least=45, run=training, spare=True),
    Stage(
        name="gpu tests of other widths",
        share=90,
        least=20,
        run=gpu_tests(OTHER_WIDTHS, decisive=False),
        spare=True,
    ),
)


def add_pictures(archive: Path, pictures: dict[str, Path]) -> None:
    """Replace or add pictures, by their names in the archive; the archive is whole at any time."""
    if not pictures:
        return
    kept: dict[str, bytes] = {}
    if archive.exists():
        with zipfile.ZipFile(archive) as old:
            kept = {name: old.read(name) for name in old.namelist() if name not in pictures}
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as new:
        for name, content in kept.items():
            new.writestr(name, content)
        for name, path in pictures.items():
            new.write(path, name)


def _phantoms(context: Context, seconds: float) -> Path:
    folder = _fresh(context.scratch, "phantoms")
    train, val, frames = PHANTOMS[context.device]
    height, width = PHANTOM_SIZE[context.device]
    sizes = ("--train-videos", str(train), "--val-videos", str(val), "--frames", str(frames))
    shape = ("--height", str(height), "--width", str(width))
    ended = context.run("-m", "stnet.data.phantom", str(folder), *sizes, *shape, seconds=seconds / 2)
    if ended.status != 0:
        raise StageError(f"the phantom generator's exit status is {ended.status}")
    return folder


def _fresh(scratch: Path, name: str) -> Path:
    """Return a folder name not used by an attempt before."""
    return next(path for i in range(1000) if not (path := scratch / f"{name}-{i}").exists())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
