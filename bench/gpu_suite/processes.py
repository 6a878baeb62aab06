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


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: its exit status, whether time ran out, and its output."""

    status: int
    out_of_time: bool
    output: str


def run_logged(
    command: Sequence[str], log: BinaryIO, seconds: float, *, folder: Path, variables: Mapping[str, str] | None = None
) -> Ended:
    """Run a command in `folder` for at most `seconds`, appending its output to the log.

    When time runs out, or this process is interrupted, the command and its children get the signals of STOPPING until
    the command has ended.
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
    out_of_time = False
    try:
        status = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        out_of_time = True
        status = _stop(process)
    except BaseException:
        _stop(process)
        raise
    log.seek(0, os.SEEK_END)
    with Path(log.name).open("rb") as written:
        written.seek(start)
        return Ended(status=status, out_of_time=out_of_time, output=written.read().decode(errors="replace"))


def _heed_interrupts() -> None:
    """What a background shell starts ignores interrupts, and so would every command started from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> int:
    for number, patience in STOPPING:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=patience)
    return process.wait()
