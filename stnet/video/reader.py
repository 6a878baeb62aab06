"""Video files, decoded by PyAV (FFmpeg) one frame at a time, with a verdict on their integrity.

FFmpeg happily reads play lists that name other files or hosts. Every file is opened with a list of plain
container formats and of no protocol but `file`, so a play list in disguise is refused.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from stnet.errors import VideoError
from stnet.video.container import open_container
from stnet.video.source import DEFAULT_FPS, FPS_RANGE, MAX_PIXELS, Scan, VideoFrame, VideoSource, check_size

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v,mjpeg,ivf,mxf"
OPEN_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".asf")
    + (".flv", ".ogv", ".gif", ".3gp", ".h264", ".hevc", ".mjpeg", ".mjpg", ".ivf", ".mxf")
)

TOLERATED_SHORTFALL = 0.02
"""Share of the declared frames (or duration) that may be missing, beyond one, before a file counts as cut."""


@dataclass(kw_only=True)
class _Tally:
    """What one pass over a file met."""

    decoded: int = 0
    start: float = 0.0  # seconds, of the first frame, on the container's clock
    end: float = 0.0  # seconds from the first frame to the end of the last
    last_time: float = 0.0
    flagged: int = 0  # frames the decoder concealed damage in
    failed_packets: int = 0
    problems: list[str] = field(default_factory=list)


class VideoFile(VideoSource):
    """A video file. Raises `VideoError` when it cannot be opened or holds no video stream.

    Rotation stored in the file is applied; `height` and `width` are those of the upright frames.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = self.path.stem
        with self._opened() as (container, stream):
            check_size(str(self.path), stream.codec_context.height, stream.codec_context.width)
            self.fps = _frame_rate(stream)
            self._duration = _declared_duration(container, stream)
            self._stated_frames = stream.frames or None
        self.declared_frames = self._stated_frames or self._frames_by_duration()
        first = next(self._upright(_Tally()), None)
        if first is None:
            raise VideoError(f"{self.path}: no frame can be decoded; the file is empty or damaged")
        _, self._frame_size = first
        self.height, self.width = self._frame_size

    def __iter__(self) -> Iterator[VideoFrame]:
        tally = _Tally()
        for frame, _ in self._upright(tally):
            yield self._to_frame(frame, tally)
        self._judge(tally)

    def scan(self, keep: Collection[int] = ()) -> Scan:
        """Count the frames; only those in `keep` are converted to RGB."""
        tally, kept = _Tally(), {}
        for frame, _ in self._upright(tally):
            if tally.decoded - 1 in keep:
                kept[tally.decoded - 1] = self._to_frame(frame, tally)
        self._judge(tally)
        return Scan(length=tally.decoded, frames=kept)

    @contextmanager
    def _opened(self):
        try:
            container = open_container(self.path, options=OPEN_OPTIONS, metadata_errors="replace")
        except (av.FFmpegError, UnicodeError) as error:
            raise VideoError(f"{self.path}: cannot be opened as a video ({_reason(error)})") from error
        with container:
            if not container.streams.video:
                raise VideoError(f"{self.path}: holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(f"{self.path}: no decoder for its video stream; convert it to H.264 first")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream

    def _upright(self, tally: _Tally) -> Iterator[tuple[av.VideoFrame, tuple[int, int]]]:
        """Decoded frames and their upright (height, width), until the end, damage or another size."""
        size = getattr(self, "_frame_size", None)
        with self._opened() as (container, stream):
            for frame in _decode(container, stream, tally):
                upright = (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)
                check_size(str(self.path), *upright)
                size = size or upright
                if upright != size:
                    tally.problems.append(
                        f"frame size changes from {size[1]} x {size[0]} to {upright[1]} x {upright[0]} "
                        f"at frame {tally.decoded}; nothing is read from there on"
                    )
                    return
                self._keep_time(frame, tally)
                yield frame, upright

    def _keep_time(self, frame: av.VideoFrame, tally: _Tally) -> None:
        interval = float(1 / self.fps)
        clock = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else None
        if tally.decoded == 0:
            tally.start = clock or 0.0
            time = 0.0
        else:
            time = clock - tally.start if clock is not None else tally.last_time + interval
        if frame.duration and frame.time_base:
            interval = float(frame.duration * frame.time_base)
        tally.decoded += 1
        tally.flagged += bool(frame.is_corrupt)
        tally.last_time = time
        tally.end = max(tally.end, time + interval)

    def _to_frame(self, frame: av.VideoFrame, tally: _Tally) -> VideoFrame:
        image = frame.to_ndarray(format="rgb24")
        turns = _quarter_turns(frame)
        image = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
        return VideoFrame(index=tally.decoded - 1, time=tally.last_time, image=image)

    def _frames_by_duration(self) -> int | None:
        return round(self._duration * self.fps) if self._duration else None

    def _judge(self, tally: _Tally) -> None:
        problems = list(tally.problems)
        if tally.failed_packets:
            problems.append(f"{tally.failed_packets} packets could not be decoded")
        if tally.flagged:
            problems.append(f"{tally.flagged} frames are damaged")
        if self._is_short(tally):
            problems.insert(0, f"{tally.decoded} of {self.declared_frames} declared frames could be decoded")
            return self._conclude("truncated", problems)
        return self._conclude("corrupt" if problems else "ok", problems)

    def _is_short(self, tally: _Tally) -> bool:
        """Both the frame count and the duration fall short, as far as the file declares them.

        Files trimmed by an edit list count frames that are never shown, and their duration is right; files
        with a long last frame state a duration that frame times do not reach, and their count is right.
        """
        verdicts = []
        if self._stated_frames:
            slack = max(1, TOLERATED_SHORTFALL * self._stated_frames)
            verdicts.append(tally.decoded < self._stated_frames - slack)
        if self._duration:
            slack = max(1.5 / float(self.fps), TOLERATED_SHORTFALL * self._duration)
            verdicts.append(tally.end < self._duration - slack)
        return bool(verdicts) and all(verdicts)


def _decode(container, stream, tally: _Tally) -> Iterator[av.VideoFrame]:
    """Frames of a stream; packets that cannot be decoded are counted and skipped, unreadable data ends it."""
    packets = container.demux(stream)
    ended = False
    while not ended:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, ValueError) as error:
            tally.problems.append(f"reading stopped after {tally.decoded} frames ({_reason(error)})")
            packet = None
        ended = packet is None
        try:
            # None drains the frames that the decoder still holds.
            frames = stream.codec_context.decode(packet)
        except av.error.EOFError:
            continue
        except (av.FFmpegError, ValueError):
            tally.failed_packets += 1
            continue
        yield from frames


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring a frame upright (display matrix of phones and tablets)."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _frame_rate(stream) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and FPS_RANGE[0] <= rate <= FPS_RANGE[1]:
            return Fraction(rate)
    return DEFAULT_FPS


def _declared_duration(container, stream) -> float | None:
    """Seconds of video that the file declares, or None where it does not say (or only with other streams)."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = _seconds(stream.metadata.get("DURATION", ""))
    if tag:
        return tag
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _seconds(tag: str) -> float | None:
    """Seconds of a Matroska duration tag such as 00:00:04.800000000, or None where it is something else."""
    try:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
