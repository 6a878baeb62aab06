"""Several training processes on one processor, started by the command itself.

A training step is thousands of short operations. With several threads each ends at a barrier where OpenMP's threads
wait spinning, so whenever anything else wants a core, be it a loader, all of them wait for the one that lost it: one
process with two threads was measured ten times slower on two busy cores than two processes of one thread each, which
wait for each other once a step.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import IO

import torch
import torch.distributed as dist

from stnet.errors import ConfigError, StnetError
from stnet.training.interrupt import EXIT_CODES

LAUNCHED = "WORLD_SIZE"
"""Environment variable of processes that somebody started together."""

GRACE_SECONDS = 10.0
"""After one process has failed the first one has this long to fail for the same reason and to say so itself."""

SHOWN_LINES = 20


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


class CompanionFailedError(StnetError):
    """Another process of the training failed; the message is what it said."""


class Companions:
    """The other processes of a training, which run the same command; this one becomes the first of them.

    Every process computes with one thread. One that fails takes all with it. What the others say is kept from the
    terminal unless one of them fails first.

    Args:
        count: processes in all; 1 leaves everything as it is.
        arguments: of the command.
    """

    def __init__(self, count: int, arguments: list[str]):
        self._companions: list[subprocess.Popen] = []
        self._said: list[IO[str]] = []
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
        command = [sys.executable, "-m", "stnet", *arguments, "--processes", "1"]  # the last one counts
        for rank in range(1, count):
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._said.append(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
            self._companions.append(subprocess.Popen(command, env=os.environ | shared | places, stderr=self._said[-1]))
        os.environ.update(shared | {"RANK": "0", "LOCAL_RANK": "0"})
        torch.set_num_threads(1)
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> "Companions":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the others, after an error no longer than needed.

        Raises:
            CompanionFailedError: this process failed because another one did.
        """
        self._leaving = True
        if not self._companions:
            return
        if isinstance(error, RuntimeError):  # such as a connection that is closed at the other end
            time.sleep(1.0)
        failure = self._failure()
        for companion in self._companions:
            if kind is not None:
                companion.terminate()
            companion.wait()
        for said in self._said:
            said.close()
        environment, threads = self._before
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        if isinstance(error, RuntimeError) and failure:
            raise CompanionFailedError(failure) from error

    def _failure(self) -> str | None:
        """Return what a process said that failed by itself; None while there is none."""
        for companion, said in zip(self._companions, self._said, strict=True):
            status = companion.poll()
            if status is not None and status not in (0, *EXIT_CODES.values()):
                said.seek(0)
                lines = said.read().strip().splitlines()[-SHOWN_LINES:]
                stated = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
                text = stated[-1] if stated else "\n".join(lines)
                return text or f"a training process ended with exit status {status}"
        return None

    def _watch(self) -> None:
        """Leave when another process fails: this one may wait for it where no exception arrives."""
        while self._failure() is None:
            time.sleep(0.5)
            if self._leaving:
                return
        time.sleep(GRACE_SECONDS)
        if not self._leaving:
            print(f"error: {self._failure()}", file=sys.stderr, flush=True)
            for companion in self._companions:
                companion.terminate()
            os._exit(1)
