"""Lesions in videos: the product's main interface.

detector = stnet.VideoDetector()
for result in detector("clip.mp4"):
    print(result.index, result.time, result.detections)
"""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from typing import Any

from stnet.choices import DEFAULT_FPS, DEFAULT_MODEL, DEFAULT_POINT, SCORE_THRESHOLD
from stnet.errors import ConfigError, StnetError
from stnet.execution.engine import Engine, EngineOptions
from stnet.execution.timing import StageTimer
from stnet.inference.background import in_background
from stnet.inference.clip_reader import OpenVideo, VideoEnd, VideoStart, failed, read_clips
from stnet.inference.clip_runner import ClipFailure, ClipOutput, ClipRunner
from stnet.inference.frame_results import FrameResult, shifted
from stnet.inference.inputs import open_videos
from stnet.inference.lesion_collector import linked
from stnet.inference.video_results import VideoResult
from stnet.model.checkpoint import load
from stnet.model.detector import Detector
from stnet.model.postprocess import Detections, check_finite, select_detections
from stnet.video.scale import PixelScale
from stnet.video.value_range import ValueRange

TOP_DETECTIONS = 100
"""Detections kept per frame, as in the published evaluation."""

BATCH = {"cuda": 8, "cpu": 1}
"""Clips per batch by device: a GPU needs several to be busy, a CPU is busy with one."""

READ_AHEAD_CLIPS = 4
"""Clips decoded ahead of the model beyond one batch, and batches of results ahead of the reader of the results."""


