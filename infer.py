"""Find lesions in ultrasound videos: `python infer.py clip.mp4`; `python infer.py --help` tells the rest."""

from stnet.inference.cli import command

if __name__ == "__main__":
    command()
