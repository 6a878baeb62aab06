"""Write the report of the benchmarks: tables, plots, and the figures in README.md and docs.

python -m bench.report                                          # bench/results/REPORT.md and plots
python -m bench.report --figures README.md docs/benchmarks.md docs/model.md    # fill the figures between markers
python -m bench.report --figures README.md docs/benchmarks.md docs/model.md --check  # exit status 1 if they differ
python -m bench.report --renew runs/bench                       # first take newly made results
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import (
    conditions,
    experiments,
    figures,
    lesions,
    machine_code,
    plots,
    processor,
    recipes,
    shipped_model,
    summary,
    tables,
)
from bench.report.results import CPU_FILE, GPU_FILE, HOST_FILE, RESULTS, Run, load, load_folder
from stnet.command_line import run
from stnet.errors import DataError
from stnet.files import write_text

REPORT_FILE = "REPORT.md"
RESULT_FILES = (
    *(GPU_FILE, CPU_FILE, HOST_FILE, "accuracy.json"),
    *(shipped_model.FILE, conditions.FILE, lesions.TRACKING_FILE, lesions.MALIGNANCY_FILE),
    *(processor.CLASSIC_FILE, *processor.MODEL_FILES),
)
HOST_TIME = (
    "Python, PyTorch and Triton until a kernel would be launched, without a GPU (`bench/timing/bench_host_time.py`): "
    "minima of thread CPU time, the calls taken in turn; a launch itself comes on top for all alike."
)


def render(runs: Sequence[Run], folder: Path, pictures: Sequence[str]) -> str:
    """Return the report as Markdown.

    Args:
        runs: measured machines, a GPU first.
        folder: of the result files.
        pictures: file names of plots, shown at the end.
    """
    parts = ["# Benchmarks", "Written by `python -m bench.report` from the result files beside it."]
    parts += ["## Targets", summary.targets_table(runs)]
    if not any(measured.on_gpu for measured in runs):
        parts.append(f"No result file of a GPU is here: every figure below is {tables.UNCONFIRMED}.")
    for measured in runs:
        parts += _run_sections(measured)
    for title, text in (
        ("Host time of a call", _host_section(folder)),
        ("Machine code", machine_code.section(folder)),
        ("Recipes of training", recipes.sections(folder)),
    ):
        parts += [f"## {title}", text] if text else []
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _host_section(folder: Path) -> str:
    """Return the table of host times, where the folder has some."""
    if not (folder / HOST_FILE).exists():
        return ""
    measured = load(folder / HOST_FILE)
    return f"{HOST_TIME}\n\n{tables.machine_line(measured.machine)}.\n\n{tables.host_table(measured)}"


def _run_sections(run: Run) -> list[str]:
    """Sections of one machine, those without measurements left out."""
    sections: list[tuple[str, str]] = []
    for operator, title in tables.OPERATORS.items():
        for direction in ("forward", "backward"):
            sections.append((f"{title}, {direction}", tables.operator_tables(run, operator, direction)))
    sections += [
        ("Layers", tables.layer_table(run)),
        ("Inference", tables.inference_table(run)),
        ("Live mode", tables.live_table(run)),
        ("Training step", tables.training_table(run)),
        ("Growth of cost, with linear fits", tables.growth_table(run)),
        ("Experiments", experiments.experiments_table(run)),
        ("Without a time", tables.without_time_table(run)),
    ]
    stages = "\n".join(f"- {name}: {summary.stage_line(name, stage)}" for name, stage in run.stages.items())
    sections.append(("Stages of the suite", stages))
    parts = [f"## {run.machine['gpu']['name'] if run.on_gpu else 'CPU'}", tables.machine_line(run.machine) + "."]
    parts += [f"Limits: {limits}." if (limits := tables.limits_line(run)) else ""]
    for title, text in sections:
        parts += [f"### {title}", text] if text else []
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done or in agreement, 1 disagreement, 2 wrong use."""
    options = _parser().parse_args(arguments)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.renew is not None:
        _renew(options.renew, options.results)
    runs = load_folder(options.results)
    if not runs:
        raise DataError(f"--results: {options.results} holds neither {GPU_FILE} nor {CPU_FILE}")
    if options.check:
        return _check(options.figures, runs, options.results)
    pictured = {measured.on_gpu: measured for measured in reversed(runs)}  # one GPU and the CPU
    drawn = [path for measured in pictured.values() for path in plots.draw_all(measured, options.results)]
    report = options.results / REPORT_FILE
    write_text(report, render(runs, options.results, [path.name for path in drawn]))
    print(f"wrote {report} and {len(drawn)} plots")
    for page in options.figures:
        write_text(page, figures.fill(_read(page), runs, options.results))
        print(f"filled the figures of {page}")
    return 0


def _renew(made: Path, results: Path) -> None:
    """Put newly made result files in place of those of the same name, after a look at each."""
    found = [path for name in RESULT_FILES if (path := made / name).exists()]
    if not found:
        raise DataError(f"--renew {made}: holds none of {', '.join(RESULT_FILES)}; run make bench first")
    for path in found:
        if path.name in (GPU_FILE, CPU_FILE, HOST_FILE):
            load(path)
        write_text(results / path.name, path.read_text(encoding="utf-8"))
        print(f"renewed {results / path.name}")


def _check(pages: Sequence[Path], runs: Sequence[Run], folder: Path) -> int:
    if not pages:
        raise DataError("--check: name the pages to check with --figures")
    wrong = {page: names for page in pages if (names := figures.disagreements(_read(page), runs, folder))}
    for page, names in wrong.items():
        print(f"{page}: figures {', '.join(names)} disagree with the results; run python -m bench.report --figures")
    return 1 if wrong else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--figures: {path} cannot be read ({error.strerror})") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder of result files (default: bench/results)"
    )
    parser.add_argument(
        "--figures", type=Path, nargs="+", default=[], metavar="FILE", help="pages whose marked figures are filled"
    )
    parser.add_argument(
        "--renew", type=Path, metavar="DIR", help="first take the result files of this folder, such as runs/bench"
    )
    parser.add_argument("--check", action="store_true", help="only compare the figures; exit status 1 when they differ")
    return parser


if __name__ == "__main__":
    sys.exit(main())
