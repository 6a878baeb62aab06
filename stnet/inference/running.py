"""Clips through the engine: in batches of one size, every frame through the backbone once, out of memory survived."""

import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from stnet.errors import StnetError
from stnet.inference.engine import Engine
from stnet.inference.feature_cache import FeatureCache
from stnet.inference.reading import ClipTask, VideoEnd, VideoStart


@dataclass(frozen=True, kw_only=True)
class ClipOutput:
    """A clip's raw predictions on their way to the host: logits `[T, Q, classes]`, boxes `[T, Q, 4]`, float32."""

    task: ClipTask
    logits: Tensor
    boxes: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> None:
        """Return once `logits` and `boxes` hold their values."""
        if self.arrived is not None:
            self.arrived.synchronize()


class ClipRunner:
    """Runs clips in batches of up to `batch`, never padded: a change of size ends a batch.

    A batch may span videos. Backbone features wait in a cache of (batch + 1) clips' frames, which bounds the
    memory whatever the length of the videos. On `torch.OutOfMemoryError` the batch halves, for good, with one
    warning.
    """

    def __init__(self, engine: Engine, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"batch {batch} must be at least 1")
        self.batch = batch
        self._engine = engine
        self._frames_at_once = batch * engine.config.frames
        self._capacity = (batch + 1) * engine.config.frames
        self._cache = FeatureCache(self._capacity)
        self._size: tuple[int, int] | None = None
        self._warned = False

    def run(self, items: Iterator[VideoStart | ClipTask | VideoEnd]) -> Iterator[VideoStart | ClipOutput | VideoEnd]:
        """The items in their order, each task replaced by its output."""
        waiting: list[VideoStart | ClipTask | VideoEnd] = []
        tasks: list[ClipTask] = []
        with closing(items):
            for item in items:
                if isinstance(item, ClipTask):
                    size = self._engine.size_of(item.height, item.width)
                    if size != self._size:
                        yield from self._flush(waiting, tasks)
                        waiting, tasks = [], []
                        self._cache, self._size = FeatureCache(self._capacity), size
                    tasks.append(item)
                waiting.append(item)
                if len(tasks) >= self.batch or not tasks:
                    yield from self._flush(waiting, tasks)
                    waiting, tasks = [], []
        yield from self._flush(waiting, tasks)

    def _flush(self, waiting: list, tasks: list[ClipTask]) -> Iterator[VideoStart | ClipOutput | VideoEnd]:
        outputs = self._outputs(tasks)
        for item in waiting:
            yield next(outputs) if isinstance(item, ClipTask) else item

    def _outputs(self, tasks: list[ClipTask]) -> Iterator[ClipOutput]:
        done = 0
        while done < len(tasks):
            chunk = tasks[done : done + self.batch]
            outputs = self._attempt(chunk)
            if outputs is None:
                # Outside of the except block: the traceback would keep the failed tensors alive.
                self._halve()
                continue
            done += len(chunk)
            yield from outputs

    def _attempt(self, tasks: list[ClipTask]) -> list[ClipOutput] | None:
        """Outputs of one batch, or None where memory does not suffice. May be repeated with fewer tasks."""
        try:
            self._add_features(tasks)
            keys = [[(task.video, index) for index in task.clip.frames] for task in tasks]
            logits, boxes = self._engine.detect(self._cache.clips(keys))
        except torch.OutOfMemoryError:
            return None
        for task in tasks:
            self._cache.release([(task.video, index) for index in task.last_uses])
        return self._download(tasks, logits, boxes)

    def _add_features(self, tasks: list[ClipTask]) -> None:
        frames = {(task.video, index): image for task in tasks for index, image in task.new_frames.items()}
        keys = [key for key in frames if key not in self._cache]
        for start in range(0, len(keys), self._frames_at_once):
            chunk = keys[start : start + self._frames_at_once]
            images = self._engine.images([frames[key] for key in chunk], self._size)
            self._cache.add(chunk, self._engine.extract(images))

    def _download(self, tasks: list[ClipTask], logits: Tensor, boxes: Tensor) -> list[ClipOutput]:
        arrived = None
        if logits.is_cuda:
            logits, boxes = logits.to("cpu", non_blocking=True), boxes.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return [
            ClipOutput(task=task, logits=logits[i], boxes=boxes[i], arrived=arrived) for i, task in enumerate(tasks)
        ]

    def _halve(self) -> None:
        self._engine.free_memory()
        if self.batch > 1:
            self.batch //= 2
        elif self._frames_at_once > 1:
            self._frames_at_once = min(self._frames_at_once, self._engine.config.frames) // 2
        else:
            height, width = self._size
            raise StnetError(
                f"out of memory on {self._engine.device} with a single clip of {width} x {height} pixels; "
                "free memory on the device, or use a smaller model or --device cpu"
            )
        if not self._warned:
            warnings.warn(f"out of memory: going on with clips in batches of {self.batch}", stacklevel=2)
            self._warned = True
