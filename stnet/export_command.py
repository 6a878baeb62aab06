"""The command `stnet export`: what is misspelt is told before anything that computes is imported."""

import argparse
import sys
from pathlib import Path

from stnet import command_line
from stnet.choices import PORTABLE_FORMATS, PROGRAM_FILES
from stnet.errors import ConfigError
from stnet.model.shipped import require_checkpoint


def main(arguments: list[str] | None = None, prog: str = "python -m stnet.export") -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Export a detector to torch.export, ONNX and safetensors.")
    parser.add_argument("checkpoint", help="checkpoint file, or the name of a shipped one such as tiny")
    parser.add_argument("--output", type=Path, default=Path("exported"), help="folder to write (default: exported)")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=PROGRAM_FILES,
        default=PORTABLE_FORMATS,
        help="what to write (default: safetensors torch onnx); fused and aot need stnet to run",
    )
    parser.add_argument("--height", type=int, help="fix the rows of the frames (default: any from 65 on)")
    parser.add_argument("--width", type=int, help="fix the columns of the frames (default: as --height)")
    parser.add_argument("--clips", type=int, help="fix the clips of a call (default: any)")
    parser.add_argument("--targets", type=int, default=3, help="frames predicted per clip (default: 3)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    for name, least in (("height", 32), ("width", 32), ("clips", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}; it must be at least {least}")
    paths = [options.output / name for kind in options.formats for name in PROGRAM_FILES[kind]]
    taken = [str(path) for path in paths if path.exists()]
    if taken and not options.overwrite:
        raise ConfigError(f"{', '.join(taken)} exist; choose another --output or pass --overwrite")
    require_checkpoint(options.checkpoint)
    from stnet.export import export  # takes seconds

    return export(options)


if __name__ == "__main__":
    sys.exit(main())
