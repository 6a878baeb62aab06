"""Everything that is to be known about a GPU, in one command.

    python -m bench.gpu_suite --output gpu_results --minutes 9
    python -m bench.gpu_suite --output gpu_results --minutes 9 --resume --stages inference,training

Stages run in order of worth. Each stage's result is in gpu_suite.json when it ends, and what is expected of the
experiments before they are measured. Told to stop (Ctrl-C, or SIGTERM as `timeout` sends it), the suite keeps what the
stage under way has by then; --resume keeps what is done and runs the rest. The folder holds gpu_suite.json, suite.log
and pictures.zip. Nothing outside of the installed package and this folder is needed.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu_suite.stages import (
    STAGES,
    Context,
    Stage,
    StageError,
    add_pictures,
    restore_launch_table,
    seconds_of,
)
from bench.report import experiments, plots, summary
from bench.report.results import GPU_FILE, load
from bench.timing.shapes import DTYPES, SIZES
from stnet.command_line import INTERRUPTED, run
from stnet.environment import COMMIT_VARIABLE
from stnet.errors import ConfigError
from stnet.files import write_json

LOG_FILE, PICTURES_FILE = "suite.log", "pictures.zip"
RESERVED_SECONDS = 15.0  # for pictures and the final table
SETTINGS = ("device", "size")  # have to agree between a run and its resumption


def run_stages(chosen: Sequence[Stage], context: Context, results: dict[str, Any], path: Path, deadline: float) -> None:
    """Run stages until the deadline (of `time.monotonic`), saving the results after each.

    Raises:
        KeyboardInterrupt: told to stop; the results of the stage under way, as far as there are some, are saved.
    """
    for number, stage in enumerate(chosen):
        left = deadline - time.monotonic()
        if left < stage.least:
            results["stages"][stage.name] = {"status": "skipped", "reason": f"{left:.0f} s left", "seconds": 0.0}
        else:
            print(f"{stage.name} ...", flush=True)
            seconds = max(stage.least, seconds_of(stage, chosen[number + 1 :], left))
            results["stages"][stage.name] = _run_stage(stage, context, seconds)
        write_json(path, results)
        print(f"{stage.name}: {summary.stage_line(stage.name, results['stages'][stage.name])}", flush=True)
        if context.interrupted.is_set():
            raise KeyboardInterrupt


def _run_stage(stage: Stage, context: Context, seconds: float) -> dict[str, Any]:
    begun = time.monotonic()
    outcome: dict[str, Any] = {"status": "done", "result": None}
    try:
        outcome["result"] = stage.run(context, seconds)
    except StageError as error:
        outcome |= {"status": "failed", "reason": str(error), "result": error.result}
    except KeyboardInterrupt:
        context.interrupted.set()
    except Exception as error:  # whatever it is, the stages after it are worth their time
        outcome |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    if context.interrupted.is_set():
        reason = f"interrupted ({outcome['reason']})" if outcome.get("reason") else "interrupted"
        outcome |= {"status": "failed", "reason": reason}
    return {**outcome, "seconds": round(time.monotonic() - begun, 1)}


def _earlier(path: Path, settings: dict[str, str], resume: bool) -> dict[str, Any]:
    """Results to go on with.

    Raises:
        ConfigError: there are results and no --resume, they cannot be read, or were made with other settings.
    """
    if not path.exists():
        return {"settings": settings, "predictions": experiments.predictions(), "stages": {}}
    if not resume:
        raise ConfigError(f"--output: {path} exists; add --resume to go on, or choose another folder")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        known = results["settings"], results["stages"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"--resume: {path} is no result file of this suite ({error})") from error
    for name in SETTINGS:
        if known[0].get(name) != settings[name]:
            raise ConfigError(f"--resume: {path} was made with {name} {known[0].get(name)}, not {settings[name]}")
    return results


def _choose(names: str | None, results: dict[str, Any]) -> list[Stage]:
    """Return the stages to run: those named, else all that are not done.

    Raises:
        ConfigError: an unknown name.
    """
    known = {stage.name: stage for stage in STAGES}
    if names is None:
        return [s for s in STAGES if results["stages"].get(s.name, {}).get("status") != "done"]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--stages: {name!r} is none of {', '.join(known)}")
    return [stage for stage in STAGES if stage.name in wanted]


def _interrupt(number, frame):
    """Stop once: `timeout` sends its signal twice, and the second would end what saves the results."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 all stages done, 1 some not, 2 wrong use, 130 interrupted."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + 60.0 * options.minutes
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = run(lambda: _run(options, deadline))
        if status == INTERRUPTED:
            print("go on with --resume", file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(options: argparse.Namespace, deadline: float) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here; --device cpu runs the flow at small sizes")
    if options.commit:
        os.environ[COMMIT_VARIABLE] = options.commit
    settings = {"device": options.device, "size": options.size or ("paper" if options.device == "cuda" else "smoke")}
    path = options.output / GPU_FILE
    results = _earlier(path, settings, options.resume)
    chosen = _choose(options.stages, results)
    options.output.mkdir(parents=True, exist_ok=True)
    with (
        (options.output / LOG_FILE).open("ab") as log,
        tempfile.TemporaryDirectory(prefix="stnet-suite-") as scratch,
    ):
        context = Context(
            device=options.device,
            size=settings["size"],
            dtypes=options.dtypes,
            data=options.data and options.data.resolve(),
            training=options.training,
            scratch=Path(scratch),
            pictures=options.output / PICTURES_FILE,
            log=log,
        )
        restore_launch_table(context, results["stages"].get("tuning", {}).get("result"))
        run_stages(chosen, context, results, path, deadline - RESERVED_SECONDS)
        print("\n" + summary.suite_summary(load(path)), flush=True)
        _add_plots(context, path)
    done = all(results["stages"].get(stage.name, {}).get("status") == "done" for stage in chosen)
    return 0 if done else 1


def _add_plots(context: Context, path: Path) -> None:
    folder = context.scratch / "plots"
    folder.mkdir()
    drawn = plots.draw_all(load(path), folder)
    add_pictures(context.pictures, {f"plots/{picture.name}": picture for picture in drawn})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(stage.name for stage in STAGES)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the three result files")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: %(default)g)")
    parser.add_argument("--stages", metavar="A,B", help=f"run these alone, again if they are done: {names}")
    parser.add_argument("--resume", action="store_true", help="keep the stages that are done and run the others")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--size", choices=SIZES, help="sizes measured; default: paper on a GPU, smoke on a CPU")
    parser.add_argument(
        "--dtypes", default="", metavar="A,B", help=f"of the benchmarks, from {', '.join(DTYPES)}; default: theirs"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset of the training (default: phantoms are made)")
    parser.add_argument("--training", default="", metavar="OPTIONS", help="options of the training command, quoted")
    parser.add_argument("--commit", default="", help="what is measured, where the copy has no git history")
    return parser


if __name__ == "__main__":
    sys.exit(main())
