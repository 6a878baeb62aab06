"""Compile ahead what a model needs on a GPU that is not here, into a cache that Triton looks into there.

    python -m stnet.warm CACHE --gpu sm_90 --model lite0 --size 512 512
    TRITON_CACHE_DIR=CACHE python infer.py ...        # on a machine of the same Triton

The model runs on the CPU without computing: its products are left empty, and only the operators' launches, which depend
on shapes and layouts alone, are followed until a kernel would start. Triton's cache is keyed by its own version, the
kernels' source and the GPU's architecture; what does not fit is compiled as ever.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stnet import command_line
from stnet.choices import ARCHITECTURES, TUNED_DTYPES
from stnet.errors import ConfigError


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.warm") -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Compile a model's kernels ahead for a GPU.")
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder that TRITON_CACHE_DIR will name")
    parser.add_argument("--gpu", required=True, choices=ARCHITECTURES, help="architecture of the GPU, such as sm_90")
    parser.add_argument("--model", required=True, help="checkpoint file, shipped model or preset")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the frames as the model sees them (default: its image size, square)",
    )
    parser.add_argument("--dtype", choices=TUNED_DTYPES, default="float16", help="(default: %(default)s)")
    parser.add_argument("--clips", nargs="+", type=int, default=[8, 2, 1], help="clips of a batch (default: 8 2 1)")
    parser.add_argument("--targets", nargs="+", type=int, default=[3, 1], help="frames predicted (default: 3 1)")
    parser.add_argument("--training", action="store_true", help="also what training needs, in autocast to --dtype")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _warm(options))


def _warm(options: argparse.Namespace) -> int:
    for name, least in (("size", 32), ("clips", 1), ("targets", 1)):
        for value in getattr(options, name) or ():
            if value < least:
                raise ConfigError(f"--{name}: {value}; it must be at least {least}")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError("TRITON_INTERPRET is set, which compiles nothing; unset it")
    options.cache.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    try:
        from stnet.execution.warming import warm  # takes seconds
    except ImportError as error:
        raise ConfigError(f"compiling needs the package {error.name}: pip install {error.name}") from error
    compiled, found = warm(options)
    print(f"{options.cache}: {compiled} kernels compiled for {options.gpu}, {found} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
