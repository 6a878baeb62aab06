"""Command line of the compile report."""

import argparse
import importlib.metadata
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.compile_report.cases import DTYPES, KERNELS, LAYERS, TARGETS, cases
from bench.compile_report.compare import compare, differences, key_of, merge, notes, unsound
from bench.compile_report.measure import forbid_interpreter, measure
from bench.compile_report.peers import find, measure_peer, peer_cases
from stnet import command_line
from stnet.errors import ConfigError, DataError
from stnet.files import write_text

COMMITTED = Path(__file__).parents[1] / "results" / "compile_report.json"
_QUICK_TARGETS = ("sm_90", "gfx942")
_HEAD_DIMS = (8, 16, 32, 64, 128, 256)
_WORKERS = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile_report",
        description="Compile every kernel and candidate of the launch table ahead of time and report what came out. "
        "Needs Triton, no GPU.",
        epilog="Exit status: 0 fine; 1 a regression against the committed report (--check), a row that does not "
        "compile or whose count is unsound; 2 wrong usage.",
    )
    parser.add_argument("--target", nargs="+", choices=TARGETS, metavar="ARCH", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--all", action="store_true", help="all targets, instead of sm_90 and gfx942")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS, help="only these kernels")
    parser.add_argument("--layer", nargs="+", choices=tuple(LAYERS), default=tuple(LAYERS), help="only these shapes")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="only these dtypes of values")
    parser.add_argument(
        "--head-dim", nargs="+", type=int, choices=_HEAD_DIMS, default=[32], help="head widths (default 32)"
    )
    parser.add_argument("--defaults", action="store_true", help="only the candidates that launches use")
    parser.add_argument("--peers", metavar="FOLDER", help="folder where deformops was installed by pip --target")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to a file as well")
    parser.add_argument(
        "--renew",
        type=Path,
        nargs="?",
        const=COMMITTED,
        metavar="FILE",
        help="replace the rows of a report (default: the committed one) that this run covers, keep the others",
    )
    parser.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=COMMITTED,
        metavar="FILE",
        help="compare with a report (default: the committed one)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="with --check: every difference counts, not only what got worse by more than 2 %%",
    )
    return parser


def _map(function: Callable[[Any], dict[str, Any]], items: Sequence[Any], title: str) -> list[dict[str, Any]]:
    """Results in order, from two processes that compile instead of interpreting."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_WORKERS, mp_context=context, initializer=forbid_interpreter) as pool:
        results: Iterable[dict[str, Any]] = pool.map(function, items)
        console = Console(stderr=True)
        return list(track(results, title, total=len(items), console=console, disable=not console.is_terminal))


def build_report(options: argparse.Namespace) -> dict[str, Any]:
    """Return the report as JSON types.

    Raises:
        ConfigError: the launch table, Triton, or the given deformops is missing.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError("triton is not installed: pip install triton (Linux only)") from error
    targets = tuple(options.target or (TARGETS if options.all else _QUICK_TARGETS))
    if options.peers and find(options.peers) is None:
        raise ConfigError(f"no deformops in {options.peers}: pip install --no-deps --target {options.peers} deformops")
    found = cases(
        targets=targets,
        kernels=options.kernel,
        layers=options.layer,
        dtypes=options.dtype,
        head_dims=options.head_dim,
        defaults_only=options.defaults,
    )
    if not found:
        raise ConfigError("no kernel serves these layers: the msda kernels have `classic`, the others the rest")
    rows = _map(measure, found, "compiling")
    peers: list[dict[str, Any]] = [{"package": "deformops", "missing": True}]
    if find(options.peers) is not None:
        peers = _map(measure_peer, peer_cases(options.peers, targets), "compiling peers")
    return {"triton": version, "rows": rows, "peers": peers}


