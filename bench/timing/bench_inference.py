"""Whole clips, and the ways to run a model over a video, each in predicted frames.

single frame      a clip of six frames is run through the backbone and the encoder for its centre frame alone
encoder shuffle   the same clip predicts its three local frames
feature cache     shuffle, and each frame passes the backbone once: three new frames per clip
whole video       `VideoDetector` on decoded frames: resizing, batches, selection of detections, all of it
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from bench.timing import models
from bench.timing.shapes import DTYPES, SHUFFLED_TARGETS
from bench.timing.stopwatch import ERROR_LIMITS, Action, WrongResultError, require_correct
from stnet.execution.engine import Engine, EngineOptions
from stnet.inference.detector import VideoDetector

ROTATED_SETS = 3
ROUNDINGS = 20  # twelve layers and a ResNet add up their roundings
MODES = {"single frame": 1, "encoder shuffle": SHUFFLED_TARGETS}
WHOLE_VIDEO = "whole video"


def _engine(model, device, dtype, targets, *, tuned) -> Engine:
    """Return the engine; that of the published formulation without folding, packing, graphs or other layout."""
    options = {} if tuned else dict.fromkeys(("fold", "pack", "channels_last", "graphs"), False)
    return Engine(model, EngineOptions(device=device, dtype=dtype, **options), targets)


def _published_single_frame(device, dtype, settings, batch) -> tuple[str, Callable[[], Action]]:
    """Return what every mode's ratio is taken against, on clips of its own."""

    def make() -> Action:
        config = settings.sizes.config
        engine = _engine(models.variant(models.BASELINE, config), device, dtype, 1, tuned=False)
        ((clips,), *_), run = _clips(settings, config, batch, dtype), _whole_clip(engine, 1).run
        return Action(run=lambda *inputs: run(clips))

    return f"{models.BASELINE}, single frame", make


def _whole_clip(engine: Engine, targets: int) -> Action:
    """Backbone on all frames of the clip, then encoder and decoder."""

    def run(clips):
        levels = engine.extract(clips.flatten(0, 1))
        return engine.detect([level.unflatten(0, clips.shape[:2]) for level in levels], targets)

    return Action(run=run)


def _cached_clip(engine: Engine, targets: int) -> Action:
    """Backbone on the new frames alone; the other features were computed for earlier clips."""

    def run(new, kept):
        levels = engine.extract(new.flatten(0, 1))
        fresh = [level.unflatten(0, new.shape[:2]) for level in levels]
        return engine.detect([torch.cat(pair, dim=1) for pair in zip(fresh, kept, strict=True)], targets)

    return Action(run=run)


def _check(action, sets, references, limit) -> float:
    """Class logits and boxes of two clips in turn.

    On a GPU three times each: an engine runs a shape eagerly first, then captures a graph, then replays what will be
    timed, and a replay that kept the inputs of another clip shows.
    """
    errors = []
    for _ in range(3 if sets[0][0].is_cuda else 1):
        for inputs, reference in zip(sets, references, strict=True):
            pairs = zip(action.whole(*inputs), reference, strict=True)
            errors += [require_correct(x, expected.to(x.device), limit) for x, expected in pairs]
    return max(errors)


def _info(implementation, mode, dtype, batch, frames) -> dict:
    return {
        "suite": "inference",
        "implementation": implementation,
        "mode": mode,
        "dtype": dtype,
        "batch": batch,
        "frames": frames,
    }


@pytest.mark.parametrize("implementation", models.MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_clip(implementation, mode, dtype, batch, device, settings, available, measure):
    config, targets = settings.sizes.config, MODES[mode]
    model = available(partial(models.variant, config=config), implementation)
    engine = _engine(model, device, dtype, targets, tuned=implementation == models.STNET)
    sets = _clips(settings, config, batch, dtype)
    action = _whole_clip(engine, targets)
    measure(
        action,
        sets,
        group=f"inference {mode} {dtype} batch {batch}",
        info=_info(implementation, mode, dtype, batch, batch * targets),
        check=partial(_check, action, sets[:2], _references(settings, config, sets[:2], targets), _limit(dtype)),
        baseline=None
        if (implementation, targets) == (models.BASELINE, 1)
        else _published_single_frame(device, dtype, settings, batch),
    )


def test_feature_cache(dtype, batch, device, settings, measure):
    config, targets = settings.sizes.config, SHUFFLED_TARGETS
    engine = _engine(models.detector(config), device, dtype, targets, tuned=True)
    whole = _clips(settings, config, batch, dtype)
    sets = []
    for (clips,) in whole:
        kept = engine.extract(clips[:, targets:].flatten(0, 1))
        sets.append((clips[:, :targets], [level.clone().unflatten(0, (batch, -1)) for level in kept]))
    action = _cached_clip(engine, targets)
    references = _references(settings, config, whole[:2], targets)
    measure(
        action,
        sets,
        group=f"inference feature cache {dtype} batch {batch}",
        info=_info(models.STNET, "feature cache", dtype, batch, batch * targets),
        check=partial(_check, action, sets[:2], references, _limit(dtype)),
        baseline=_published_single_frame(device, dtype, settings, batch),
    )


def test_whole_video(dtype, batch, device, settings, measure):
    config, frames = settings.sizes.config, settings.sizes.video_frames
    detector = VideoDetector(models.detector(config), device=device, dtype=dtype, batch=batch)
    videos = [(video(frames, settings.sizes.image, seed),) for seed in range(2)]
    measure(
        Action(run=lambda frames: [result.index for result in detector(frames)], by_device=False),
        videos,
        group=f"inference whole video {dtype} batch {batch}",
        info=_info(models.STNET, WHOLE_VIDEO, dtype, batch, frames),
        check=partial(_check_every_frame, detector, videos[0][0]),
        baseline=_published_single_frame(device, dtype, settings, batch),
    )


def _check_every_frame(detector, frames) -> None:
    """Every frame has its result, in order; what the result is, the clips' checks say."""
    found = [result.index for result in detector(frames)]
    if found != list(range(len(frames))):
        raise WrongResultError(f"results of frames {found[:5]}... for a video of {len(frames)} frames")


def video(frames: int, image: tuple[int, int], seed: int) -> np.ndarray:
    """uint8 [N, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (frames, *image, 3), dtype=np.uint8)


def _clips(settings, config, batch, dtype) -> list[tuple[torch.Tensor]]:
    drawn = (models.clips(config, settings.sizes.image, batch, seed) for seed in range(ROTATED_SETS))
    return [(clips.to(settings.device, DTYPES[dtype]),) for clips in drawn]


@torch.no_grad()
def _references(settings, config, sets, targets) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and boxes of each set by the published formulation in float32."""
    model = models.variant(models.BASELINE, config).to(settings.device)
    outputs = [model(clips.float(), targets=targets) for (clips,) in sets]
    return [(output.logits, output.boxes) for output in outputs]


def _limit(dtype: str) -> float:
    return ROUNDINGS * ERROR_LIMITS[DTYPES[dtype]]
