"""Numbered jobs on as many threads as PyTorch uses.

The kernels release the GIL, so that threads that call them from Python run them in parallel. Where PyTorch runs on
GNU's OpenMP these are PyTorch's own: having done their part of a matrix product they wait for the next one without
sleeping, for ten milliseconds or more, and other threads would have to share the cores with them. Elsewhere, and in
forked processes, where OpenMP's threads do not exist, a pool has threads. Unlike Numba's own threading layers both may
be entered from several threads at once, and cost no compile time.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from stnet.kernels.cpu.simd import fetch_and_add, helper

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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
    jobs, threads = np.array([0, count], np.int64), torch.get_num_threads()
    if min(threads, count) <= 1:
        work(jobs)
    elif _workers.forked or (team := _openmp()) is None:
        _on_pool(work, jobs, min(threads, count))
    else:
        _on_team(team, work, jobs, threads)


def _on_team(team: Callable, work: Callable[[np.ndarray], None], jobs: np.ndarray, threads: int) -> None:
    """Work on all of OpenMP's threads, also where there are fewer jobs: a smaller team would end some of them."""
    failures = []

    def body(_) -> None:
        try:
            work(jobs)
        except BaseException as error:  # nothing may leave a function that C calls
            failures.append(error)

    team(_BODY(body), None, threads, 0)
    if failures:
        raise failures[0]


def _on_pool(work: Callable[[np.ndarray], None], jobs: np.ndarray, threads: int) -> None:
    pool = _workers.get(threads - 1)
    helpers = [pool.submit(work, jobs) for _ in range(threads - 1)]
    try:
        work(jobs)
    finally:
        for helping in helpers:
            if not helping.cancel():  # one that has not begun, on a busy machine, finds nothing left to do
                helping.result()


@functools.cache
def _openmp() -> Callable | None:
    """`GOMP_parallel(body, data, threads, flags)` of the library that PyTorch's own loops run on, None without one."""
    try:
        function = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):  # macOS, Windows, a PyTorch of other threads
        return None
    function.argtypes, function.restype = (_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return function
