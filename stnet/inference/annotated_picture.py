"""`annotated.png`: the frame with the highest score, with what was found drawn into it; of a still, the still."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from stnet import files
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.draw import draw_marks, readable_scale
from stnet.inference.frame_marks import Listed, in_frame, listed, marks_of
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion


class AnnotatedPicture(Sink):
    """Writes `annotated.png`, as a frame of `annotated.mp4`; of frames with equal scores the first one."""

    file_name = "annotated.png"
    needs_images = True

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._video: VideoFacts | None = None
        self._best: tuple[float, np.ndarray, Listed] | None = None
        self._lesions: Sequence[Lesion] = ()

    def begin(self, video: VideoFacts) -> None:
        """Start a video."""
        self._video, self._best, self._lesions = video, None, ()

    def write(self, result: FrameResult) -> None:
        """Keep the frame where it is the best one so far."""
        score = max(result.visible.scores.tolist(), default=0.0)
        if self._best is None or score > self._best[0]:
            self._best = (score, result.image, listed(result, self._run.score_threshold))

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions."""
        self._lesions = found

    def end(self, end: VideoEnd) -> None:
        """Draw the picture."""
        _, image, found = self._best
        marks = marks_of(found, in_frame(self._lesions, found.frame), self._run.score_threshold)
        drawn = draw_marks(image, marks, self._run.class_names, readable_scale(*image.shape[:2]))
        with files.replacing(self._video.folder / self.file_name) as temporary:
            Image.fromarray(drawn).save(temporary, format="PNG")
        self._best = None

    def abandon(self, error: BaseException) -> None:
        """Do nothing: there is no picture yet."""
        self._best = None
