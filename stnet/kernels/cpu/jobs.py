"""Numbered jobs on as many threads as PyTorch uses.

These are PyTorch's own where they can be had (`team`). Elsewhere, and in forked processes, where OpenMP's threads do
not exist, a pool has threads: kernels release the GIL. Unlike Numba's own threading layers both may be entered from
several threads at once, and cost no compile time.

Kernels get arrays by address: the count of an array's users is one number for all threads, which would wait for it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from stnet.kernels.cpu.simd import fetch_and_add, helper, read_long
from stnet.kernels.cpu.team import pytorch_team


class _Workers:
    """A thread pool that grows on demand and is forgotten in a forked child, where its threads do not exist."""

    def __init__(self):
        self.pool: ThreadPoolExecutor | None = None
        self.size = 0
        self.forked = False

    def get(self, size: int) -> ThreadPoolExecutor:
        if size > self.size:
            # Calls in flight on a smaller pool finish there; its threads end when the last reference goes.
            self.pool, self.size = ThreadPoolExecutor(size, thread_name_prefix="stnet-cpu"), size
        return self.pool

    def forget(self):
        self.pool, self.size, self.forked = None, 0, True


_workers = _Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.forget)


_LINE = 8  # numbers of a cache line: counters that threads write lie on lines of their own


@helper
def next_job(jobs, me):
    """The number of a job that nobody has taken yet, -1 if there is none, for the thread of number `me`.

    Each thread has a run of adjacent jobs, which read the same cells, and helps the next ones when that is done.
    """
    count, threads = read_long(jobs, 0), read_long(jobs, 1)
    for i in range(threads):
        owner = (me + i) % threads
        end = (owner + 1) * count // threads
        counter = (owner + 1) * _LINE
        if read_long(jobs, counter) < end:
            job = fetch_and_add(jobs + 8 * counter)
            if job < end:
                return job
    return -1


def _numbered(count: int, threads: int) -> np.ndarray:
    """What `next_job` wants."""
    jobs = np.zeros((threads + 1) * _LINE, np.int64)
    jobs[:2] = count, threads
    jobs[_LINE::_LINE] = np.arange(threads) * count // threads
    return jobs


def run_jobs(work: Callable[..., Any], on_team: Callable[..., int], arguments: tuple[Any, ...], count: int) -> None:
    """Run jobs 0 to `count` - 1, each once, in any order, on `torch.get_num_threads()` threads.

    Args:
        work: a kernel of a thread's number, what `next_job` wants, and `arguments`, that takes jobs by `next_job` until
            none is left. Every thread calls it once: a call from Python costs as much as many a job.
        on_team: a kernel that calls `work` by `team.on_team`. It takes a `Width` by name: in the tuple of the others
            that would cost Numba a tenth of a millisecond to recognize.
        arguments: see `work`.
        count: jobs must not depend on each other, so that results do not depend on the number of threads.

    Raises:
        MemoryError: where a thread could not allocate.
    """
    threads, team = torch.get_num_threads(), None if _workers.forked else pytorch_team()
    if team is None or count <= 1:  # a team smaller than PyTorch's would end some of its threads
        threads = max(1, min(threads, count))
    numbers = _numbered(count, threads)  # lives as long as this call
    jobs = numbers.ctypes.data
    if threads == 1:
        work(0, jobs, *arguments)
    elif team is None:
        _on_pool(work, (jobs, *arguments), threads)
    elif on_team(*team, threads, jobs, *arguments):
        raise MemoryError("a thread of a CPU kernel could not allocate its few kilobytes")


def _on_pool(work: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> None:
    pool = _workers.get(threads - 1)
    helpers = [pool.submit(work, me, *arguments) for me in range(1, threads)]
    try:
        work(0, *arguments)
    finally:
        for helping in helpers:
            if not helping.cancel():  # one that has not begun, on a busy machine, finds nothing left to do
                helping.result()
