"""The main job on made-up data: find the lesions in phantom videos that training never saw.

    python -m stnet.demo --output demo

renders synthetic ultrasound videos with known lesions, runs `infer.py` on them with the shipped model, and tells
where the results are and how well the known lesions were found.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from stnet import files
from stnet.data.phantom import PhantomVideo, render_phantom
from stnet.errors import ConfigError
from stnet.inference import cli as infer
from stnet.video.writer import VideoWriter

UNSEEN = 2  # data sets render from (seed, 0 or 1, number); this place is the demo's own
FPS = Fraction(12)
MIN_IOU = 0.5
CASES = {"benign": ("benign",), "malignant": ("malignant",), "both": ("benign", "malignant"), "normal": ()}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well the known lesions of the demo's videos were found."""

    frames: int
    frames_with_lesion: int
    frames_found: int  # of those: every lesion of the frame has a detection with IoU >= 0.5
    class_right: int  # of those: with the right class
    false_positives: int

    @property
    def found(self) -> float:
        """Share of the frames with a lesion in which it was found."""
        return self.frames_found / max(1, self.frames_with_lesion)

    @property
    def false_positives_per_frame(self) -> float:
        """Detections without a lesion, per frame."""
        return self.false_positives / max(1, self.frames)


def score_frames(truths: list[tuple[np.ndarray, np.ndarray]], rows: list[dict], threshold: float) -> Score:
    """Compare detections with known lesions, frame by frame, each lesion with the best detection that is still free.

    Args:
        truths: boxes [n, 4] (x0 y0 x1 y1) and labels [n] of each frame.
        rows: frames of `detections.json`.
        threshold: the score from which detections count.
    """
    with_lesion = found = right = false_positives = 0
    for (boxes, labels), row in zip(truths, rows, strict=True):
        used, classes_right = _match(boxes, labels, row, threshold)
        kept = sum(score >= threshold for score in row["scores"])
        false_positives += kept - len(used)
        if len(boxes):
            with_lesion += 1
            found += len(used) == len(boxes)
            right += len(used) == len(boxes) and classes_right
    return Score(
        frames=len(truths),
        frames_with_lesion=with_lesion,
        frames_found=found,
        class_right=right,
        false_positives=false_positives,
    )


def _match(boxes: np.ndarray, labels: np.ndarray, row: dict, threshold: float) -> tuple[set[int], bool]:
    """Return indices of the detections that found a lesion, best scores first, and whether all have its class."""
    free, used, right = set(range(len(boxes))), set(), True
    if not free or not row["boxes"]:
        return used, right
    overlaps = box_iou(torch.tensor(row["boxes"], dtype=torch.float32), torch.from_numpy(boxes))
    for index, score in enumerate(row["scores"]):
        best = max(free, key=lambda lesion: overlaps[index, lesion], default=None)
        if score < threshold or best is None:
            break
        if overlaps[index, best] >= MIN_IOU:
            free.remove(best)
            used.add(index)
            right &= row["labels"][index] == int(labels[best])
    return used, right


def demonstrate(options: argparse.Namespace) -> int:
    """Render the demo's videos, find their lesions and tell how well; return the exit status.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{options.output}: cannot be written ({error.strerror or error}); choose another --output"
        ) from error
    print(f"Rendering {len(CASES)} phantom videos of {options.frames} frames ...", flush=True)
    phantoms = {
        name: render_phantom((options.seed, UNSEEN, number), frames=options.frames, lesions=lesions)
        for number, (name, lesions) in enumerate(CASES.items())
    }
    paths = [_write_video(options.output / f"{name}.mp4", phantom) for name, phantom in phantoms.items()]

    results = options.output / "results"
    command = [*map(str, paths), "--output", str(results), "--checkpoint", options.checkpoint, "--overwrite"]
    print(f"python infer.py {' '.join(command)}", flush=True)
    status = infer.main(command)
    if status != 0:
        return status

    truths, rows, threshold = [], [], 0.0
    for name, phantom in phantoms.items():
        truths += zip(phantom.boxes, phantom.labels, strict=True)
        found = json.loads((results / name / "detections.json").read_text(encoding="utf-8"))
        rows += found["frames"]
        threshold = found["model"]["score_threshold"]
    score = score_frames(truths, rows, threshold)
    files.write_json(options.output / "score.json", asdict(score))
    print(
        f"\nKnown lesions found (IoU >= {MIN_IOU}, score >= {threshold:.2g}) in {score.frames_found} of the "
        f"{score.frames_with_lesion} frames that show one ({score.found:.0%}), with the right class in "
        f"{score.class_right}; {score.false_positives_per_frame:.2f} false positives per frame over {score.frames} "
        f"frames.\n"
        f"Watch {results}/*/annotated.mp4; the numbers are in detections.json and detections.csv beside it."
    )
    return 0


def _write_video(path: Path, phantom: PhantomVideo) -> Path:
    height, width = phantom.frames.shape[1:3]
    with VideoWriter(path, FPS, height, width) as writer:
        for frame in phantom.frames:
            writer.write(frame)
    return path


if __name__ == "__main__":
    from stnet.demo_command import main

    sys.exit(main())
