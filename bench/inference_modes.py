"""Frames per second of the ways to run the model over a video on this machine, as ratios of one run.

    python -m bench.inference_modes --sizes 256x320 128x160

published        the published formulation (bench.published), three targets per clip, six backbone passes
single frame     one target per clip, six backbone passes
encoder shuffle  three targets per clip, six backbone passes
feature cache    three targets per clip, three backbone passes
whole video      `VideoDetector` on frames in memory: resizing, batches, selection of detections, all of it

All but the first use the same kernels and the same rewritten model. Rounds run every mode in turn; the median of the
rounds counts. Results go to bench/results/inference_modes.json.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.machine import describe
from bench.published import as_published, grid_sample_attention
from stnet.inference.detector import VideoDetector
from stnet.inference.engine import Engine, EngineOptions
from stnet.model.config import PRESETS, ModelConfig
from stnet.model.detector import Detector

OUTPUT = Path(__file__).parent / "results" / "inference_modes.json"
TARGETS = 3
RATIOS = (
    ("encoder shuffle", "single frame"),
    ("feature cache", "single frame"),
    ("whole video", "published"),
    ("whole video", "single frame"),
)


def modes(config: ModelConfig, size: tuple[int, int], frames: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Predicted frames per call, and the call, of every mode."""
    torch.manual_seed(0)
    model = Detector(config).eval()
    engine = Engine(model, EngineOptions(device="cpu"), TARGETS)
    published = as_published(model, grid_sample_attention).eval()
    detector = VideoDetector(model, device="cpu")
    clip = torch.randn(1, config.frames, 3, *size)
    video = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    kept = [level.clone() for level in engine.extract(clip[0, TARGETS:])]

    def run_published() -> object:
        with torch.inference_mode():
            return published(clip, targets=TARGETS)

    def run_clip(targets: int) -> object:
        levels = engine.extract(clip[0])
        return engine.detect([level.unsqueeze(0) for level in levels], targets)

    def run_cached() -> object:
        levels = zip(engine.extract(clip[0, :TARGETS]), kept, strict=True)
        return engine.detect([torch.cat(pair).unsqueeze(0) for pair in levels], TARGETS)

    return {
        "published": (TARGETS, run_published),
        "single frame": (1, lambda: run_clip(1)),
        "encoder shuffle": (TARGETS, lambda: run_clip(TARGETS)),
        "feature cache": (TARGETS, run_cached),
        "whole video": (frames, lambda: list(detector(video))),
    }


def measure(config: ModelConfig, size: tuple[int, int], frames: int, rounds: int) -> dict:
    """Frames per second of every mode (median over the rounds) and the ratios between them."""
    config = dataclasses.replace(config, image_size=min(size), max_image_size=max(size))
    calls = modes(config, size, frames)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):  # the first round warms up
        for name, (predicted, call) in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append((time.perf_counter() - start) / predicted)
    rates = {name: 1 / median(times) for name, times in seconds.items()}
    return {
        "size": list(size),
        "frames_per_second": rates,
        "seconds_per_frame": seconds,
        "ratios": {f"{fast} / {slow}": rates[fast] / rates[slow] for fast, slow in RATIOS},
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and write the results; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(256, 320), (128, 160)], metavar="HxW")
    parser.add_argument("--frames", type=int, default=12, help="length of the whole video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.frames < 1 or arguments.rounds < 1:
        parser.error("--frames and --rounds must be at least 1")
    results = []
    for size in arguments.sizes:
        results.append(measure(ModelConfig.preset(arguments.preset), size, arguments.frames, arguments.rounds))
        print(f"{size[0]} x {size[1]}")
        for name, rate in results[-1]["frames_per_second"].items():
            print(f"  {name:<16} {rate:8.3f} frames/s")
        for name, ratio in results[-1]["ratios"].items():
            print(f"  {name:<32} {ratio:5.2f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": describe(torch.device("cpu")), "preset": arguments.preset, "results": results}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 256x320") from error
    if min(height, width) < 32:
        raise argparse.ArgumentTypeError(f"{text}: sides must be at least 32 pixels")
    return height, width


if __name__ == "__main__":
    sys.exit(main())