class VideoDetector:
    """Finds lesions in every frame of a video; several calls may run beside each other, in threads too.

    Decoding, the model and whatever is done with the results run beside each other; memory does not grow with
    the length of a video.

    Args:
        model: the name of a shipped model, a checkpoint file, or a `Detector`. One with a caution (what everyone who
            uses it has to know) gives it as a warning.
        device: "cpu", "cuda", ...; default: a GPU if there is one.
        dtype: "float32", "tf32", "float16" or "bfloat16"; default: float16 on a GPU, float32 on a CPU.
        targets: frames predicted per clip (1 to the frames of a clip): 3 is encoder feature shuffle, 1 the
            single-frame mode, slower by a factor of about three.
        batch: clips per batch; default: 8 on a GPU, 1 on a CPU. Halves when memory does not suffice.
        duplicate_iou: drop detections that overlap a better one by more than this IoU (1: none); default: the model's
            setting.
        operating_point: "sensitive", "balanced" or "specific": which of the score thresholds that were chosen for the
            model on validation data is `score_threshold`; default: balanced, where the model has them.
        options: finer execution options; `device` and `dtype` above take precedence over those given here.
        profile: measure the time per stage (`timer.seconds`); slows a GPU down.

    Raises:
        ConfigError: options that cannot be used.
        CheckpointError: a model that cannot be loaded.

    Attributes:
        operating_points: of the model, None where it has none. Scores are calibrated by them.
        operating_point: the one that is used, None where there are none.
        score_threshold: the score from which detections count where nothing else is asked for.
        provenance: what the model was trained on, None where that is unknown.
    """

    def __init__(
        self,
        model: str | os.PathLike | Detector = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str | None = None,
        targets: int = 3,
        batch: int | None = None,
        duplicate_iou: float | None = None,
        operating_point: str | None = None,
        options: EngineOptions | None = None,
        profile: bool = False,
    ) -> None:
        options = EngineOptions() if options is None else options
        given = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        options = dataclasses.replace(options, **given)
        options.resolved_dtype()
        self.timer = StageTimer(options.resolved_device()) if profile else None
        detector = model if isinstance(model, Detector) else load(model)
        self._name = detector.config.backbone if isinstance(model, Detector) else os.path.basename(model)
        self.provenance, self.operating_points = detector.provenance, detector.operating_points
        self.operating_point, self.score_threshold = _operating_point(detector, operating_point)
        self.engine = Engine(detector, options, targets, self.timer)
        self.config = detector.config
        if duplicate_iou is not None:
            self.config = dataclasses.replace(self.config, duplicate_iou=duplicate_iou)
        batch = BATCH[self.engine.device.type] if batch is None else batch
        if batch < 1:
            raise ConfigError(f"batch {batch}; at least one clip has to run at once")
        self._runner = ClipRunner(self.engine, batch)
        if self.provenance is not None and self.provenance.caution:
            warnings.warn(self.provenance.caution, stacklevel=2)

    def __repr__(self) -> str:
        engine, point = self.engine, f", {self.operating_point}" if self.operating_point else ""
        threshold = f"from score {self.score_threshold:.3g}{point}"
        classes = ", ".join(self.config.class_names)
        return f"VideoDetector({self._name} on {engine.device} in {engine.dtype_name}: {classes} {threshold})"

    @property
    def class_names(self) -> dict[int, str]:
        """Class names by label."""
        return dict(enumerate(self.config.class_names, start=1))

    @property
    def batch(self) -> int:
        """Clips per batch; smaller than asked for after memory ran out."""
        return self._runner.batch

    def __call__(
        self,
        videos: Any,
        *,
        fps: float | Fraction = DEFAULT_FPS,
        images: bool = False,
        value_range: ValueRange | None = None,
    ) -> Iterator[FrameResult]:
        """Yield the result of every frame, in order, as soon as it is ready.

        Args:
            videos: a path (video file, folder of frames or of videos, pattern such as "frames/*.png"); frames as
                an array or tensor `[N, H, W, 3]` or `[N, H, W]`, a tensor as torchvision has them, `[N, 3, H, W]` or
                `[3, H, W]`, which is one frame (three gray ones are `[3, H, W, 1]`); a picture of PIL; an iterable of
                frames or pictures, which is written to a temporary file until it ends because clips reach over the
                whole video (feeds without an end: `stnet.inference.live`); or a list of such videos, whose results
                follow each other.
            fps: frame rate where the input states none.
            images: keep the frame in every result.
            value_range: the values of black and white in arrays, tensors and pictures, such as (0, 1) or (0, 4095).
                uint8 needs none; what else states no range is refused without one.

        Raises:
            VideoError: a video cannot be used. One that is damaged gives its readable frames and a warning.
        """
        events = self.events(open_videos(videos, Fraction(fps).limit_denominator(10**6), value_range), images=images)
        with closing(events):
            for event in events:
                if isinstance(event, FrameResult):
                    yield event
                elif isinstance(event, VideoEnd):
                    _report(event)

    def videos(
        self,
        videos: Any,
        *,
        fps: float | Fraction = DEFAULT_FPS,
        images: bool = False,
        score_threshold: float | None = None,
        value_range: ValueRange | None = None,
    ) -> Iterator[VideoResult]:
        """Yield the result of every video with its lesions, once it was read to its end.

        The results of all frames of a video are in memory at once.

        Args:
            videos: as for a call.
            fps: frame rate where the input states none.
            images: keep the frame in every result.
            score_threshold: a lesion has a detection of at least this score; default: the detector's.
            value_range: as for a call.

        Raises: `VideoError` when a video cannot be used. One that is damaged gives its readable frames and a
            warning.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        frames: list[FrameResult] = []
        scale: PixelScale | None = None
        events = self.events(open_videos(videos, Fraction(fps).limit_denominator(10**6), value_range), images=images)
        with closing(events):
            for event in events:
                if isinstance(event, FrameResult):
                    frames.append(event)
                elif isinstance(event, VideoEnd):
                    _report(event)
                    yield linked(event.name, frames, self.class_names, threshold, scale)
                    frames = []
                elif isinstance(event, VideoStart):
                    scale = event.source.scale

    def events(
        self, videos: Iterable[OpenVideo], *, images: bool = False
    ) -> Iterator[VideoStart | FrameResult | VideoEnd]:
        """Results with the beginning and the end of every video; unusable videos raise nothing here."""
        items = read_clips(videos, self.config.frames, self.engine.targets, self.timer)
        depth = self._runner.batch + READ_AHEAD_CLIPS
        items = in_background(items, depth, "read")
        outputs = in_background(self._runner.run(items), depth, "model")
        errors: dict[int, Exception] = {}  # of videos given up, whose ends are still to come
        with closing(outputs):
            for output in outputs:
                if isinstance(output, VideoStart):
                    yield output
                elif isinstance(output, VideoEnd):
                    error = errors.pop(output.key, None)
                    yield output if error is None else failed(output.key, output.name, error)
                elif output.task.video not in errors:
                    try:
                        results = self._results(output, images)
                    except StnetError as error:
                        output.task.stopped.set()
                        errors[output.task.video] = error
                    else:
                        yield from results

    def _results(self, output: ClipOutput | ClipFailure, images: bool) -> list[FrameResult]:
        if isinstance(output, ClipFailure):
            raise output.error
        if self.timer is None:
            found = self._select(output)
        else:
            with self.timer.stage("post"):
                found = self._select(output)
        task = output.task
        return [
            FrameResult(
                video=task.name,
                index=frame.index,
                time=frame.time,
                detections=shifted(found[position], frame.origin),
                size=(task.height, task.width),
                image=frame.image if images else None,
                file=frame.name,
                origin=frame.origin,
            )
            for position, frame in task.predicted
        ]

    def _select(self, output: ClipOutput) -> list[Detections]:
        output.wait()
        task = output.task
        check_finite(output.logits, output.boxes, task.name, self.engine.dtype_name)
        return select_detections(
            output.logits,
            output.boxes,
            task.height,
            task.width,
            TOP_DETECTIONS,
            duplicate_iou=self.config.duplicate_iou,
            points=self.operating_points,
        )


def _operating_point(model: Detector, asked: str | None) -> tuple[str | None, float]:
    """Return the operating point and the threshold of scores that it stands for."""
    if model.operating_points is None:
        if asked is not None:
            raise ConfigError(
                f"operating point {asked}: this model has none; give a score threshold instead, or choose them with "
                "python -m stnet.evaluation.calibrate"
            )
        return None, SCORE_THRESHOLD
    name = DEFAULT_POINT if asked is None else asked
    return name, model.operating_points.threshold(name)


def _report(end: VideoEnd) -> None:
    if end.error is not None:
        raise end.error
    if end.status != "ok":
        warnings.warn(f"{end.name} is {end.status}: {'; '.join(end.problems)}", stacklevel=3)
