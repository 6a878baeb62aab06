"""A list of videos that several processes take from, each the next one that nobody has.

No process waits for another, and none needs another: what is taken, and what is finished, stands in the output folder.
A claim is a lock of the operating system, which ends with its process, however that ends.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from stnet.errors import EXTERNAL, ConfigError, VideoError
from stnet.inference.folder_lock import FolderLock
from stnet.inference.jobs import Job, Part
from stnet.inference.records import Known, Records, input_facts
from stnet.video.inputs import BOOKS

CLAIM_NAME = "claim"


@dataclass(frozen=True, kw_only=True)
class Group:
    """This process among those that a launcher such as torchrun started together.

    Attributes:
        rank: its number.
        size: how many there are.
        local_rank: its number on its machine.
        launched: whether there is a launcher, which stops and starts all of them again where one fails.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launched: bool = False

    @classmethod
    def from_environment(cls) -> "Group":
        """Return what the launcher says in RANK, WORLD_SIZE and LOCAL_RANK; a group of one without one.

        Raises:
            ConfigError: they make no sense.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        words = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        stated = ", ".join(f"{name}={word}" for name, word in words.items())
        try:
            rank, size, local = map(int, words.values())
        except ValueError as error:
            raise ConfigError(f"{stated}: numbers are expected, as torchrun sets them") from error
        if not 0 <= rank < size:
            raise ConfigError(f"{stated}: the rank must lie below the size, as torchrun sets them")
        return cls(rank=rank, size=size, local_rank=local, launched=True)


@dataclass(kw_only=True)
class Taken:
    """A video that this process does.

    Attributes:
        job: the video.
        number: which of the list it is, from 1.
        before: bytes of the videos that came before it in this call.
        contents: what its input is, as records state it.
        claim: held until it has ended; None where nobody shares the list.
    """

    job: Job
    number: int
    before: int
    contents: dict[str, Any] = field(default_factory=dict)
    claim: FolderLock | None = None


class CommonList:
    """The videos of a run that are still to be done, taken one by one; to be iterated over once, in any thread.

    Args:
        jobs: all videos of the list, the same ones in the same order for every process.
        records: what is known of them.
        output: the folder for results.
        group: who shares the list.
        order: gives the positions of jobs in the order in which they are taken.
        resume: leave out videos whose results are finished, and do those again that have changed.
        tell: prints a message.

    Attributes:
        total: videos in the list.
        taken: those that this process took, in their order.
        began_at: when this process began, by the clock of the output folder's file system.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        records: Records,
        output: Path,
        *,
        group: Group,
        order: Callable[[Sequence[Job]], Sequence[int]],
        resume: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._jobs, self._records, self._tell, self.resume = jobs, records, tell, resume
        self._order, self.total, self.taken = order, len(jobs), []
        self._elsewhere: list[tuple[Job, int]] = []  # jobs that another process had in hand, with their numbers
        self._began, self._bytes = time.monotonic(), 0
        self.began_at = self._clock(output)
        if group.size > 1 and not self._locks_work:
            tell(f"{output}: its file system has no locks; the videos are shared out in advance")
            self._jobs = Part(group.rank + 1, group.size).of(jobs)

    def __iter__(self) -> Iterator[Taken]:
        jobs, before = self._to_do()
        passed, self._bytes = 0, sum(job.size for job in jobs)
        for number, job in enumerate(jobs, start=before + 1):
            yield from self._one(job, number, passed)
            passed += job.size
        # Who had one in hand may have died, as by SIGTERM; whoever still works at one is not waited for.
        again, self._elsewhere = self._elsewhere, []
        for job, number in again:
            yield from self._one(job, number, passed)

    def _one(self, job: Job, number: int, before: int) -> Iterator[Taken]:
        """Yield a video if this process can take it."""
        taken = self._take(Taken(job=job, number=number, before=before))
        if taken is not None:
            self.taken.append(taken)
            yield taken

    def progress(self, taken: Taken) -> str:
        """Return how far the list is with a video, and how long this one and the rest will take."""
        left = ""
        if taken.before:
            seconds = (time.monotonic() - self._began) * (self._bytes - taken.before) / taken.before
            left = f", {_duration(seconds)} left"
        return f"video {taken.number} of {self.total}{left}"

    def release(self) -> None:
        """Give back what is in hand; where a process ends, the operating system does."""
        for taken in self.taken:
            if taken.claim is not None:
                taken.claim.release()

    def refuse_changed(self) -> None:
        """Refuse to replace finished results of other settings or inputs, which only --skip-existing allows.

        Raises:
            ConfigError: naming some of them.
        """
        changed = [(job, known) for job in self._jobs if (known := self._records.known(job)).standing == "changed"]
        if changed:
            job, known = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"{job.folder}: holds other results: {known.why}{more}; add --skip-existing to do them again and to "
                "keep those that are the same, or choose another --output"
            )

    def _clock(self, output: Path) -> float:
        """Return the time by the clock of the output folder's file system, and find whether it has locks."""
        probe = output / BOOKS / f"start-{uuid4().hex}"  # numbers of processes repeat in other containers
        probe.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(probe)
        try:
            self._locks_work = lock.exclusive
            return probe.stat().st_mtime
        finally:
            lock.release()

    def _to_do(self) -> tuple[list[Job], int]:
        """Return the jobs to do in their order, and how many others are finished."""
        jobs = [self._jobs[position] for position in self._order(self._jobs)]
        if not self.resume:
            return jobs, 0
        standing = {job.name: self._records.known(job).standing for job in jobs}
        rest = [job for job in jobs if standing[job.name] != "finished"]
        # Those at which a process died come last: where it was their fault, the others are done by then.
        rest.sort(key=lambda job: standing[job.name] == "begun")
        return rest, len(jobs) - len(rest)

    def _take(self, taken: Taken) -> Taken | None:
        """Take a video, unless another process has it or has done it."""
        job = taken.job
        if self.resume:
            if self._settled(self._records.known(job)):
                return None
            try:
                folder = self._records.folder(job)
                folder.mkdir(parents=True, exist_ok=True)
                taken.claim = FolderLock(folder / CLAIM_NAME)
            except VideoError:  # another process is at it
                self._elsewhere.append((job, taken.number))
                return None
            except OSError:  # as of a folder that another user made; told when its results are begun
                taken.claim = None
            known = self._records.known(job)
            if self._settled(known):
                if taken.claim is not None:
                    taken.claim.release()
                return None
            if known.standing == "changed":
                self._tell(f"{job.name}: done again: {known.why}")
        with suppress(*EXTERNAL):  # told when it is opened
            taken.contents = input_facts(job.video)
        return taken

    def _settled(self, known: Known) -> bool:
        """Return whether a video needs nothing more; one that failed is tried once in every call."""
        if known.standing == "finished":
            return True
        return known.standing == "failed" and known.written >= self.began_at


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
