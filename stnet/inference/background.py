"""Stages of work beside each other: each in a thread, with a bounded queue to the next.

A stage is a generator; `in_background` runs it in a thread and yields what it yields. Stages chain by taking
each other's iterator. An exception in a stage arrives at the consumer after the items before it; a consumer that
stops (closed generator, exception, Ctrl-C) stops the stages behind it.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1
"""How often a stage that waits for room looks whether its consumer has gone."""

THREAD_PREFIX = "stnet-"
JOIN_SECONDS = 5.0
"""How long a consumer that stops waits for a stage to notice."""


class _End:
    """Last item of a queue: the stage is done, or failed with `error`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def in_background(items: Iterable[T], depth: int, name: str) -> Iterator[T]:
    """Iterate over `items` in a thread, at most `depth` items ahead of the consumer.

    The thread starts with the first `next`. Raises whatever `items` raises.
    """
    fifo: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_work, args=(items, fifo, stopped), name=f"{THREAD_PREFIX}{name}", daemon=True)
    thread.start()
    try:
        while True:
            item = fifo.get()
            if not isinstance(item, _End):
                yield item
                continue
            if item.error is not None:
                raise item.error
            return
    finally:
        stopped.set()
        thread.join(JOIN_SECONDS)


def _work(items: Iterable, fifo: queue.Queue, stopped: threading.Event) -> None:
    error = None
    iterator = iter(items)
    try:
        for item in iterator:
            if not _put(fifo, item, stopped):
                break
    except BaseException as caught:  # handed to the consumer, who raises it
        error = caught
    finally:
        try:
            if hasattr(iterator, "close"):
                iterator.close()
        except BaseException as caught:
            error = error or caught
        _put(fifo, _End(error), stopped)


def _put(fifo: queue.Queue, item: object, stopped: threading.Event) -> bool:
    """Wait for room; False when the consumer has gone."""
    while not stopped.is_set():
        try:
            fifo.put(item, timeout=POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False
