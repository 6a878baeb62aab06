"""How cost grows: with the frames of a video, the area of its images, clips per call and queries.

The report fits a line through each and shows the residuals.
"""

import math
from collections.abc import Callable, Sequence

import torch

from bench.timing import baselines, models
from bench.timing.bench_inference import video
from bench.timing.inputs import stda_inputs
from bench.timing.shapes import DTYPES
from bench.timing.stopwatch import Action
from stnet.execution.engine import Engine, EngineOptions
from stnet.inference.detector import VideoDetector

ROTATED_SETS = 2
SMALLEST = "the smallest size"

Subject = tuple[Action, list[tuple]]


def test_video_length(video_frames, dtype, device, settings, measure):
    detector = VideoDetector(models.detector(settings.sizes.config), device=device, dtype=dtype)

    def make(frames: int) -> Subject:
        sets = [(video(frames, settings.sizes.image, seed),) for seed in range(ROTATED_SETS)]
        return Action(run=lambda frames: sum(1 for _ in detector(frames)), by_device=False), sets

    _measure(measure, make, "frames of the video", video_frames, settings.sizes.growth_frames, dtype)


def test_image_area(image_side, dtype, device, settings, measure):
    engine = Engine(models.detector(settings.sizes.config), EngineOptions(device=device, dtype=dtype))

    def make(pixels: int) -> Subject:
        side = math.isqrt(pixels)
        return _clips(engine, settings, (side, side), 1, dtype)

    areas = [side * side for side in settings.sizes.growth_images]
    _measure(measure, make, "pixels of the image", image_side**2, areas, dtype)


def test_batch(clips, dtype, device, settings, measure):
    engine = Engine(models.detector(settings.sizes.config), EngineOptions(device=device, dtype=dtype))

    def make(batch: int) -> Subject:
        return _clips(engine, settings, settings.sizes.image, batch, dtype)

    _measure(measure, make, "clips of the batch", clips, settings.sizes.growth_batches, dtype)


def test_queries(queries, dtype, device, settings, measure):
    attend = baselines.stda(models.STNET)

    def make(queries: int) -> Subject:
        problem = settings.sizes.stda("decoder", 1, queries=queries)
        sets = [(stda_inputs(problem, "near", DTYPES[dtype], settings.device, seed),) for seed in range(ROTATED_SETS)]
        return Action(run=torch.no_grad()(lambda inputs: attend(problem, inputs))), sets

    _measure(measure, make, "queries of the decoder", queries, settings.sizes.growth_queries, dtype)


def _measure(measure, make: Callable[[int], Subject], axis: str, amount: int, amounts: Sequence[int], dtype) -> None:
    """Time `make(amount)`, on a CPU in turn with the smallest size, so that a drift of the machine bends no line."""
    action, sets = make(amount)

    def smallest() -> Action:
        first, (inputs, *_) = make(amounts[0])
        return Action(run=lambda *_: first.run(*inputs), by_device=first.by_device)

    measure(
        action,
        sets,
        group=f"growth {axis} {dtype}",
        info={"suite": "growth", "implementation": models.STNET, "axis": axis, "amount": amount, "dtype": dtype},
        baseline=None if amount == amounts[0] else (SMALLEST, smallest),
    )


def _clips(engine: Engine, settings, image: tuple[int, int], batch: int, dtype: str) -> Subject:
    """Whole clips through backbone, encoder and decoder."""

    def run(clips):
        levels = engine.extract(clips.flatten(0, 1))
        return engine.detect([level.unflatten(0, clips.shape[:2]) for level in levels])

    drawn = (models.clips(settings.sizes.config, image, batch, seed) for seed in range(ROTATED_SETS))
    return Action(run=run), [(clips.to(settings.device, DTYPES[dtype]),) for clips in drawn]
