"""Live mode: the past only, one answer per frame, a stated policy when the model is slower than the feed."""

import threading
import time

import numpy as np
import pytest
import torch

from stnet.data.clips.transforms import prepare_frames
from stnet.errors import ConfigError, VideoError
from stnet.execution.engine import Engine
from stnet.inference import VideoDetector
from stnet.inference.live import PAST_FRAMES, LiveDetector, _Window
from stnet.model.postprocess import select_detections
from stnet.video import ArraySource


@pytest.fixture
def detector(small_model):
    return VideoDetector(small_model, device="cpu")


def wanted(model, frames: np.ndarray, clip: list[int]):
    images = prepare_frames(frames[clip], model.config.image_size, model.config.max_image_size)
    with torch.inference_mode():
        out = model(images[None], targets=1)
    return select_detections(out.logits[0], out.boxes[0], *frames.shape[1:3])[0]


@pytest.mark.parametrize(
    ("delay", "clips"),
    [
        (0, [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1], [2, 1, 0, 0, 1, 2], [3, 2, 1, 0, 2, 3]]),
        (1, [[0, 0, 1, 0, 1, 1], [1, 0, 2, 0, 1, 2], [2, 1, 3, 0, 2, 3], [3, 2, 3, 0, 2, 3]]),
    ],
)
def test_clips_of_the_first_frames(detector, small_model, make_frames, delay, clips):
    frames = make_frames(4)
    live = LiveDetector(detector, delay=delay, policy="wait")
    results = list(live(frames))
    assert [result.index for result in results] == [0, 1, 2, 3]
    for result, clip in zip(results, clips, strict=True):
        expected = wanted(small_model, frames, clip)
        torch.testing.assert_close(result.detections.scores, expected.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(result.detections.boxes, expected.boxes, rtol=0, atol=1e-2)
    statistics = live.statistics
    assert (statistics.frames, statistics.dropped) == (4, 0)
    assert 0 < statistics.median <= statistics.percentile_99


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_every_frame_is_answered_once(detector, make_frames, length, delay):
    results = list(LiveDetector(detector, delay=delay, policy="wait")(make_frames(length), name="feed", images=True))
    assert [result.index for result in results] == list(range(length))
    assert all(result.video == "feed" and result.latency > 0 and result.image is not None for result in results)


def test_answers_come_before_the_next_frame(detector, make_frames):
    answered = threading.Semaphore(0)

    def feed():
        for image in make_frames(4):
            yield image
            assert answered.acquire(timeout=30), "no answer before the next frame"

    for number, result in enumerate(LiveDetector(detector)(feed())):
        assert result.index == number
        answered.release()


def test_video_frames_keep_their_clock(detector, make_frames):
    results = list(LiveDetector(detector, policy="wait")(ArraySource(make_frames(3), fps=10)))
    assert [result.time for result in results] == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("policy", ["drop-oldest", "wait"])
def test_slow_model(detector, make_frames, monkeypatch, policy):
    original = Engine.detect

    def slow(self, *arguments, **named):
        time.sleep(0.03)
        return original(self, *arguments, **named)

    monkeypatch.setattr(Engine, "detect", slow)
    live = LiveDetector(detector, policy=policy, waiting=2)
    indices = [result.index for result in live(make_frames(20))]
    assert indices == sorted(set(indices))
    assert len(indices) + live.statistics.dropped == 20
    if policy == "wait":
        assert indices == list(range(20))
    else:
        # The latest frames survive, whatever was dropped before them.
        assert live.statistics.dropped > 5 and indices[-2:] == [18, 19]


def test_memory_is_bounded_and_the_past_evenly_covered():
    window = _Window(6, 0)
    for number in range(1000):
        window.append(number, [torch.tensor([number])])
        assert len(window._past) <= PAST_FRAMES
    _, clip = window.clip()
    local, spread = [int(f[0]) for f in clip[:3]], [int(f[0]) for f in clip[3:]]
    assert local == [999, 998, 997]
    for position, frame in zip((1 / 6, 3 / 6, 5 / 6), spread, strict=True):
        assert abs(frame / 1000 - position) < 0.1


@pytest.mark.timeout(30)
def test_errors_of_the_feed_are_raised(detector, make_frames):
    def feed():
        yield from make_frames(2)
        raise ConnectionResetError("unplugged")

    results = []
    with pytest.raises(ConnectionResetError, match="unplugged"):
        for result in LiveDetector(detector, policy="wait")(feed()):
            results.append(result)
    assert len(results) == 2


@pytest.mark.parametrize("bad", ["x.mp4", np.zeros((3, 3), np.float32), np.zeros((3, 3, 2), np.uint8)])
def test_unusable_frames(detector, bad):
    with pytest.raises(VideoError):
        list(LiveDetector(detector)([bad]))


def test_size_changes_are_refused(detector, make_frames):
    with pytest.raises(VideoError, match="frame size changes"):
        list(LiveDetector(detector, policy="wait")([make_frames(1)[0], make_frames(1, 48, 40)[0]]))


@pytest.mark.parametrize("options", [{"delay": 2}, {"waiting": 0}, {"policy": "newest"}])
def test_unusable_options(detector, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LiveDetector(detector, **options)