def to_json(report: dict[str, Any]) -> str:
    """JSON with one line per field of a row, so that changes read well in a review."""
    parts = []
    for name in ("rows", "peers"):
        rows = [
            "  {\n" + ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items()) + "\n  }"
            for row in report[name]
        ]
        parts.append(f" {json.dumps(name)}: [\n" + ",\n".join(rows) + "\n ]")
    return f'{{\n "triton": {json.dumps(report["triton"])},\n' + ",\n".join(parts) + "\n}\n"


def read_report(path: Path) -> dict[str, Any]:
    """Return a report written by `--output`.

    Raises:
        DataError: the file cannot be read, or is no report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for row in report["rows"]:
            key_of(row)
        return {"triton": report["triton"], "rows": report["rows"], "peers": report["peers"]}
    except OSError as error:
        raise DataError(f"{path}: cannot read the report ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a compile report ({error}); --output writes one") from error


def _counts(accesses: dict[str, float]) -> str:
    return " ".join(f"{key}:{value:g}" for key, value in accesses.items())


def _print_table(report: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Triton {report['triton']}: per (query, head, sample)", header_style="bold")
    for name in ("kernel", "layer", "dtype", "D", "candidate", "target"):
        table.add_column(name, overflow="fold")
    for name in ("regs", "shared", "spills", "N", "gathers", "rows", "reductions", "lines near/uniform"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        table.add_row(
            row["kernel"],
            row["layer"],
            row["dtype"],
            str(row["head_dim"]),
            row["candidate"] + (" *" if row["default"] else ""),
            row["target"],
            *_cells(row),
        )
    console.print(table)
    console.print("* the candidate that launches use; N: warp instructions; gathers, reductions: instructions by bytes")
    console.print("per lane or vector; rows: corner rows gathered (4 is sound); lines: 128-byte lines of one gather")
    for peer in report["peers"]:
        console.print(_peer(peer))


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["error"]]
    lines = row.get("lines_per_gather")
    return [
        str(row["registers"]),
        str(row["shared_bytes"]),
        str(row["spill_instructions"]),
        f"{row['instructions']:.2f}" if "instructions" in row else "",
        _counts(row.get("gathers", row.get("static_loads", {}))),
        f"{row['gathered_rows']:.2f}" if "gathered_rows" in row else "",
        _counts(row.get("reductions", row.get("static_reductions", {}))),
        f"{lines['near']:.1f} / {lines['uniform']:.1f}" if lines else "",
    ]


def _peer(peer: dict[str, Any]) -> str:
    if peer.get("missing"):
        return f"{peer['package']}: missing, see --peers"
    name = f"{peer['package']} {peer['version']} {peer['kernel']} {peer['dtype']} {peer['target']}"
    if "error" in peer:
        return f"{name}: {peer['error']}"
    buffer = f", {peer['value_gradient']} value gradient" if peer["value_gradient"] else ""
    return f"{name}{buffer}: {peer['instructions']:.2f}, {peer['registers']} registers"


def _verdict(report: dict[str, Any], committed: dict[str, Any] | None, exact: bool) -> list[str]:
    broken = [f"{key_of(row)}: does not compile: {row['error']}" for row in report["rows"] if "error" in row]
    compared = compare(report, committed) if committed else []
    return broken + unsound(report) + compared + (differences(report, committed) if committed and exact else [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    options = _parser().parse_args(argv)
    return command_line.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.exact and not options.check:
        raise ConfigError("--exact says how --check compares: give both")
    committed = read_report(options.check) if options.check else None
    report = build_report(options)
    if options.output:
        write_text(options.output, to_json(report))
    if options.renew:
        kept = read_report(options.renew) if options.renew.exists() else None
        write_text(options.renew, to_json(merge(report, kept) if kept else report))
    if options.json:
        print(to_json(report), end="")
    else:
        _print_table(report, Console(width=None if sys.stdout.isatty() else 220))
    for line in notes(report, committed) if committed else []:
        print(f"note: {line}", file=sys.stderr)
    verdict = _verdict(report, committed, options.exact)
    for line in verdict:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if verdict else 0


if __name__ == "__main__":
    sys.exit(main())
