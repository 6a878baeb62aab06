"""The commands `train.py` and `stnet evaluate`: what is misspelt is told before anything that computes is imported."""

import argparse
import sys
from collections.abc import Sequence

from stnet import command_line
from stnet.model.shipped import require_checkpoint
from stnet.training.options import build_evaluation_parser, build_parser, require_data, require_fitting


def main(arguments: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Run `train.py`; return its exit status: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by a signal."""
    options = build_parser(prog).parse_args(arguments)
    return command_line.run(lambda: _run(options, "train", arguments))


def evaluate(arguments: Sequence[str] | None = None, prog: str = "stnet evaluate") -> int:
    """Run `stnet evaluate`; return its exit status, as of `train.py`."""
    options = build_evaluation_parser(prog).parse_args(arguments)
    return command_line.run(lambda: _run(options, "evaluate", arguments))


def _run(options: argparse.Namespace, name: str, arguments: Sequence[str] | None) -> int:
    require_fitting(options)
    require_data(options)
    if options.evaluate:
        require_checkpoint(options.evaluate)
    from stnet.training.commands import run  # takes seconds

    # Called from Python it stays in its process unless asked otherwise.
    processes = None if arguments is None else 1
    return run(options, (name, *(sys.argv[1:] if arguments is None else arguments)), processes)


if __name__ == "__main__":
    sys.exit(main())
