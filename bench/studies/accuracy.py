"""What faster or live execution costs in accuracy: AP of the shipped model on phantoms that training never saw.

    python -m bench.studies.accuracy --videos 24

Every way to run it predicts the same frames: float32, bfloat16 (and float16 on a GPU) over whole videos, and the live
mode without and with one frame of delay. Boxes above score 0.3 are matched with those of float32 and their corners
compared.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torchvision.ops import box_iou

from bench.studies.phantoms import CLASSES, check_classes, study_parser, unseen_phantoms, write_study
from stnet.command_line import run
from stnet.data.phantom import PhantomVideo
from stnet.devices import resolve_device
from stnet.evaluation.coco import ScoredFrame, evaluate_frames
from stnet.inference.detector import VideoDetector
from stnet.inference.frame_results import FrameResult
from stnet.inference.live import LiveDetector
from stnet.model.postprocess import Detections

OUTPUT = Path("runs/bench/accuracy.json")
SOURCE = 3
"""Of the phantoms, see `unseen_phantoms`."""

SCORE = 0.3
MIN_IOU = 0.5

Way = Callable[[PhantomVideo], Iterator[FrameResult]]


def ways(checkpoint: str, device: str) -> dict[str, Way]:
    """Return the ways to run a model over a video, by name; the first is the baseline."""
    dtypes = ("float32", "bfloat16", "float16") if device.startswith("cuda") else ("float32", "bfloat16")
    detectors = {dtype: VideoDetector(checkpoint, device=device, dtype=dtype) for dtype in dtypes}
    check_classes(checkpoint, detectors["float32"].class_names)
    found: dict[str, Way] = {
        dtype: lambda video, detector=detector: detector(video.frames) for dtype, detector in detectors.items()
    }
    for delay in (0, 1):
        live = LiveDetector(detectors["float32"], delay=delay, policy="wait")
        found[f"live, delay {delay}"] = lambda video, live=live: live(iter(video.frames))
    return found


def measure(run: Way, videos: list[PhantomVideo], class_names: tuple[str, ...]) -> tuple[dict, list[Detections]]:
    """AP over all frames of all videos, and the detections."""
    scored, detections = [], []
    for number, video in enumerate(videos):
        results = list(run(video))
        if [result.index for result in results] != list(range(len(video.frames))):
            raise RuntimeError(f"video {number}: results of frames {[result.index for result in results]}")
        for result, boxes, labels in zip(results, video.boxes, video.labels, strict=True):
            found = result.detections
            detections.append(found)
            scored.append(
                ScoredFrame(
                    image_id=len(scored),
                    video=str(number),
                    height=video.frames.shape[1],
                    width=video.frames.shape[2],
                    true_boxes=boxes,
                    true_labels=labels,
                    boxes=found.boxes.cpu().numpy(),
                    scores=found.scores.cpu().numpy(),
                    labels=found.labels.cpu().numpy(),
                )
            )
    metrics = evaluate_frames(scored, class_names)
    return {"ap50": metrics.overall.ap50, "ap": metrics.overall.ap, "agnostic_ap50": metrics.agnostic.ap50}, detections


def box_shifts(baseline: list[Detections], other: list[Detections]) -> dict[str, float | None]:
    """How far corners move, in pixels: each baseline box above the score with the best box of its class.

    None where there is no such box.
    """
    shifts, missing = [], 0
    for ours, theirs in zip(baseline, other, strict=True):
        ours = ours.above(SCORE)
        overlaps = box_iou(ours.boxes, theirs.boxes) * (ours.labels[:, None] == theirs.labels)
        for index in range(len(ours.boxes)):
            best = int(overlaps[index].argmax())
            if overlaps[index, best] < MIN_IOU:
                missing += 1
                continue
            shifts.append((ours.boxes[index] - theirs.boxes[best]).abs().max().item())
    return {
        "boxes": len(shifts),
        "without_match": missing,
        "median_pixels": float(np.median(shifts)) if shifts else None,
        "percentile_99_pixels": float(np.percentile(shifts, 99)) if shifts else None,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = study_parser("bench.studies.accuracy", __doc__, videos=24, output=OUTPUT)
    options = parser.parse_args(arguments)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    runs = ways(options.checkpoint, str(resolve_device(options.device)))
    videos = unseen_phantoms(options, SOURCE)
    results, baseline = {}, None
    for name, way in runs.items():
        metrics, detections = measure(way, videos, CLASSES)
        baseline = baseline or detections
        results[name] = metrics | {"against_float32": box_shifts(baseline, detections)}
        print(f"{name:14} {json.dumps(results[name])}", flush=True)
    write_study(options, {"score_threshold": SCORE, "results": results})


if __name__ == "__main__":
    sys.exit(main())
