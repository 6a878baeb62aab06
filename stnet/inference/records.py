"""What is known of every video of an output folder: how its results were made, from what, and how that ended.

A record lies beside the results, in `.stnet/NAME/record.json`: begun before the first result is written, ended after
the last. So a process that was killed leaves results that are known to be unfinished, and a later call can tell
whether those that are finished are what it would write itself.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from stnet.files import write_json
from stnet.inference.formats import PER_VIDEO
from stnet.inference.jobs import Job
from stnet.inference.summary import WRITTEN, VideoSummary
from stnet.video import VideoInput
from stnet.video.inputs import BOOKS

RECORD_NAME = "record.json"
CHUNK_BYTES = 2**20

Standing = Literal["unknown", "begun", "failed", "finished", "changed"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a video.

    Attributes:
        standing: unknown (no record), begun (a process died at it, or is at it), failed (no results), finished (its
            results are what this run would write), changed (results of other settings or another input).
        why: what has changed.
        row: of the final table, where the video has ended.
        written: when the record was written, by the clock of its file system.
    """

    standing: Standing
    why: str = ""
    row: VideoSummary | None = None
    written: float = 0.0


class Records:
    """The records of one output folder, as a run with certain settings sees them.

    Args:
        output: the folder.
        settings: what results depend on beside the video; values of JSON.
        formats: names of the formats that a run writes.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], formats: tuple[str, ...]) -> None:
        self._books, self._settings, self._formats = output / BOOKS, dict(settings), formats

    def folder(self, job: Job) -> Path:
        """Return the folder for what is noted of a video."""
        return self._books / job.name

    def begin(self, job: Job, contents: Mapping[str, Any]) -> None:
        """Note that results of a video are being written.

        Args:
            job: the video.
            contents: as from `input_facts`, before it was read.

        Raises:
            OSError: it cannot be written.
        """
        self._write(job, contents, None)

    def end(self, job: Job, contents: Mapping[str, Any], row: VideoSummary) -> None:
        """Note how a video ended.

        Raises:
            OSError: it cannot be written.
        """
        self._write(job, contents, row)

    def known(self, job: Job) -> Known:
        """Return what is known of a video."""
        path = self.folder(job) / RECORD_NAME
        try:
            written = path.stat().st_mtime
            record = json.loads(path.read_text(encoding="utf-8"))
            row = None if record["row"] is None else _row(record["row"], job)
            settings, formats, contents = dict(record["settings"]), set(record["formats"]), dict(record["input"])
            there = list(map(str, record["results"]))
        except (OSError, ValueError, KeyError, TypeError):
            return (
                Known(standing="changed", why="how its results were made is not known") if _results(job) else _UNKNOWN
            )
        if row is None:
            return Known(standing="begun", written=written)
        if not (row.frames and row.status in WRITTEN):
            return Known(standing="failed", row=row, written=written)
        why = self._difference(settings, formats) or _changed_input(job, contents)
        if why:
            return Known(standing="changed", why=why, row=row, written=written)
        if not all((job.folder / name).exists() for name in there):
            return Known(standing="begun", row=row, written=written)  # results were removed since
        return Known(standing="finished", row=row, written=written)

    def ended(self, job: Job) -> VideoSummary | None:
        """Return how a video ended with these settings, None where it has not."""
        known = self.known(job)
        return known.row if known.standing in ("finished", "failed") else None

    def _write(self, job: Job, contents: Mapping[str, Any], row: VideoSummary | None) -> None:
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "settings": self._settings,
            "formats": self._formats,
            "input": contents,
            "row": None if row is None else asdict(row),
            "results": [] if row is None else _results(job),
        }
        write_json(folder / RECORD_NAME, record)

    def _difference(self, settings: Mapping[str, Any], formats: set[str]) -> str:
        """Return in which way results were made otherwise, empty where they were not."""
        now = json.loads(json.dumps(self._settings))
        changed = [name for name in now if settings.get(name) != now[name]]
        if "model" in changed:
            return "made by another model"
        if changed:
            return "; ".join(f"{name} was {settings.get(name)}, is {now[name]}" for name in changed)
        missing = [name for name in self._formats if name not in formats]
        return f"made without {', '.join(missing)}" if missing else ""


_UNKNOWN = Known(standing="unknown")


def input_facts(video: VideoInput) -> dict[str, Any]:
    """Return by which the input of a video is known again: number, bytes, latest change and a hash of its files.

    Raises:
        OSError: it cannot be read.
    """
    return _stated(video) | {"hash": _hash(video)}


def _stated(video: VideoInput) -> dict[str, Any]:
    stats = [path.stat() for path in video.paths]
    return {
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "changed": max(stat.st_mtime_ns for stat in stats),
    }


def _hash(video: VideoInput) -> str:
    digest = hashlib.sha256()
    for path in video.paths:
        if not video.dicom:  # names of frames stand in results; those of DICOM files are nowhere to be noted
            digest.update(f"{path.name}\0".encode(errors="surrogateescape"))
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _changed_input(job: Job, contents: Mapping[str, Any]) -> str:
    try:
        now = _stated(job.video)
        same = now == {name: contents.get(name) for name in now}
        # A copy has another time, and may be the same for all that.
        if not same and now["bytes"] == contents.get("bytes"):
            same = _hash(job.video) == contents.get("hash")
    except OSError:
        return "its file cannot be read any more"
    return "" if same else "its file has changed"


def _row(values: Mapping[str, Any], job: Job) -> VideoSummary:
    row = VideoSummary(**{field.name: values[field.name] for field in fields(VideoSummary)})
    numbers = (row.frames, row.detections, row.frames_with_detections, row.lesions, row.seconds, row.lesion_score or 0)
    if not all(isinstance(number, int | float) for number in numbers) or not isinstance(row.status, str):
        raise ValueError("numbers and words are expected")
    values = {**asdict(row), "name": job.name, "folder": str(job.folder)}
    return VideoSummary(**values | {"problems": tuple(map(str, row.problems))})


def _results(job: Job) -> list[str]:
    return [name for name in PER_VIDEO if (job.folder / name).exists()]
