"""The command `infer.py`: what is misspelt is told before anything that computes is imported."""

import argparse
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stnet import command_line
from stnet.console import Reporter
from stnet.inference.background import THREAD_PREFIX
from stnet.inference.options import build_parser
from stnet.model.shipped import require_checkpoint


def command(argv: Sequence[str] | None = None, prog: str = "infer.py") -> None:
    """Run the command as a process, which ends here."""
    status = main(argv, prog)
    sys.stderr.flush()
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        # After an error the model may still be at work (or compiling), which would abort a Python that tears down.
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None, prog: str = "infer.py") -> int:
    """Run the command; return its exit status."""
    arguments = build_parser(prog).parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"
    with Reporter(stderr=True, progress=first) as reporter, _warnings_to(reporter):
        return command_line.run(lambda: _infer(arguments, reporter))


def _infer(arguments: argparse.Namespace, reporter: Reporter) -> int:
    from stnet.inference.named_feed import the_feed  # opens files, which takes NumPy and PyAV: a fifth of a second
    from stnet.inference.names import find_names

    feed = the_feed(arguments)
    names = None if feed is not None else find_names(arguments.inputs, arguments.output, arguments.stills)
    require_checkpoint(arguments.checkpoint)
    from stnet.inference.infer import answer_feed, infer  # takes seconds

    if feed is not None:
        return answer_feed(arguments, feed, reporter)
    return infer(arguments, names, reporter)


@contextmanager
def _warnings_to(reporter: Reporter) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: reporter.message(f"warning: {message}")
        yield


if __name__ == "__main__":
    command()
