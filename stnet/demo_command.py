"""The command `stnet demo`: what is misspelt is told before anything that computes is imported."""

import argparse
import sys
from pathlib import Path

from stnet import command_line
from stnet.choices import DEFAULT_MODEL
from stnet.errors import ConfigError
from stnet.model.shipped import require_checkpoint


def main(arguments: list[str] | None = None, prog: str = "python -m stnet.demo") -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Find lesions in phantom videos.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the videos (default: 0)")
    parser.add_argument("--frames", type=int, default=48, help="frames per video (default: %(default)s)")
    parser.add_argument(
        "--checkpoint", default=DEFAULT_MODEL, help="checkpoint file or shipped model (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    for name, value, least in (("--seed", options.seed, 0), ("--frames", options.frames, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    require_checkpoint(options.checkpoint)
    from stnet.demo import demonstrate  # takes seconds

    return demonstrate(options)


if __name__ == "__main__":
    sys.exit(main())
