"""Find lesions in ultrasound videos: `python infer.py clip.mp4`; `python infer.py --help` tells the rest."""

import sys

from stnet.inference.cli import main

if __name__ == "__main__":
    sys.exit(main())
