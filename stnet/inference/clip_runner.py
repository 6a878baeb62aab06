"""Clips through the engine: in batches of one size, every frame through the backbone once, out of memory survived."""

import itertools
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from stnet.devices import is_out_of_memory
from stnet.errors import StnetError
from stnet.execution.engine import Engine
from stnet.execution.feature_cache import FeatureCache
from stnet.inference.clip_reader import ClipTask, VideoEnd, VideoStart


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


@dataclass(frozen=True, kw_only=True)
class ClipFailure:
    """A clip that could not be computed."""

    task: ClipTask
    error: Exception


Item = VideoStart | ClipTask | VideoEnd
Result = VideoStart | ClipOutput | ClipFailure | VideoEnd


class ClipRunner:
    """Runs clips in batches of up to `batch`, never padded: a change of size ends a batch.

    A batch may span videos. Backbone features wait in a cache of (batch + 1) clips' frames, which bounds the
    memory whatever the length of the videos. Every call of `run` has a cache of its own, so that several may run
    beside each other. When memory does not suffice the batch halves, for all calls and for good, with one warning.
    """

    def __init__(self, engine: Engine, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"batch {batch} must be at least 1")
        self.engine, self.batch = engine, batch
        self.frames_at_once = batch * engine.config.frames
        self.capacity = (batch + 1) * engine.config.frames
        self._lock, self._warned = threading.Lock(), False

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the items in their order, each task replaced by its output; tasks of stopped videos are left out."""
        return _Pass(self).run(items)

    def shrink(self, batch: int, frames: int) -> bool:
        """Take smaller steps after memory did not suffice for `batch` clips or `frames` frames.

        Returns:
            Whether there is anything smaller to try.
        """
        self.engine.free_memory()
        with self._lock:
            if (batch, frames) != (self.batch, self.frames_at_once):  # another call has done so meanwhile
                return True
            if self.batch > 1:
                self.batch //= 2
            elif self.frames_at_once > 1:
                self.frames_at_once = min(self.frames_at_once, self.engine.config.frames) // 2
            else:
                return False
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(f"out of memory: going on with clips in batches of {self.batch}", stacklevel=2)
        return True


class _Pass:
    """One call of a runner: its features, and the size of the frames they are of."""

    def __init__(self, runner: ClipRunner) -> None:
        self._runner, self._engine = runner, runner.engine
        self._cache = FeatureCache(runner.capacity)
        self._size: tuple[int, int] | None = None

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        waiting: list[Item] = []
        tasks: list[ClipTask] = []
        with closing(items):
            for item in items:
                if isinstance(item, ClipTask):
                    size = self._engine.size_of(item.height, item.width)
                    if size != self._size:
                        yield from self._flush(waiting, tasks)
                        waiting, tasks = [], []
                        self._cache, self._size = FeatureCache(self._runner.capacity), size
                    tasks.append(item)
                waiting.append(item)
                if len(tasks) >= self._runner.batch or not tasks:
                    yield from self._flush(waiting, tasks)
                    waiting, tasks = [], []
        yield from self._flush(waiting, tasks)

    def _flush(self, waiting: list[Item], tasks: list[ClipTask]) -> Iterator[Result]:
        outputs = self._outputs(tasks)
        for item in waiting:
            if isinstance(item, ClipTask):
                output = next(outputs)
                if output is not None:
                    yield output
                continue
            if isinstance(item, VideoEnd):
                self._cache.release([key for key in self._cache if key[0] == item.key])
            yield item

    def _outputs(self, tasks: list[ClipTask]) -> Iterator[ClipOutput | ClipFailure | None]:
        """Yield what each task came to; None for those of stopped videos."""
        done = 0
        while done < len(tasks):
            if tasks[done].stopped.is_set():
                done += 1
                yield None
                continue
            batch, frames = self._runner.batch, self._runner.frames_at_once
            # A video that is stopped while this looks is so for all of its later tasks, never for earlier ones alone.
            count, _ = self._engine.portion(len(tasks) - done, batch)
            following = itertools.takewhile(lambda task: not task.stopped.is_set(), tasks[done + 1 : done + count])
            chunk = [tasks[done], *following]
            outputs = self._attempt(chunk, batch, frames)
            # Outside of the except block: the traceback would keep the failed tensors alive.
            if outputs is None and self._runner.shrink(batch, frames):
                continue
            done += len(chunk)
            yield from outputs or [self._failure(task) for task in chunk]

    def _attempt(self, tasks: list[ClipTask], batch: int, frames: int) -> list[ClipOutput] | None:
        """Return outputs of one batch, or None where memory does not suffice. May be repeated with fewer tasks."""
        try:
            with self._engine.using():
                self._add_features(tasks, batch, frames)
                keys = [[(task.video, index) for index in task.clip.frames] for task in tasks]
                keys = _filled(keys, self._engine.portion(len(keys), batch)[1])
                logits, boxes = self._engine.detect(self._cache.clips(keys))
                outputs = self._download(tasks, logits, boxes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        for task in tasks:
            self._cache.release([(task.video, index) for index in task.last_uses])
        return outputs

    def _add_features(self, tasks: list[ClipTask], batch: int, frames_at_once: int) -> None:
        frames = {(task.video, index): image for task in tasks for index, image in task.new_frames.items()}
        keys = [key for key in frames if key not in self._cache]
        usual = min(batch * self._engine.targets, frames_at_once) if self._engine.graphed else frames_at_once
        while keys:
            count, size = self._engine.portion(len(keys), usual)
            chunk, keys = keys[:count], keys[count:]
            images = self._engine.images([frames[key] for key in _filled(chunk, size)], self._size)
            self._cache.add(chunk, [level[:count] for level in self._engine.extract(images)])

    def _download(self, tasks: list[ClipTask], logits: Tensor, boxes: Tensor) -> list[ClipOutput]:
        arrived = None
        if logits.is_cuda:
            logits, boxes = logits.to("cpu", non_blocking=True), boxes.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return [
            ClipOutput(task=task, logits=logits[i], boxes=boxes[i], arrived=arrived) for i, task in enumerate(tasks)
        ]

    def _failure(self, task: ClipTask) -> ClipFailure:
        task.stopped.set()  # later clips of the video need the features of this one
        return ClipFailure(task=task, error=too_large(self._engine, *self._size))


def too_large(engine: Engine, height: int, width: int) -> StnetError:
    """Return the error of a single clip of frames of this size that memory does not suffice for."""
    return StnetError(
        f"out of memory on {engine.device} with a single clip of {width} x {height} pixels; "
        "free memory on the device, or use a smaller model or --device cpu"
    )


def _filled(items: list, size: int) -> list:
    """Return the items, the last one repeated up to a number."""
    return items + items[-1:] * (size - len(items))
