"""Train STNet or evaluate a checkpoint; see `train.py --help`."""

import sys

from stnet.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
