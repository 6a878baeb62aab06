"""`annotated.mp4`: the video with what was found drawn into it."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np

from stnet.errors import VideoError
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.draw import draw_marks, readable_scale
from stnet.inference.frame_marks import Listed, in_frame, listed, marks_of
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion, LesionInFrame
from stnet.video import VideoSource, VideoWriter


class AnnotatedVideo(Sink):
    """Writes `annotated.mp4`, with boxes, numbers of lesions, classes and scores from the score threshold on.

    Which lesion a box belongs to is known when the video has ended; it is read once more then, and drawn. A feed cannot
    be: its frames are drawn as they come, with the lesions known by then. Small frames are enlarged by a whole number
    so that the labels can be read.
    """

    file_name = "annotated.mp4"

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._source: VideoSource | None = None
        self._video: VideoWriter | None = None
        self._scale = 1
        self._frames: dict[int, Listed] = {}
        self._lesions: Sequence[Lesion] = ()

    def begin(self, video: VideoFacts) -> None:
        """Start the video, so that a place that cannot be written to is known beforehand."""
        source = video.source
        self._source, self._frames, self._lesions = source, {}, ()
        self._scale = readable_scale(source.height, source.width)
        self._video = VideoWriter(
            video.folder / self.file_name,
            source.fps,
            source.height * self._scale,
            source.width * self._scale,
            pixel_aspect=source.pixel_aspect,
        )

    def write(self, result: FrameResult) -> None:
        """Note what was found in one frame, or draw it."""
        found = listed(result, self._run.score_threshold)
        if self._source.replays:
            self._frames[result.index] = found
        else:
            self._draw(result.image, found, result.lesions or ())

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions."""
        self._lesions = found

    def end(self, end: VideoEnd) -> None:
        """Draw the video, unless that was done."""
        if self._source.replays:
            self._draw_all(end.name)
        self._video.close()
        self._video = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial video, which is empty unless its drawing was broken off."""
        video, self._video = self._video, None
        if video is not None:
            video.abandon()

    def _draw_all(self, name: str) -> None:
        missing = len(self._frames)
        with closing(iter(self._source)) as frames:
            for frame in frames:
                found = self._frames.get(frame.index)
                if found is None:  # a frame that a live run dropped
                    continue
                self._draw(frame.image, found, in_frame(self._lesions, frame.index))
                missing -= 1
        if missing:
            raise VideoError(f"{name}: {missing} of its frames could not be read again to draw them")

    def _draw(self, image: np.ndarray, found: Listed, lesions: Sequence[LesionInFrame]) -> None:
        marks = marks_of(found, lesions, self._run.score_threshold)
        self._video.write(draw_marks(image, marks, self._run.class_names, self._scale), found.time)
