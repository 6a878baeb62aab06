"""`annotated.mp4`: the video with what was found drawn into it."""

from stnet.inference.clip_reader import VideoEnd
from stnet.inference.draw import draw_detections
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.video import VideoWriter


class AnnotatedVideo(Sink):
    """Writes `annotated.mp4`, with boxes, classes and scores from the score threshold on."""

    file_name = "annotated.mp4"
    needs_images = True

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._video: VideoWriter | None = None

    def begin(self, video: VideoFacts) -> None:
        """Start the video."""
        source = video.source
        self._video = VideoWriter(
            video.folder / self.file_name,
            source.fps,
            source.height,
            source.width,
            pixel_aspect=source.pixel_aspect,
        )

    def write(self, result: FrameResult) -> None:
        """Draw and append one frame."""
        run = self._run
        drawn = draw_detections(result.image, result.visible_in_image, run.class_names, run.score_threshold)
        self._video.write(drawn, result.time)

    def end(self, end: VideoEnd) -> None:
        """Complete the video."""
        self._video.close()
        self._video = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial video."""
        video, self._video = self._video, None
        if video is not None:
            video.abandon()
