"""Command line of the instruction counter."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.sass import Analysis, CubinError, WalkError, analyse
from stnet import command_line
from stnet.errors import DataError


def _argument(text: str) -> int | float | None:
    if text == "_":
        return None
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def _program(text: str) -> tuple[int, int, int]:
    parts = [int(part) for part in text.split(",")]
    if not 1 <= len(parts) <= 3:
        raise ValueError(text)
    return (*parts, *[0] * (3 - len(parts)))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sass", description="Count the warp instructions that one program of a cubin issues."
    )
    parser.add_argument("cubin", type=Path, help="file written from compiled.asm['cubin']")
    parser.add_argument(
        "--arguments", type=_argument, nargs="*", default=[], help="kernel arguments in order; _ leaves one unknown"
    )
    parser.add_argument("--program", type=_program, default=(0, 0, 0), help="program (block) index x[,y[,z]]")
    parser.add_argument("--num-warps", type=int, default=1, help="warps per program (default 1)")
    parser.add_argument(
        "--trips",
        type=_numbers,
        default=(),
        help="iterations of undecidable loops in the order met (inner loops first): 4,5",
    )
    parser.add_argument("--samples", type=float, help="divide by this many (query, head, sample) triples per program")
    parser.add_argument("--json", action="store_true", help="print the analysis as JSON")
    return parser


def _print(analysis: Analysis, samples: float | None) -> None:
    per = f", {analysis.executed / samples:.2f} per sample" if samples else ""
    print(f"{analysis.kernel} sm_{analysis.arch}: {analysis.registers} registers, {analysis.stack} bytes of stack")
    print(f"{analysis.executed} warp instructions ({analysis.static_instructions} in the code){per}")
    for name, count in analysis.classes.items():
        share = f"  {count / samples:.3f} per sample" if samples else ""
        print(f"  {name:14} {count:9}{share}")
    for name in ("loads", "gathers", "stores", "reductions", "atomics"):
        print(f"{name}: {getattr(analysis, name) or 'none'}")
    for text in (*analysis.loops, *(f"assumed: {one}" for one in analysis.assumptions)):
        print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (2: unusable input)."""
    options = _parser().parse_args(argv)
    return command_line.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    cubin = options.cubin.read_bytes()
    try:
        analysis = analyse(
            cubin, options.arguments, program=options.program, num_warps=options.num_warps, trips=options.trips
        )
    except (CubinError, WalkError, ValueError) as error:
        raise DataError(f"{options.cubin}: {error}") from error
    if options.json:
        print(json.dumps(asdict(analysis), indent=2))
    else:
        _print(analysis, options.samples)


if __name__ == "__main__":
    sys.exit(main())
