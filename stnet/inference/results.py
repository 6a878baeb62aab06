"""What was found: per frame in memory, and on disk as JSON and CSV that are complete or named `.partial`."""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from stnet.errors import VideoError
from stnet.model.postprocess import Detections

FORMAT = "stnet-detections/1"


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The detections in one frame of a video.

    `index` counts the frames of the video from 0, `time` is in seconds from its first frame. `detections` has
    boxes x0 y0 x1 y1 in pixels of the original frame (not clipped to it), best score first. `image` is the
    frame itself, uint8 RGB `[H, W, 3]`, where it was asked for; where only a part of the original frame was used,
    it is that part, and `origin` the x, y of its corner. `file` is its name where frames are files.
    """

    video: str
    index: int
    time: float
    detections: Detections
    image: np.ndarray | None = None
    file: str | None = None
    origin: tuple[int, int] = (0, 0)

    @property
    def detections_in_image(self) -> Detections:
        """The detections with boxes in pixels of `image`."""
        return shifted(self.detections, (-self.origin[0], -self.origin[1]))


def shifted(detections: Detections, by: tuple[int, int]) -> Detections:
    """The same detections with all boxes moved by x, y pixels."""
    if by == (0, 0):
        return detections
    boxes = detections.boxes + detections.boxes.new_tensor([*by, *by])
    return Detections(boxes, detections.scores, detections.labels)


class AtomicFile:
    """A text file that grows in `NAME.partial` and takes its name when closed without an error.

    Raises: `VideoError` whenever it cannot be written, a full disk included.
    """

    def __init__(self, path: Path, newline: str | None = None) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        with self._reporting():
            self._handle: IO[str] = open(self.partial, "w", encoding="utf-8", newline=newline)  # noqa: SIM115

    def write(self, text: str) -> None:
        """Append text."""
        with self._reporting():
            self._handle.write(text)

    def __enter__(self) -> "AtomicFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # What is still in memory may not fit on a full disk either.
            with suppress(OSError):
                self._handle.close()
            return
        with self._reporting():
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
            os.replace(self.partial, self.path)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise VideoError(f"{self.partial}: cannot be written ({error.strerror})") from error


class JsonWriter:
    """Writes `detections.json`, one line per frame, holding none of them in memory.

    The file is an object: `format`, `video`, `model` (from `header`), `class_names` by label, `frames` (each with
    `frame`, `time`, and columns `boxes` (x0 y0 x1 y1 in pixels), `scores`, `labels`), then `status`, `problems`
    and `frame_count`, known only at the end.
    """

    def __init__(self, file: AtomicFile, header: dict, class_names: dict[int, str]) -> None:
        self._write = file.write
        self._frames = 0
        head = {"format": FORMAT, **header, "class_names": {str(k): v for k, v in class_names.items()}}
        self._write(_dump(head)[:-1] + ',"frames":[')

    def write(self, result: FrameResult) -> None:
        """Append one frame."""
        detections = result.detections
        row: dict = {"frame": result.index, "time": round(result.time, 6)}
        if result.file is not None:
            row["file"] = result.file
        row["boxes"] = [[round(float(x), 2) for x in box] for box in detections.boxes]
        row["scores"] = [round(float(score), 6) for score in detections.scores]
        row["labels"] = [int(label) for label in detections.labels]
        self._write((",\n" if self._frames else "\n") + _dump(row))
        self._frames += 1

    def finish(self, status: str, problems: tuple[str, ...]) -> None:
        """Write the end: how the video was read."""
        tail = {"status": status, "problems": list(problems), "frame_count": self._frames}
        self._write("\n]," + _dump(tail)[1:] + "\n")


class CsvWriter:
    """Writes `detections.csv`: one row for each detection of at least `score_threshold`."""

    COLUMNS = ("frame", "time", "x0", "y0", "x1", "y1", "score", "class")

    def __init__(self, file: AtomicFile, class_names: dict[int, str], score_threshold: float) -> None:
        self._names, self._threshold = class_names, score_threshold
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(self.COLUMNS)

    def write(self, result: FrameResult) -> int:
        """Append the detections of one frame; returns how many there were."""
        detections, count = result.detections, 0
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True):
            if float(score) < self._threshold:
                continue
            corners = [f"{float(x):.2f}" for x in box]
            name = class_name(self._names, int(label))
            self._rows.writerow([result.index, f"{result.time:.6f}", *corners, f"{float(score):.6f}", name])
            count += 1
        return count


def class_name(names: dict[int, str], label: int) -> str:
    """The name of a label; labels without one show as numbers."""
    return names.get(label, str(label))


def exact(fps: Fraction) -> str:
    """A frame rate as an exact fraction, e.g. 30000/1001."""
    return f"{fps.numerator}/{fps.denominator}"


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
