"""Detections on the frames of an indexed dataset, by the engine that users run or by a model in training.

Each frame's features are computed once, and kept in the same store as for users.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stnet.data.clips.planning import LOCAL_FRAMES, Clip
from stnet.data.clips.transforms import resized_size
from stnet.data.frames import FrameReader
from stnet.data.index import DatasetIndex, Frame, Video
from stnet.errors import ConfigError
from stnet.evaluation.coco import ScoredFrame
from stnet.evaluation.protocol import planned_clips
from stnet.execution.feature_cache import FeatureCache
from stnet.execution.preprocess import Preprocessor
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.model.postprocess import Detections, check_finite, select_detections


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How predictions are computed; none of it decides which frames are predicted but `protocol` and `targets`.

    Attributes:
        protocol: "all" or "published".
        targets: frames predicted per clip under "all".
        clips_per_batch: clips that go through encoder and decoder together.
        precision: dtype of autocast for a model; None: its own. An engine has a precision of its own.
        duplicate_iou: drop detections that overlap a better one by more; None: the model's setting.
        threads: frames decoded ahead.

    Raises:
        ConfigError: a value out of range.
    """

    protocol: str = "all"
    targets: int = LOCAL_FRAMES
    clips_per_batch: int = 4
    precision: torch.dtype | None = None
    duplicate_iou: float | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        if self.duplicate_iou is not None and not 0.0 < self.duplicate_iou <= 1.0:
            raise ConfigError(f"duplicate_iou is {self.duplicate_iou!r}; it must be above 0 and at most 1")


class Predictor(Protocol):
    """What computes: `stnet.execution.engine.Engine` is one."""

    config: ModelConfig
    dtype_name: str

    def using(self) -> AbstractContextManager:
        """Keep other threads off until what the methods below gave is used."""

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) at which the model sees frames of this size."""

    def images(self, frames: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Return normalized `[N, 3, height, width]` of uint8 frames `[H, W, 3]`."""

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Return level maps `[N, hidden, h, w]` of normalized images."""

    def detect(self, levels: Sequence[Tensor], targets: int) -> tuple[Tensor, Tensor]:
        """Return logits and boxes of the first `targets` frames of clips `[B, F, hidden, h, w]`."""


class ModelPredictor:
    """A model as it is, while it trains.

    Args:
        model: in evaluation mode, on the device to use.
        precision: dtype of autocast, or None.
    """

    def __init__(self, model: Detector, precision: torch.dtype | None) -> None:
        self.config, self._model, self._precision = model.config, model, precision
        self._device = next(model.parameters()).device
        self._preprocessor = Preprocessor(self._device)
        self.dtype_name = str(precision or torch.float32).removeprefix("torch.")

    def using(self) -> AbstractContextManager:
        """Return a context that does nothing: no one else uses the model."""
        return nullcontext()

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) at which the model sees frames of this size."""
        return resized_size(height, width, self.config.image_size, self.config.max_image_size)

    def images(self, frames: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Return normalized `[N, 3, height, width]` of uint8 frames `[H, W, 3]`."""
        return self._preprocessor(frames, size)

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Return level maps `[N, hidden, h, w]` of normalized images."""
        with self._autocast():
            return self._model.extract_features(images)

    def detect(self, levels: Sequence[Tensor], targets: int) -> tuple[Tensor, Tensor]:
        """Return float32 logits and boxes of the first `targets` frames of clips `[B, F, hidden, h, w]`."""
        with self._autocast():
            output = self._model.detect(levels, targets=targets)
        return output.logits.float(), output.boxes.float()

    def _autocast(self) -> AbstractContextManager:
        if self._precision is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._precision)


