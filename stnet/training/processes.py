"""Several training processes on one processor, started by the command itself.

A training step is thousands of short operations. With several threads each ends at a barrier where OpenMP's threads
wait spinning, so whenever anything else wants a core, be it a loader, all of them wait for the one that lost it: one
process with two threads was measured ten times slower on two busy cores than two processes of one thread each, which
wait for each other once a step.
"""

import os
import subprocess
import sys
import threading
import time
from types import TracebackType

import torch
import torch.distributed as dist

from stnet.errors import ConfigError
from stnet.training.interrupt import EXIT_CODES

LAUNCHED = "WORLD_SIZE"
"""Environment variable of processes that somebody started together."""

GRACE_SECONDS = 10.0
"""A process that fails has this long to be joined by the others, which often fail for the same reason."""


def choose_processes(given: int | None, device: str, clips: int | None) -> int:
    """Return how many processes train on this machine, this one included.

    Args:
        given: on the command line; None: one for each core that divides the batch evenly, or one with a GPU.
        device: as given on the command line.
        clips: of a forward pass in all processes; None where they need not be shared evenly.

    Raises:
        ConfigError: several processes where torchrun has started some already, or that would share a GPU.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if given is not None and given > 1 and LAUNCHED in os.environ:
        raise ConfigError(f"--processes {given}: this process is one of several already; leave the option out")
    if given is not None and given > 1 and not on_cpu:
        raise ConfigError(f"--processes {given}: is for CPUs; with several GPUs start with torchrun --nproc_per_node")
    if given is not None:
        return given
    if LAUNCHED in os.environ or not on_cpu:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(count for count in range(1, cores + 1) if not clips or clips % count == 0)


class Companions:
    """The other processes of a training, which run the same command; this one becomes the first of them.

    Every process computes with one thread. One that fails takes all with it.

    Args:
        count: processes in all; 1 leaves everything as it is.
        arguments: of the command.
    """

    def __init__(self, count: int, arguments: list[str]):
        self._companions: list[subprocess.Popen] = []
        self._leaving = False
        self._before = dict(os.environ), torch.get_num_threads()
        if count == 1:
            return
        # It chooses a free port; the first process uses it like the others.
        self._store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            LAUNCHED: str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "stnet.training.cli", *arguments, "--processes", "1"]  # the last one counts
        for rank in range(1, count):
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._companions.append(subprocess.Popen(command, env=os.environ | shared | places))
        os.environ.update(shared | {"RANK": "0", "LOCAL_RANK": "0"})
        torch.set_num_threads(1)
        for companion in self._companions:
            threading.Thread(target=self._watch, args=(companion,), daemon=True).start()

    def __enter__(self) -> "Companions":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        for companion in self._companions:
            if kind is not None:
                companion.terminate()
            companion.wait()
        if self._companions:
            environment, threads = self._before
            os.environ.clear()
            os.environ.update(environment)
            torch.set_num_threads(threads)

    def _watch(self, companion: subprocess.Popen) -> None:
        """Leave at once when a companion fails: this process may wait for it where no exception arrives."""
        if companion.wait() in (0, *EXIT_CODES.values()):
            return
        time.sleep(GRACE_SECONDS)
        if not self._leaving:
            print(f"error: a training process failed (exit status {companion.returncode})", file=sys.stderr, flush=True)
            for other in self._companions:
                other.terminate()
            os._exit(1)
