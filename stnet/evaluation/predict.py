"""Detections on the frames of an indexed dataset; each frame's features are computed once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stnet.data.clips.planning import LOCAL_FRAMES, Clip
from stnet.data.clips.transforms import normalize, resize, resized_size
from stnet.data.frames import FrameReader
from stnet.data.index import DatasetIndex, Frame, Video
from stnet.evaluation.coco import ScoredFrame
from stnet.evaluation.protocol import planned_clips
from stnet.model.detector import Detector
from stnet.model.postprocess import Detections, select_detections


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How predictions are computed; none of it decides which frames are predicted but `protocol` and `targets`.

    Attributes:
        protocol: "all" or "published".
        targets: frames predicted per clip under "all".
        clips_per_batch: clips that go through encoder and decoder together.
        precision: dtype of autocast, or None.
        threads: frames decoded ahead.
    """

    protocol: str = "all"
    targets: int = LOCAL_FRAMES
    clips_per_batch: int = 4
    precision: torch.dtype | None = None
    threads: int = 2


def predict_frames(
    model: Detector,
    index: DatasetIndex,
    options: PredictionOptions | None = None,
    *,
    videos: Sequence[int] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[ScoredFrame]:
    """Detect in every annotated frame that the protocol scores, exactly once.

    Args:
        model: in evaluation mode, on the device to use.
        index: the frames and their truth.
        options: see PredictionOptions.
        videos: which videos of the index; None for all. One process's share of a distributed evaluation.
        advance: called with the number of frames predicted since the last call.

    Returns:
        One entry per scored frame, in the order of the videos, then of the frames.
    """
    options = options or PredictionOptions()
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
    model: Detector, video: Video, clips: Sequence[Clip], options: PredictionOptions
) -> Iterator[dict[int, Detections]]:
    """Detections by frame position, a batch of clips at a time."""
    with _FeatureStore(model, video, clips, options) as store:
        for start in range(0, len(clips), options.clips_per_batch):
            batch = clips[start : start + options.clips_per_batch]
            targets = max(max(clip.targets) for clip in batch) + 1
            features = store.features(batch)
            with _autocast(features[0].device, options.precision):
                out = model.detect(features, targets=targets)
            # One copy a batch, instead of several a frame.
            logits, boxes = out.logits.float().cpu(), out.boxes.float().cpu()
            yield {
                clip.frames[target]: _select(
                    logits[row, target],
                    boxes[row, target],
                    video.frames[clip.frames[target]],
                    model.config.duplicate_iou,
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


def _autocast(device: torch.device, precision: torch.dtype | None):
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


@dataclass
class _FeatureStore:
    """Level features of a video's frames, each kept from its first use to its last."""

    model: Detector
    video: Video
    clips: Sequence[Clip]
    options: PredictionOptions
    _held: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self):
        config = self.model.config
        first = self.video.frames[0]
        self._size = resized_size(first.height, first.width, config.image_size, config.max_image_size)
        self._device = next(self.model.parameters()).device
        self._uses = Counter(frame for clip in self.clips for frame in clip.frames)
        self._order = list(dict.fromkeys(frame for clip in self.clips for frame in clip.frames))
        self._position = {frame: position for position, frame in enumerate(self._order)}
        self._reader = FrameReader(0)
        self._pending: dict[int, Future] = {}

    def __enter__(self) -> "_FeatureStore":
        self._pool = ThreadPoolExecutor(max(1, self.options.threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def features(self, clips: Sequence[Clip]) -> list[Tensor]:
        """The four level maps `[B, F, hidden, h, w]` of B clips; new frames go through the backbone together."""
        frames = [frame for clip in clips for frame in clip.frames]
        needed = [frame for frame in dict.fromkeys(frames) if frame not in self._held]
        if needed:
            images = torch.stack([self._image(frame) for frame in needed]).to(self._device, non_blocking=True)
            with _autocast(self._device, self.options.precision):
                levels = self.model.extract_features(images)
            for row, frame in enumerate(needed):
                self._held[frame] = [level[row] for level in levels]
        stacked = [torch.stack(level) for level in zip(*(self._held[frame] for frame in frames), strict=True)]
        self._uses.subtract(frames)
        for frame in set(frames):
            if self._uses[frame] == 0:
                del self._held[frame]
        return [level.unflatten(0, (len(clips), -1)) for level in stacked]

    def _image(self, frame: int) -> Tensor:
        position = self._position[frame]
        for ahead in self._order[position : position + 1 + 2 * self.options.threads]:
            if ahead not in self._pending and ahead not in self._held:
                self._pending[ahead] = self._pool.submit(self._read, ahead)
        return self._pending.pop(frame).result()

    def _read(self, frame: int) -> Tensor:
        pixels = self._reader.read(self.video.frames[frame])
        return normalize(resize(pixels[None], *self._size))[0]