def predict_frames(
    model: Detector | Predictor,
    index: DatasetIndex,
    options: PredictionOptions | None = None,
    *,
    videos: Sequence[int] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[ScoredFrame]:
    """Detect in every annotated frame that the protocol scores, exactly once.

    Args:
        model: an engine, or a model in evaluation mode, on the device to use.
        index: the frames and their truth.
        options: see PredictionOptions.
        videos: which videos of the index; None for all. One process's share of a distributed evaluation.
        advance: called with the number of frames predicted since the last call.

    Returns:
        One entry per scored frame, in the order of the videos, then of the frames.

    Raises:
        StnetError: for scores or boxes that are none, which overflows of 16-bit types and broken weights cause.
    """
    options = options or PredictionOptions()
    if isinstance(model, Detector):
        model = ModelPredictor(model, options.precision)
    planned = planned_clips(index, options.protocol, model.config.frames, options.targets)
    scored: list[ScoredFrame] = []
    for number in range(len(index.videos)) if videos is None else videos:
        video = index.videos[number]
        found: dict[int, Detections] = {}
        for predicted in _predict_video(model, video, planned[number], options):
            found.update(predicted)
            if advance is not None:
                advance(len(predicted))
        scored += [_score(video, position, found[position]) for position in sorted(found)]
    return scored


@torch.no_grad()  # not inference_mode: training may follow, and reuses position embeddings made here
def _predict_video(
    predictor: Predictor, video: Video, clips: Sequence[Clip], options: PredictionOptions
) -> Iterator[dict[int, Detections]]:
    """Yield detections by frame position, a batch of clips at a time."""
    duplicate_iou = predictor.config.duplicate_iou if options.duplicate_iou is None else options.duplicate_iou
    size = options.clips_per_batch
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    with _FrameFeatures(predictor, video, batches, options.threads) as store:
        for batch in batches:
            targets = max(max(clip.targets) for clip in batch) + 1
            with predictor.using():
                found = predictor.detect(store.levels(batch), targets)
                logits, boxes = (output.cpu() for output in found)  # one copy a batch, instead of several a frame
            check_finite(logits, boxes, video.name, predictor.dtype_name, "--precision")
            yield {
                clip.frames[target]: _select(
                    logits[row, target], boxes[row, target], video.frames[clip.frames[target]], duplicate_iou
                )
                for row, clip in enumerate(batch)
                for target in clip.targets
                if video.frames[clip.frames[target]].annotated
            }


def _select(logits: Tensor, boxes: Tensor, frame: Frame, duplicate_iou: float) -> Detections:
    found = select_detections(logits[None], boxes[None], frame.height, frame.width, duplicate_iou=duplicate_iou)
    return found[0]


def _score(video: Video, position: int, detections: Detections) -> ScoredFrame:
    frame = video.frames[position]
    return ScoredFrame(
        image_id=frame.image_id,
        video=video.name,
        height=frame.height,
        width=frame.width,
        true_boxes=frame.boxes,
        true_labels=frame.labels,
        boxes=detections.boxes.numpy(),
        scores=detections.scores.numpy(),
        labels=detections.labels.numpy(),
    )


class _FrameFeatures:
    """Level features of a video's frames, each kept from its first use to its last."""

    def __init__(self, predictor: Predictor, video: Video, batches: Sequence[Sequence[Clip]], threads: int) -> None:
        first = video.frames[0]
        self._predictor, self._video, self._threads = predictor, video, max(1, threads)
        self._size = predictor.size_of(first.height, first.width)
        frames = [frame for batch in batches for clip in batch for frame in clip.frames]
        self._uses = Counter(frames)
        self._order = list(dict.fromkeys(frames))
        self._position = {frame: position for position, frame in enumerate(self._order)}
        self._cache = FeatureCache(_most_held(batches))
        self._reader = FrameReader(0)
        self._pending: dict[int, Future] = {}

    def __enter__(self) -> "_FrameFeatures":
        self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def levels(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Return the four level maps `[B, F, hidden, h, w]` of B clips; new frames go through the backbone together."""
        frames = [frame for clip in clips for frame in clip.frames]
        needed = [frame for frame in dict.fromkeys(frames) if frame not in self._cache]
        if needed:
            images = self._predictor.images([self._read(frame) for frame in needed], self._size)
            self._cache.add(needed, self._predictor.extract(images))
        levels = self._cache.clips([clip.frames for clip in clips])
        self._uses.subtract(frames)
        self._cache.release([frame for frame in set(frames) if self._uses[frame] == 0])
        return levels

    def _read(self, frame: int) -> np.ndarray:
        position = self._position[frame]
        for ahead in self._order[position : position + 1 + 2 * self._threads]:
            if ahead not in self._pending and ahead not in self._cache:
                self._pending[ahead] = self._pool.submit(self._reader.read, self._video.frames[ahead])
        return self._pending.pop(frame).result()


def _most_held(batches: Sequence[Sequence[Clip]]) -> int:
    """Return how many frames are kept at once at most."""
    last = {frame: number for number, batch in enumerate(batches) for clip in batch for frame in clip.frames}
    held: set[int] = set()
    most = 1
    for number, batch in enumerate(batches):
        held |= {frame for clip in batch for frame in clip.frames}
        most = max(most, len(held))
        held = {frame for frame in held if last[frame] > number}
    return most
