"""Child processes of the GPU suite: output into the log, a time limit, nothing left behind."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# How a process is stopped: signals, and seconds until the next. After an interrupt pytest still writes its results and
# names what failed, after SIGTERM it does not.
STOPPING = ((signal.SIGINT, 25.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
# The same where this process was told to stop: whoever did so may not wait for long.
HURRIED = ((signal.SIGINT, 6.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        status: exit status.
        out_of_time: it was stopped before its end, since its time was over or the suite was told to stop.
        interrupted: the suite was told to stop.
        output: what it printed.
    """

    status: int
    out_of_time: bool
    output: str
    interrupted: bool = False


def run_logged(
    command: Sequence[str], log: BinaryIO, seconds: float, *, folder: Path, variables: Mapping[str, str] | None = None
) -> Ended:
    """Run a command in `folder` for at most `seconds`, appending its output to the log.

    When time runs out, or this process is interrupted, the command and its children get signals until the command has
    ended; what it wrote until then counts.
    """
    log.write(f"\n$ {' '.join(command)}\n".encode())
    log.flush()
    start = log.tell()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    out_of_time = interrupted = False
    try:
        status = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        out_of_time, status = True, _stop(process, STOPPING)
    except KeyboardInterrupt:
        out_of_time, interrupted, status = True, True, _stop(process, HURRIED)
    except BaseException:
        _stop(process, HURRIED)
        raise
    log.seek(0, os.SEEK_END)
    with Path(log.name).open("rb") as written:
        written.seek(start)
        output = written.read().decode(errors="replace")
    return Ended(status=status, out_of_time=out_of_time, interrupted=interrupted, output=output)


def _heed_interrupts() -> None:
    """Heed interrupts: what a background shell starts ignores them, and so would every command started there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen, signals: Sequence[tuple[signal.Signals, float]]) -> int:
    for number, patience in signals:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=patience)
    return process.wait()
