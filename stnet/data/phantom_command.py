"""The command `stnet phantoms`: what is misspelt is told before anything that computes is imported."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stnet import command_line
from stnet.console import Reporter
from stnet.data.synthetic.phantom_size import FRAMES, HEIGHT, WIDTH, check_size
from stnet.errors import ConfigError


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.data.phantom") -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write synthetic breast ultrasound videos with known lesions as a data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--train-videos", type=int, default=60, help="videos of the train split")
    parser.add_argument("--val-videos", type=int, default=12, help="videos of the val split")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of each video")
    parser.add_argument("--height", type=int, default=HEIGHT, help="height of the frames in pixels")
    parser.add_argument("--width", type=int, default=WIDTH, help="width of the frames in pixels")
    parser.add_argument("--seed", type=int, default=0, help="not negative; same seed, same videos")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier phantom data set")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _write_with_progress(options))


def _write_with_progress(options: argparse.Namespace) -> None:
    if options.seed < 0 or options.workers < 1:
        raise ConfigError(f"seed {options.seed}, workers {options.workers}: give a seed from 0, workers from 1")
    check_size(options.frames, options.height, options.width)
    from stnet.data.phantom import write_phantoms  # takes seconds

    with Reporter(stderr=True) as reporter:
        reporter.start("Rendering videos", options.train_videos + options.val_videos)
        write_phantoms(
            options.out,
            options.train_videos,
            options.val_videos,
            options.seed,
            frames=options.frames,
            height=options.height,
            width=options.width,
            overwrite=options.overwrite,
            workers=options.workers,
            on_video=reporter.advance,
        )
    Reporter().message(f"{options.out}: {options.train_videos} train and {options.val_videos} val videos")


if __name__ == "__main__":
    sys.exit(main())
