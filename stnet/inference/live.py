"""Live mode: frames come one at a time, from a scanner or a camera, and each is answered before the next.

Nothing of the future is known, so a clip is the newest frame t, t-1 and t-2, and global frames spread over the past
instead of over the whole video. With a delay of one frame it is t, t-1, t+1 as in training, for frame t when t+1 is
there. Every frame passes the backbone once; memory does not grow with the length of the feed.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stnet.devices import is_out_of_memory
from stnet.errors import ConfigError, VideoError
from stnet.execution.engine import Engine
from stnet.inference.background import POLL_SECONDS
from stnet.inference.clip_runner import too_large
from stnet.inference.detector import TOP_DETECTIONS, VideoDetector
from stnet.inference.frame_results import FrameResult, shifted
from stnet.inference.inputs import as_array
from stnet.inference.lesion_collector import frame_findings
from stnet.lesions import LiveLinker
from stnet.lesions.linking import link_settings
from stnet.model.postprocess import Detections, check_finite, select_detections
from stnet.video import VideoFrame
from stnet.video.arrays import as_rgb
from stnet.video.value_range import ValueRange, checked_range

Policy = Literal["drop-oldest", "wait"]

WARM_UP_FRAMES = 2
"""Frames that everything is prepared with before those of a feed are taken."""

LATENCIES_KEPT = 10_000
"""The latest latencies that statistics are taken over."""

PAST_FRAMES = 16
"""Most past frames whose features are kept as candidates for global frames (at least twice as many as used)."""


MOMENT = 1e-4
"""Seconds the feed waits for room before a frame is dropped."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LiveResult(FrameResult):
    """A frame's detections, and its lesions as far as known by then.

    Attributes:
        latency: seconds from its arrival to this result.
        dropped: frames of the feed that were dropped until then.
    """

    latency: float
    dropped: int


@dataclass(frozen=True, kw_only=True)
class LiveStatistics:
    """How a feed went: frames answered and dropped, and latencies in seconds (0 before the first frame)."""

    frames: int
    dropped: int
    median: float
    percentile_99: float

    def __str__(self) -> str:
        return (
            f"latency median {self.median * 1000:.1f} ms, 99th percentile {self.percentile_99 * 1000:.1f} ms; "
            f"{self.dropped} frames dropped"
        )


@dataclass(frozen=True, kw_only=True)
class _Arrival:
    frame: VideoFrame
    at: float


