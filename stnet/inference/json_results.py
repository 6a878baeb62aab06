"""`detections.json`: all that was found, frame by frame."""

from fractions import Fraction

from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts, json_text
from stnet.video import VideoSource

FORMAT = "stnet-detections/1"

CONVENTIONS = {
    "boxes": "x0 y0 x1 y1 in pixels of the original frame, as predicted: they may reach beyond it. The CSV file, the "
    "annotated video and the report cut them at the borders of the frame (of video.region, where there is one) and "
    "leave out those wholly beyond.",
    "scores": "0 to 1, best first; all are listed here, whatever the score threshold of the other files",
    "labels": "keys of class_names. A box stands once for every class that it may be of, with the same coordinates and "
    "that class's score: two rows with one box are one finding, not two.",
}


class JsonResults(Sink):
    """Writes `detections.json`, one line per frame, holding none of them in memory.

    The file is an object: `format`, `video`, `model`, `conventions` (how to read what follows), `class_names` by label,
    `frames` (each with `frame`, `time`, and columns `boxes`, `scores`, `labels`), then `status`, `problems`
    and `frame_count`, known only at the end.
    """

    file_name = "detections.json"

    def __init__(self, run: RunFacts) -> None:
        self._run, self._frames = run, 0
        self._file: GrowingFile | None = None

    def begin(self, video: VideoFacts) -> None:
        """Start the file of a video."""
        self._frames = 0
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
        self._file.write((",\n" if self._frames else "\n") + json_text(row))
        self._frames += 1

    def end(self, end: VideoEnd) -> None:
        """Write how the video was read, and complete the file."""
        tail = {"status": end.status, "problems": list(end.problems), "frame_count": self._frames}
        self._file.write("\n]," + json_text(tail)[1:] + "\n")
        self._file.close()
        self._file = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial file."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()


def _video(video: VideoFacts) -> dict:
    source = video.source
    return {
        "name": source.name,
        "source": video.origin,
        "width": source.full_width or source.width,
        "height": source.full_height or source.height,
        "fps": _exact(source.fps),
        **_region(source),
        **({} if source.pixel_aspect == 1 else {"pixel_aspect": _exact(source.pixel_aspect)}),
    }


def _exact(ratio: Fraction) -> str:
    """Return a ratio as an exact fraction, e.g. 30000/1001."""
    return f"{ratio.numerator}/{ratio.denominator}"


def _region(source: VideoSource) -> dict:
    """Return the part of the original frames that was looked at, where that is not all of them."""
    if source.full_width is None or (source.width, source.height) == (source.full_width, source.full_height):
        return {}
    x, y = source.origin
    return {"region": [x, y, x + source.width, y + source.height]}
