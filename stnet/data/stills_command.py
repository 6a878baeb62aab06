"""The command `stnet stills`: what is misspelt is told before anything that computes is imported."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stnet import command_line
from stnet.console import Reporter
from stnet.data.named import require_files
from stnet.data.still_sets.made import SPLITS, Held, Moving, check_shape
from stnet.errors import ConfigError


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.data.stills") -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write still images with lesion boxes as a data set of videos.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    source = parser.add_argument_group("stills")
    source.add_argument(
        "--sets",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of BUS-BRA, BUS-UCLM, BrEaST or BUSI as published, or with train.json and val.json",
    )
    source.add_argument("--train", type=Path, nargs="+", default=[], metavar="FILE", help="COCO files of train stills")
    source.add_argument("--val", type=Path, nargs="+", default=[], metavar="FILE", help="COCO files of val stills")
    source.add_argument(
        "--val-share", type=float, default=0.15, metavar="SHARE", help="patients of a published set that validate"
    )
    source.add_argument(
        "--keep-repeats", action="store_true", help="keep stills of public sets that are known to repeat others"
    )
    made = parser.add_argument_group("videos")
    made.add_argument("--held", action="store_true", help="one frame per still, to be moved while training")
    made.add_argument("--longest", type=int, default=Held.longest, help="longer side of held stills in pixels")
    made.add_argument("--frames", type=int, default=Moving.frames, help="frames of each moving video")
    made.add_argument("--height", type=int, default=Moving.height, help="height of moving videos in pixels")
    made.add_argument("--width", type=int, default=Moving.width, help="width of moving videos in pixels")
    parser.add_argument("--seed", type=int, default=0, help="not negative; same seed, same videos and split")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier data set of stills")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _write_with_progress(options))


def _write_with_progress(options: argparse.Namespace) -> None:
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed}: give 0 or more")
    if not 0 <= options.val_share <= 1:
        raise ConfigError(f"--val-share {options.val_share}: give 0 to 1")
    shape: Moving | Held = Moving(frames=options.frames, height=options.height, width=options.width)
    if options.held:
        shape = Held(longest=options.longest)
    check_shape(shape)
    require_files(*options.sets, *options.train, *options.val)
    from stnet.data.still_sets.repeats import leave_out_repeats  # takes seconds
    from stnet.data.still_sets.stills import read_coco_stills
    from stnet.data.stills import read_sets, write_stills

    splits = read_sets(options.sets, options.val_share, options.seed)
    for split in SPLITS:
        splits[split] += [read_coco_stills(file) for file in getattr(options, split)]
    report = Reporter()
    if not options.keep_repeats:
        for split, sets in splits.items():
            kept = [leave_out_repeats(stills) for stills in sets]
            splits[split] = [stills for stills, _ in kept]
            for line in (line for _, lines in kept for line in lines):
                report.message(line)
    splits = {split: sets for split, sets in splits.items() if sets}
    with Reporter(stderr=True) as progress:
        progress.start("Writing videos", sum(len(stills) for sets in splits.values() for stills in sets))
        write_stills(options.out, splits, options.seed, shape, overwrite=options.overwrite, on_video=progress.advance)
    counts = [f"{sum(map(len, sets))} {split}" for split, sets in splits.items()]
    report.message(f"{options.out}: {', '.join(counts)} videos")


if __name__ == "__main__":
    sys.exit(main())
