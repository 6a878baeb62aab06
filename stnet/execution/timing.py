"""Where the time goes: seconds per stage, added up over threads."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

STAGES = ("decode", "resize", "backbone", "encoder", "decoder", "post", "write")


class StageTimer:
    """Adds up wall time per stage. Stages overlap (threads), so their sum may exceed the time that passed.

    Args:
        device: device to wait for at both ends of a stage that runs there; waiting keeps the stages of a GPU
            apart and slows the whole down, so timers are used only when asked for (`--profile`).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, on_device: bool = False) -> Iterator[None]:
        """Time the block as `name`."""
        start = self._now(on_device)
        try:
            yield
        finally:
            elapsed = self._now(on_device) - start
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def iterate(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, timing how long each takes to come."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def watch(self, module: torch.nn.Module, name: str) -> None:
        """Time every forward pass of a module as `name`."""
        started = threading.local()  # a model may run in several threads at once

        def before(*_) -> None:
            started.at = self._now(True)

        def after(*_) -> None:
            elapsed = self._now(True) - started.at
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _now(self, on_device: bool) -> float:
        if on_device and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
