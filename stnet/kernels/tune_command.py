"""The command `stnet tune`: what is misspelt is told before anything that computes is imported."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stnet import command_line
from stnet.choices import ARCHITECTURES, KERNELS, TUNED_DTYPES


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.kernels.tune") -> int:
    """Run the command line; return the exit status."""
    options = _parser(prog).parse_args(arguments)
    return command_line.run(lambda: _tune(options))


def _tune(options: argparse.Namespace) -> int:
    from stnet.kernels.tune import compile_elsewhere, tune_here  # takes seconds

    return compile_elsewhere(options) if options.compile_for else tune_here(options)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure the launch table's candidates on this GPU and write a table with the fastest first.",
        epilog="Exit status: 0 fine; 1 a key could not be tuned; 2 nothing could be measured or written.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("launch_table.json"), help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="how long each candidate is timed (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, help="begin no key after this time (default: measure all)")
    parser.add_argument(
        "--processes",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 2),
        metavar="N",
        help="how many compile ahead of measuring; 1: none does (default: half of the cores, here %(default)s)",
    )
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="(default: all)")
    parser.add_argument("--dtypes", nargs="+", choices=TUNED_DTYPES, default=list(TUNED_DTYPES), help="(default: all)")
    parser.add_argument(
        "--head-dims", nargs="+", type=int, default=[32], metavar="D", help="channels of a head (default: 32)"
    )
    parser.add_argument(
        "--compile-for",
        choices=ARCHITECTURES,
        metavar="ARCH",
        help="measure nothing, with no GPU: compile the candidates for one such as sm_90 into the folder that "
        "TRITON_CACHE_DIR names, where the tuner finds them on a machine of the same Triton, at the same path",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
