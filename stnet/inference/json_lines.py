"""Live results on standard output: a line of JSON for each frame, as soon as it is answered."""

import threading
import time
from typing import Any, TextIO

from stnet.command_line import silence
from stnet.inference.json_text import json_text
from stnet.inference.live import LiveResult
from stnet.inference.sink import RunFacts
from stnet.inference.watching import LiveEnd, WatchedFeed, Watcher
from stnet.lesions import LesionInFrame
from stnet.lesions.sizes import sizes_of
from stnet.video.scale import PixelScale

FORMAT = "stnet-live/1"


class JsonLines(Watcher):
    """Writes events, one a line: `start`, `frame`, `lost`, `back`, `end` (docs/live.md has their fields).

    Args:
        run: the names of classes, the score threshold, the model.
        output: where lines go.
    """

    title = "standard output"

    def __init__(self, run: RunFacts, output: TextIO) -> None:
        self._run, self._output = run, output
        self._scale: PixelScale | None = None
        self._lock = threading.Lock()

    def begin(self, feed: WatchedFeed) -> None:
        """Write `start`."""
        self._scale = feed.scale
        self._line(
            "start",
            format=FORMAT,
            feed=feed.name,
            width=feed.width,
            height=feed.height,
            **({} if feed.region is None else {"region": list(feed.region)}),
            class_names={str(label): name for label, name in self._run.class_names.items()},
            score_threshold=self._run.score_threshold,
            model=self._run.model,
        )

    def write(self, result: LiveResult) -> None:
        """Write `frame`."""
        found = result.visible.above(self._run.score_threshold)
        boxes = [_rounded(box) for box in found.boxes.tolist()]
        sizes = {} if self._scale is None else {"sizes_mm": sizes_of(boxes, self._scale)}
        self._line(
            "frame",
            frame=result.index,
            time=round(result.time, 6),
            clock=round(time.time() - result.latency, 3),
            latency=round(result.latency, 6),
            dropped=result.dropped,
            boxes=boxes,
            scores=[round(score, 6) for score in found.scores.tolist()],
            labels=found.labels.tolist(),
            **sizes,
            lesions=[lesion_in_sight(lesion, self._scale) for lesion in result.lesions or ()],
        )

    def lost(self, reason: str) -> None:
        """Write `lost`."""
        self._line("lost", reason=reason)

    def back(self) -> None:
        """Write `back`."""
        self._line("back")

    def end(self, end: LiveEnd) -> None:
        """Write `end`."""
        statistics = end.statistics
        self._line(
            "end",
            status=end.status,
            problems=list(end.problems),
            frames=statistics.frames,
            dropped=statistics.dropped,
            latency_median=round(statistics.median, 6),
            latency_percentile_99=round(statistics.percentile_99, 6),
        )

    def _line(self, event: str, **fields: Any) -> None:
        text = json_text({"event": event, **fields}) + "\n"
        try:
            with self._lock:
                self._output.write(text)
                self._output.flush()
        except (OSError, ValueError) as error:
            silence(self._output)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OSError(f"nobody reads it any more ({reason})") from error


def lesion_in_sight(lesion: LesionInFrame, scale: PixelScale | None) -> dict[str, Any]:
    """Return what is told of a lesion in a frame."""
    told = {"lesion": lesion.number, "label": lesion.label, "score": round(lesion.score, 6)}
    told |= {"box": _rounded(lesion.box.tolist()), "found": lesion.found}
    if scale is not None:
        told["size_mm"] = sizes_of([lesion.box.tolist()], scale)[0]
    return told


def _rounded(box: list[float]) -> list[float]:
    return [round(value, 2) for value in box]
