"""Numbered jobs on as many threads as PyTorch uses.

The kernels release the GIL, so plain Python threads run them in parallel. Unlike Numba's own threading layers this may
be entered from several threads at once, works in a forked process, and costs no compile time.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class _Workers:
    """A thread pool that grows on demand and is forgotten in a forked child, where its threads do not exist."""

    def __init__(self):
        self.pool: ThreadPoolExecutor | None = None
        self.size = 0

    def get(self, size: int) -> ThreadPoolExecutor:
        if size > self.size:
            # Calls in flight on a smaller pool finish there; its threads end when the last reference goes.
            self.pool, self.size = ThreadPoolExecutor(size, thread_name_prefix="stnet-cpu"), size
        return self.pool

    def forget(self):
        self.pool, self.size = None, 0


_workers = _Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.forget)


def run_jobs(job: Callable[[int], None], count: int) -> None:
    """Call `job(0)` to `job(count - 1)`, each once, in any order, on `torch.get_num_threads()` threads.

    Jobs must not depend on each other, so that results do not depend on the number of threads.
    """
    threads = min(torch.get_num_threads(), count)
    numbers = itertools.count()

    def drain():
        while (number := next(numbers)) < count:
            job(number)

    if threads <= 1:
        drain()
        return
    pool = _workers.get(threads - 1)
    helpers = [pool.submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        for helper in helpers:
            helper.result()
