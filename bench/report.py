"""Write the report of the benchmarks: tables, plots, and the figures in README.md.

python -m bench.report                        # bench/results/REPORT.md and plots
python -m bench.report --readme README.md     # and the figures between README.md's markers
python -m bench.report --readme README.md --check     # exit 1 where they disagree; writes nothing
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import figures, machine_code, plots, recipes, summary, tables
from bench.results import CPU_FILE, GPU_FILE, RESULTS, Run, load_folder
from stnet.errors import DataError, StnetError

REPORT_FILE = "REPORT.md"


def render(runs: Sequence[Run], folder: Path, pictures: Sequence[str]) -> str:
    """The report as Markdown.

    Args:
        folder: of the result files.
        pictures: file names of plots, shown at the end.
    """
    gpu = next((run for run in runs if run.on_gpu), None)
    parts = ["# Benchmarks", "Written by `python -m bench.report` from the result files beside it."]
    parts += ["## Targets", summary.targets_table(gpu)]
    if gpu is None:
        parts.append(f"No result file of a GPU is here: every figure below is {tables.UNCONFIRMED}.")
    for run in runs:
        parts += _run_sections(run)
    for title, text in (
        ("Machine code", machine_code.section(folder)),
        ("Recipes of training", recipes.sections(folder)),
    ):
        parts += [f"## {title}", text] if text else []
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run_sections(run: Run) -> list[str]:
    """Sections of one machine, those without measurements left out."""
    sections: list[tuple[str, str]] = []
    for operator, title in tables.OPERATORS.items():
        for direction in ("forward", "backward"):
            sections.append((f"{title}, {direction}", tables.operator_tables(run, operator, direction)))
    sections += [
        ("Layers", tables.layer_table(run)),
        ("Inference", tables.inference_table(run)),
        ("Training step", tables.training_table(run)),
        ("Growth of cost, with linear fits", tables.growth_table(run)),
        ("Without a time", tables.without_time_table(run)),
    ]
    stages = "\n".join(f"- {name}: {summary.stage_line(name, stage)}" for name, stage in run.stages.items())
    sections.append(("Stages of the suite", stages))
    parts = [f"## {run.machine['gpu']['name'] if run.on_gpu else 'CPU'}", tables.machine_line(run) + "."]
    parts += [f"Limits: {limits}." if (limits := tables.limits_line(run)) else ""]
    for title, text in sections:
        parts += [f"### {title}", text] if text else []
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done or in agreement, 1 disagreement, 2 wrong use."""
    options = _parser().parse_args(arguments)
    try:
        runs = load_folder(options.results)
        if not runs:
            raise DataError(f"--results: {options.results} holds neither {GPU_FILE} nor {CPU_FILE}")
        if options.check:
            return _check(options.readme, runs, options.results)
        drawn = [path for run in runs for path in plots.draw_all(run, options.results)]
        report = options.results / REPORT_FILE
        report.write_text(render(runs, options.results, [path.name for path in drawn]), encoding="utf-8")
        print(f"wrote {report} and {len(drawn)} plots")
        if options.readme is not None:
            options.readme.write_text(figures.fill(_read(options.readme), runs, options.results), encoding="utf-8")
            print(f"filled the figures of {options.readme}")
    except (StnetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check(readme: Path | None, runs: Sequence[Run], folder: Path) -> int:
    if readme is None:
        raise DataError("--check: name the file to check with --readme")
    wrong = figures.disagreements(_read(readme), runs, folder)
    if wrong:
        print(f"{readme}: figures {', '.join(wrong)} disagree with the results; run python -m bench.report --readme")
    return 1 if wrong else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--readme: {path} cannot be read ({error.strerror})") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder of result files (default: bench/results)"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="file whose marked figures are filled or checked")
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 when figures disagree")
    return parser


if __name__ == "__main__":
    sys.exit(main())