class LiveDetector:
    """Detects lesions in a feed of frames.

    Args:
        detector: its model, device and precision are used.
        delay: 0, answer each frame at once; 1, when the next one is there (nearer to the offline mode).
        waiting: frames that may wait while the model is busy.
        policy: what happens when one more arrives: "drop-oldest" discards the one that waited longest (it
            gets no result), "wait" lets the feed wait (nothing is lost, for files and pipes).
        score_threshold: a lesion has a detection of at least this score; default: the detector's.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        detector: VideoDetector,
        *,
        delay: int = 0,
        waiting: int = 2,
        policy: Policy = "drop-oldest",
        score_threshold: float | None = None,
    ) -> None:
        if delay not in (0, 1):
            raise ConfigError(f"delay {delay}; a live result may be delayed by 0 or 1 frame")
        if waiting < 1:
            raise ConfigError(f"waiting {waiting}; at least one frame must be able to wait")
        if policy not in ("drop-oldest", "wait"):
            raise ConfigError(f"policy {policy!r}; use drop-oldest or wait")
        self._detector, self._delay, self._waiting, self._policy = detector, delay, waiting, policy
        self._link = link_settings(detector.score_threshold if score_threshold is None else score_threshold)
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._answered = self._dropped = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"LiveDetector({self._detector!r}, delay {self._delay}, {self._policy})"

    @property
    def statistics(self) -> LiveStatistics:
        """Of all feeds of this object so far."""
        with self._lock:
            latencies = np.array(self._latencies or [0.0])
            answered, dropped = self._answered, self._dropped
        return LiveStatistics(
            frames=answered,
            dropped=dropped,
            median=float(np.median(latencies)),
            percentile_99=float(np.percentile(latencies, 99)),
        )

    def warm_up(self, height: int, width: int) -> None:
        """Prepare all for frames of a size in pixels (compilation, graphs, memory): the first waits for nothing."""
        black = np.zeros((height, width, 3), np.uint8)
        frames = self._detector.config.frames
        for _ in range(WARM_UP_FRAMES):
            self._find(black, [[level[0] for level in self._features(black)]] * frames, "warm-up")

    def __call__(
        self, feed: Iterable[Any], *, name: str = "live", images: bool = False, value_range: ValueRange | None = None
    ) -> Iterator[LiveResult]:
        """Yield results until the feed ends.

        Args:
            feed: images `[H, W, 3]` or `[H, W]` (arrays, tensors or pictures of PIL, timed by their arrival) or
                `VideoFrame`s, all of one size. It is iterated in a thread of its own.
            name: the feed's name in the results.
            images: keep the frame in every result.
            value_range: the values of black and white of images that are not uint8.

        Raises:
            VideoError: frames that cannot be used; and whatever the feed raises.
        """
        window = _Window(self._detector.config.frames, self._delay)
        linker = LiveLinker(self._link)
        arrivals = _Arrivals(feed, name, self._waiting, self._policy, checked_range(value_range))
        size: tuple[int, ...] | None = None
        dropped = 0
        try:
            for arrival in arrivals:
                dropped += self._count(dropped=arrivals.take_dropped())
                shape = arrival.frame.image.shape
                size = size or shape
                if shape != size:
                    raise VideoError(f"{name}: frame size changes from {list(size[:2])} to {list(shape[:2])}")
                window.append(arrival, self._features(arrival.frame.image))
                if window.ready:
                    yield self._answer(window, linker, name, images, dropped)
            if window.finish():
                yield self._answer(window, linker, name, images, dropped)
        finally:
            arrivals.stop()
            self._count(dropped=arrivals.take_dropped())

    def _count(self, *, latency: float | None = None, dropped: int = 0) -> int:
        """Add to the statistics, which feeds in several threads may share; return the frames dropped."""
        with self._lock:
            self._dropped += dropped
            if latency is not None:
                self._latencies.append(latency)
                self._answered += 1
        return dropped

    def _features(self, image: np.ndarray) -> list[Tensor]:
        engine = self._detector.engine
        with engine.using(), _memory_told(engine, *image.shape[:2]):
            levels = engine.extract(engine.images([image], engine.size_of(*image.shape[:2])))
            # Copied, since graphs reuse the memory of their outputs.
            return [level.clone() for level in levels]

    def _answer(self, window: "_Window", linker: LiveLinker, name: str, images: bool, dropped: int) -> LiveResult:
        arrival, clip = window.clip()
        image = arrival.frame.image
        result = FrameResult(
            video=name,
            index=arrival.frame.index,
            time=arrival.frame.time,
            detections=shifted(self._find(image, clip, name), arrival.frame.origin),
            size=image.shape[:2],
            image=image if images else None,
            file=arrival.frame.name,
            origin=arrival.frame.origin,
        )
        found = frame_findings(result, len(self._detector.class_names), self._link.keep_score)
        lesions = tuple(linker.update(found))
        latency = time.perf_counter() - arrival.at
        self._count(latency=latency)
        return LiveResult(**vars(result) | {"lesions": lesions, "latency": latency, "dropped": dropped})

    @torch.inference_mode()
    def _find(self, image: np.ndarray, clip: list[list[Tensor]], name: str) -> Detections:
        """Return what a clip shows in its first frame, in pixels of that image."""
        levels = [torch.stack(level).unsqueeze(0) for level in zip(*clip, strict=True)]
        engine = self._detector.engine
        with engine.using(), _memory_told(engine, *image.shape[:2]):
            logits, boxes = (output[0].cpu() for output in engine.detect(levels, targets=1))
        check_finite(logits, boxes, name, engine.dtype_name)
        (detections,) = select_detections(
            logits,
            boxes,
            *image.shape[:2],
            TOP_DETECTIONS,
            duplicate_iou=self._detector.config.duplicate_iou,
            points=self._detector.operating_points,
        )
        return detections


@contextmanager
def _memory_told(engine: Engine, height: int, width: int) -> Iterator[None]:
    """Make lack of memory an error that costs this video or feed alone, and keeps what was answered."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_large(engine, *engine.size_of(height, width)) from None


