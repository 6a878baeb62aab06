"""The files written for one video: annotated mp4, JSON and CSV in a folder of their own."""

from contextlib import ExitStack
from pathlib import Path

from stnet.errors import VideoError
from stnet.inference.draw import draw_detections
from stnet.inference.results import AtomicFile, CsvWriter, FrameResult, JsonWriter, exact
from stnet.video import VideoSource, VideoWriter

VIDEO_NAME, JSON_NAME, CSV_NAME = "annotated.mp4", "detections.json", "detections.csv"
FILE_NAMES = (VIDEO_NAME, JSON_NAME, CSV_NAME)


def existing_outputs(folder: Path) -> list[Path]:
    """Results that a former run left in `folder`."""
    return [folder / name for name in FILE_NAMES if (folder / name).exists()]


class VideoOutputs:
    """Writes the results of one video frame by frame.

    All files grow as `NAME.partial` and get their names in `finish`; after `abandon` they keep the partial ones.
    Files that a former run left are removed first, so that a folder never mixes two runs.

    Raises: `VideoError` when something cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        source: VideoSource,
        *,
        origin: str,
        model: dict,
        class_names: dict[int, str],
        score_threshold: float,
        video: bool,
    ) -> None:
        self.folder, self.detections, self.frames_with_detections, self.frames = folder, 0, 0, 0
        self._threshold, self._names = score_threshold, class_names
        self._files = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for former in existing_outputs(folder):
                former.unlink()
        except OSError as error:
            raise VideoError(f"{folder}: cannot be written to ({error.strerror}); choose another --output") from error
        header = {
            "video": {
                "name": source.name,
                "source": origin,
                "width": source.full_width or source.width,
                "height": source.full_height or source.height,
                "fps": exact(source.fps),
                **_region(source),
                **({} if source.pixel_aspect == 1 else {"pixel_aspect": exact(source.pixel_aspect)}),
            },
            "model": model,
        }
        with ExitStack() as opened:
            json_file = opened.enter_context(AtomicFile(folder / JSON_NAME))
            csv_file = opened.enter_context(AtomicFile(folder / CSV_NAME, newline=""))
            self._json = JsonWriter(json_file, header, class_names)
            self._csv = CsvWriter(csv_file, class_names, score_threshold)
            self._video = None
            if video:
                size = source.height, source.width
                writer = VideoWriter(folder / VIDEO_NAME, source.fps, *size, pixel_aspect=source.pixel_aspect)
                self._video = opened.enter_context(writer)
            self._files = opened.pop_all()

    def write(self, result: FrameResult) -> None:
        """Append one frame; with a video, the result must carry its image."""
        self._json.write(result)
        count = self._csv.write(result)
        self.frames += 1
        self.detections += count
        self.frames_with_detections += count > 0
        if self._video is not None:
            drawn = draw_detections(result.image, result.detections_in_image, self._names, self._threshold)
            self._video.write(drawn, result.time)

    def finish(self, status: str, problems: tuple[str, ...]) -> None:
        """Complete all files."""
        self._json.finish(status, problems)
        self._files.close()

    def abandon(self, error: BaseException) -> None:
        """Leave what there is under the partial names."""
        self._files.__exit__(type(error), error, error.__traceback__)


def _region(source: VideoSource) -> dict:
    """The part of the original frames that was looked at, where that is not all of them."""
    if source.full_width is None or (source.width, source.height) == (source.full_width, source.full_height):
        return {}
    x, y = source.origin
    return {"region": [x, y, x + source.width, y + source.height]}
