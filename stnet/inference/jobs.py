"""From what a user names to the list of videos, each with the folder for its results."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stnet.errors import EXTERNAL
from stnet.files import PARTIAL
from stnet.inference.clip_reader import failed
from stnet.inference.folder_lock import lock_beside
from stnet.inference.formats import PER_VIDEO
from stnet.inference.names import Names
from stnet.inference.report import REPORT_NAME
from stnet.inference.summary import SUMMARY_NAME, VideoSummary
from stnet.video import VideoInput, read_still_header
from stnet.video.inputs import BOOKS
from stnet.video.stills import IMAGE_SUFFIXES

PER_RUN = (REPORT_NAME, SUMMARY_NAME)
"""Files for all videos together, in the output folder."""

LONGEST_NAME = 200
"""Bytes of the name of a video's folder; file systems allow 255, and numbers or endings may follow."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video, the folder for its results, and its size in bytes."""

    name: str
    video: VideoInput
    folder: Path
    size: int


@dataclass(frozen=True)
class Part:
    """One of several parts of a list, counted from 1."""

    number: int = 1
    count: int = 1

    def of(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs of this part, in their order; parts are about equal in bytes, and the same in every call."""
        loads, mine = [0] * self.count, set()
        for position in largest_first(jobs):
            lightest = loads.index(min(loads))
            loads[lightest] += max(1, jobs[position].size)
            if lightest == self.number - 1:
                mine.add(position)
        return [job for position, job in enumerate(jobs) if position in mine]


def largest_first(jobs: Sequence[Job]) -> list[int]:
    """Return the positions of jobs by falling size; of equal ones the first comes first."""
    return sorted(range(len(jobs)), key=lambda position: -jobs[position].size)


def by_picture_size(jobs: Sequence[Job]) -> list[int]:
    """Return the positions of jobs so that stills of one size follow each other and go through the model together."""
    return sorted(range(len(jobs)), key=lambda position: _picture_size(jobs[position].video))


def plan_jobs(names: Names, output: Path) -> tuple[list[Job], list[VideoSummary]]:
    """Return a job for every video that was named, and a row for every name that stands for nothing.

    Args:
        names: what was named.
        output: the folder for results.
    """
    # Not only equal names clash: some file systems do not tell capital letters, and the run's own files lie there too.
    jobs, taken = [], {BOOKS, *(name for file_name in PER_RUN for name in _beside(file_name))}
    numbers: dict[str, int] = {}
    for video in names.videos:
        wanted = _shortened(video.name) if video.name not in ("", ".", "..") else "video"
        name, number = wanted, numbers.get(wanted, 1)
        while name.casefold() in taken:
            number += 1
            name = f"{wanted}-{number}"
        numbers[wanted] = number
        taken.add(name.casefold())
        jobs.append(Job(name=name, video=video, folder=output / name, size=_bytes(video)))
    return jobs, [VideoSummary.of(failed(0, one.name, one.error)) for one in names.missing]


def former_results(jobs: Sequence[Job], output: Path, formats: Sequence[str]) -> list[Path]:
    """Return the paths of all files of results that a run may find or will write."""
    of_run = [output / REPORT_NAME] if "report" in formats else []
    return of_run + [job.folder / name for job in jobs for name in PER_VIDEO]


def _beside(file_name: str) -> tuple[str, ...]:
    """Return the names that a file of the run takes while it is written and afterwards."""
    return file_name, f"{file_name}{PARTIAL}", lock_beside(Path(file_name)).name


def _shortened(name: str) -> str:
    """Return a name that a folder can have: those of files in deep folders hold the folders' names, too."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    head = encoded[: LONGEST_NAME - len(digest) - 1].decode("utf-8", "ignore")
    return f"{head}-{digest}"


def _bytes(video: VideoInput) -> int:
    size = 0
    for path in video.paths:
        try:
            size += path.stat().st_size
        except OSError:  # told when the video is opened
            continue
    return size


def _picture_size(video: VideoInput) -> tuple[int, int]:
    with suppress(*EXTERNAL):  # told when it is opened
        if not video.dicom and len(video.paths) == 1 and video.paths[0].suffix.lower() in IMAGE_SUFFIXES:
            header = read_still_header(video.paths[0])
            return header.height, header.width
    return 0, 0