class _Window:
    """The features a live clip is made of: the latest three frames, and a sparse selection of older ones.

    The selection keeps every s-th frame of the past and doubles s when it is full, so it stays evenly spread.
    """

    def __init__(self, frames_per_clip: int, delay: int) -> None:
        self._globals = max(0, frames_per_clip - 3)
        self._locals, self._delay = min(3, frames_per_clip), delay
        self._latest: deque[tuple[_Arrival, list[Tensor]]] = deque(maxlen=3)
        self._past: list[list[Tensor]] = []
        self._capacity = max(PAST_FRAMES, 2 * self._globals)
        self._stride, self._count, self._finished = 1, 0, False

    @property
    def ready(self) -> bool:
        """Whether the newest frame allows an answer."""
        return self._count > self._delay

    def append(self, arrival: _Arrival, features: list[Tensor]) -> None:
        """Take in the newest frame."""
        features = [level[0] for level in features]
        self._latest.append((arrival, features))
        if self._count % self._stride == 0:
            if len(self._past) == self._capacity:
                self._past = self._past[::2]
                self._stride *= 2
            if self._count % self._stride == 0:
                self._past.append(features)
        self._count += 1

    def finish(self) -> bool:
        """End the feed; True when a delayed frame still waits for its answer."""
        self._finished = True
        return self._delay > 0 and self._count > 0

    def clip(self) -> tuple[_Arrival, list[list[Tensor]]]:
        """Return the frame to be answered and the features of its clip, clamped where the feed has not begun yet."""
        newest = len(self._latest) - 1
        centre = newest if self._finished or not self._delay else newest - 1
        offsets = (0, -1, 1) if self._delay else (0, -1, -2)
        chosen = [self._latest[min(max(centre + offset, 0), newest)] for offset in offsets[: self._locals]]
        count = len(self._past)
        spread = [self._past[(2 * part + 1) * count // (2 * self._globals)] for part in range(self._globals)]
        return self._latest[centre][0], [features for _, features in chosen] + spread


class _Arrivals:
    """Frames of a feed, received in a thread, at most `waiting` of them not yet taken."""

    def __init__(
        self, feed: Iterable[Any], name: str, waiting: int, policy: Policy, value_range: ValueRange | None
    ) -> None:
        self._feed, self._name, self._policy, self._range = feed, name, policy, value_range
        self._queue: queue.Queue = queue.Queue(maxsize=waiting)
        self._stopped = threading.Event()
        self._dropped, self._lock = 0, threading.Lock()
        threading.Thread(target=self._receive, name="stnet-feed", daemon=True).start()

    def __iter__(self) -> Iterator[_Arrival]:
        while True:
            item = self._queue.get()
            if isinstance(item, _Arrival):
                yield item
                continue
            if item is not None:
                raise item
            return

    def take_dropped(self) -> int:
        """Frames dropped since the last call."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        return dropped

    def stop(self) -> None:
        """Stop receiving; a thread that waits for the feed ends with its next frame."""
        self._stopped.set()

    def _receive(self) -> None:
        error: BaseException | None = None
        try:
            start = time.perf_counter()
            for index, item in enumerate(self._feed):
                now = time.perf_counter()
                if not self._put(_Arrival(frame=_frame(item, index, now - start, self._name, self._range), at=now)):
                    return
        except BaseException as caught:  # raised again where the results are read
            error = caught
        self._put(error, droppable=False)

    def _put(self, item: object, droppable: bool = True) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=MOMENT if droppable and self._policy == "drop-oldest" else POLL_SECONDS)
                return True
            except queue.Full:
                if droppable and self._policy == "drop-oldest":
                    self._drop_one()
        return False

    def _drop_one(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return
        with self._lock:
            self._dropped += 1


def _frame(item: Any, index: int, seconds: float, name: str, value_range: ValueRange | None) -> VideoFrame:
    if isinstance(item, VideoFrame):
        return item
    if not isinstance(item, np.ndarray | torch.Tensor | Image.Image):
        raise VideoError(f"{name}: frame {index} is a {type(item).__name__}; expected an image [H, W, 3] or [H, W]")
    return VideoFrame(index=index, time=seconds, image=as_rgb(as_array(item), f"{name}, frame {index}", value_range))
