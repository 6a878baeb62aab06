"""How cost grows: with the frames of a video, the area of its images, clips per call and queries.

The report fits a line through each and shows the residuals.
"""

import torch

from bench import baselines, models
from bench.bench_inference import video
from bench.inputs import stda_inputs
from bench.shapes import DTYPES
from bench.timing import Action
from stnet.inference.detector import VideoDetector
from stnet.inference.engine import Engine, EngineOptions

ROTATED_SETS = 2


def _info(axis, amount, dtype) -> dict:
    return {"suite": "growth", "implementation": models.STNET, "axis": axis, "amount": amount, "dtype": dtype}


def _engine(config, device, dtype) -> Engine:
    return Engine(models.detector(config), EngineOptions(device=device, dtype=dtype))


def _clip(engine: Engine) -> Action:
    def run(clips):
        levels = engine.extract(clips.flatten(0, 1))
        return engine.detect([level.unflatten(0, clips.shape[:2]) for level in levels])

    return Action(run=run)


def test_video_length(video_frames, dtype, device, settings, measure):
    detector = VideoDetector(models.detector(settings.sizes.config), device=device, dtype=dtype)
    sets = [(video(video_frames, settings.sizes.image, seed),) for seed in range(ROTATED_SETS)]
    action = Action(run=lambda frames: sum(1 for _ in detector(frames)))
    measure(action, sets, group=f"growth frames {dtype}", info=_info("frames of the video", video_frames, dtype))


def test_image_area(image_side, dtype, device, settings, measure):
    config, side = settings.sizes.config, image_side
    sets = _clips(settings, config, (side, side), 1, dtype)
    info = _info("pixels of the image", side * side, dtype)
    measure(_clip(_engine(config, device, dtype)), sets, group=f"growth area {dtype}", info=info)


def test_batch(clips, dtype, device, settings, measure):
    config = settings.sizes.config
    sets = _clips(settings, config, settings.sizes.image, clips, dtype)
    info = _info("clips of the batch", clips, dtype)
    measure(_clip(_engine(config, device, dtype)), sets, group=f"growth batch {dtype}", info=info)


def test_queries(queries, dtype, device, settings, measure):
    problem = settings.sizes.stda("decoder", 1, queries=queries)
    attend = baselines.stda(models.STNET)
    sets = [(stda_inputs(problem, "near", DTYPES[dtype], settings.device, seed),) for seed in range(ROTATED_SETS)]
    action = Action(run=torch.no_grad()(lambda inputs: attend(problem, inputs)))
    measure(action, sets, group=f"growth queries {dtype}", info=_info("queries of the decoder", queries, dtype))


def _clips(settings, config, image, batch, dtype) -> list[tuple[torch.Tensor]]:
    drawn = (models.clips(config, image, batch, seed) for seed in range(ROTATED_SETS))
    return [(clips.to(settings.device, DTYPES[dtype]),) for clips in drawn]
