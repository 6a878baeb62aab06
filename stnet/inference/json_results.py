"""`detections.json`: all that was found, frame by frame."""

import json
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.frame_results import FrameResult
from stnet.inference.json_text import json_text
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion
from stnet.lesions.owners import owner_column, owners_of
from stnet.lesions.result_rows import lesion_entry
from stnet.lesions.sizes import sizes_of
from stnet.video.scale import PixelScale

FORMAT = "stnet-detections/2"

CONVENTIONS = {
    "boxes": "x0 y0 x1 y1 in pixels of the original frame, as predicted: they may reach beyond it. The CSV file, the "
    "annotated video and the report cut them at the borders of the frame (of video.region, where there is one) and "
    "leave out those wholly beyond.",
    "scores": "0 to 1, best first; all are listed here, whatever the score threshold of the other files",
    "labels": "keys of class_names. A box stands once for every class that it may be of, with the same coordinates and "
    "that class's score: two rows with one box are one finding, not two.",
    "sizes": "width, depth extent and depth of the top in millimetres; null, or absent, where no scale is known.",
    "lesions": "detections of one lesion linked over the frames; track.boxes are smoothed, track.rows tell where a "
    "frame lists what was found; null where the lesion was missed in passing and its box is filled in. The lesions of "
    "a frame are those its detections belong to, null where it is none.",
}

FRAME = '{"frame":'
"""How the line of a frame begins."""


class JsonResults(Sink):
    """Writes `detections.json`, one line per frame, holding none of them in memory.

    The file is an object: `format`, `video`, `model`, `conventions` (how to read what follows), `class_names` by label,
    `frames` (each with `frame`, `time`, and columns `boxes`, `scores`, `labels`, `sizes_mm`, `lesions`), then
    `lesions`, `status`, `problems` and `frame_count`. Which lesion a detection belongs to is known only at the end, so
    that column is written then. `detections.schema.json` describes the file.
    """

    file_name = "detections.json"

    def __init__(self, run: RunFacts) -> None:
        self._run, self._frames = run, 0
        self._file: GrowingFile | None = None
        self._scale: PixelScale | None = None
        self._lesions: Sequence[Lesion] = ()

    def begin(self, video: VideoFacts) -> None:
        """Start the file of a video."""
        self._frames, self._scale, self._lesions = 0, video.scale, ()
        self._file = GrowingFile(video.folder / self.file_name)
        head = {
            "format": FORMAT,
            "video": _video(video),
            "model": self._run.model,
            "conventions": CONVENTIONS,
            "class_names": {str(label): name for label, name in self._run.class_names.items()},
        }
        self._file.write(json_text(head)[:-1] + ',"frames":[')

    def write(self, result: FrameResult) -> None:
        """Append one frame."""
        detections = result.detections
        row: dict = {"frame": result.index, "time": round(result.time, 6)}
        if result.file is not None:
            row["file"] = result.file
        row["boxes"] = [[round(float(x), 2) for x in box] for box in detections.boxes]
        row["scores"] = [round(float(score), 6) for score in detections.scores]
        row["labels"] = [int(label) for label in detections.labels]
        if self._scale is not None:
            row["sizes_mm"] = sizes_of(detections.boxes.tolist(), self._scale)
        self._file.write((",\n" if self._frames else "\n") + json_text(row))
        self._frames += 1

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions."""
        self._lesions = found

    def end(self, end: VideoEnd) -> None:
        """Write how the video was read, and complete the file."""
        lesions = [lesion_entry(lesion, self._run.class_names, self._scale) for lesion in self._lesions]
        tail = {"lesions": lesions, "status": end.status, "problems": list(end.problems), "frame_count": self._frames}
        self._file.write("\n]," + json_text(tail)[1:] + "\n")
        self._file.close(self._owned)
        self._file = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial file."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()

    def _owned(self, lines: Iterable[str]) -> Iterator[str]:
        """Give the frames among the file's lines the column of their lesions."""
        owners = owners_of(self._lesions)
        for line in lines:
            if not line.startswith(FRAME):
                yield line
                continue
            text, comma, end = line.rpartition("}")
            frame = json.loads(text + comma)
            boxes = frame["boxes"]
            column = owner_column(range(len(boxes)), boxes, owners.get(frame["frame"], {}))
            yield f'{text},"lesions":{json_text(column)}}}{end}'


def _video(video: VideoFacts) -> dict:
    source = video.source
    height, width = source.full_size
    return {
        "name": source.name,
        "source": video.origin,
        "width": width,
        "height": height,
        "fps": _exact(source.fps),
        **({} if source.region is None else {"region": list(source.region)}),
        **({} if source.pixel_aspect == 1 else {"pixel_aspect": _exact(source.pixel_aspect)}),
    }


def _exact(ratio: Fraction) -> str:
    """Return a ratio as an exact fraction, e.g. 30000/1001."""
    return f"{ratio.numerator}/{ratio.denominator}"
