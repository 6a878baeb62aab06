"""Numbered jobs on as many threads as PyTorch uses.

The kernels release the GIL, so plain Python threads run them in parallel. Unlike Numba's own threading layers this may
be entered from several threads at once, works in a forked process, and costs no compile time.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from stnet.kernels.cpu.simd import fetch_and_add, helper


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


@helper
def next_job(jobs):
    """The number of a job that nobody has taken yet, -1 if there is none."""
    job = fetch_and_add(jobs.ctypes.data)
    return job if job < jobs[1] else -1


def run_jobs(work: Callable[[np.ndarray], None], count: int) -> None:
    """Run jobs 0 to `count` - 1, each once, in any order, on `torch.get_num_threads()` threads.

    Every thread calls `work` once, a kernel that takes jobs by `next_job` until none is left: a call from Python costs
    as much as many a job. Jobs must not depend on each other, so that results do not depend on the number of threads.
    """
    jobs = np.array([0, count], np.int64)
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(jobs)
        return
    pool = _workers.get(threads - 1)
    helpers = [pool.submit(work, jobs) for _ in range(threads - 1)]
    try:
        work(jobs)
    finally:
        for helping in helpers:
            if not helping.cancel():  # one that has not begun, on a busy machine, finds nothing left to do
                helping.result()
