"""Train STNet or evaluate a checkpoint; see `train.py --help`."""

import sys

from stnet.command import run

if __name__ == "__main__":
    sys.exit(run("train", "train.py"))
