"""Find lesions in ultrasound videos: `python infer.py clip.mp4`; `python infer.py --help` tells the rest."""

import sys

from stnet.command import run

if __name__ == "__main__":
    sys.exit(run("infer", "infer.py"))
