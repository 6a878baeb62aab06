"""Live mode: a feed that gives a frame 30 times a second, and how long each waits for its answer."""

import time
from collections.abc import Iterator

import numpy as np

from bench.timing import models
from bench.timing.bench_inference import video
from stnet.inference.detector import VideoDetector
from stnet.inference.live import LiveDetector

FRAMES_PER_SECOND = 30.0


def paced(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Frames at the times at which a scanner would give them, however long their answers take."""
    begun = time.perf_counter()
    for number, frame in enumerate(frames):
        time.sleep(max(0.0, begun + number / FRAMES_PER_SECOND - time.perf_counter()))
        yield frame


def test_live_latency(dtype, settings, benchmark):
    """The whole feed is one round; its latencies are what counts."""
    frames = video(settings.sizes.live_frames, settings.sizes.image, seed=0)
    detector = VideoDetector(models.detector(settings.sizes.config), device=settings.device, dtype=dtype)
    live = LiveDetector(detector)
    live.warm_up(*settings.sizes.image)
    benchmark.group = f"live {dtype}"
    benchmark.pedantic(lambda: sum(1 for _ in live(paced(frames))), rounds=1)
    found = live.statistics
    assert found.frames + found.dropped == len(frames)
    benchmark.extra_info.update(
        suite="live",
        implementation=models.STNET,
        dtype=dtype,
        size=settings.size,
        device=settings.device.type,
        rate=FRAMES_PER_SECOND,
        frames=found.frames,
        dropped=found.dropped,
        latency_median=found.median,
        latency_99=found.percentile_99,
    )
