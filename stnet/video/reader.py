"""Video files, decoded by PyAV (FFmpeg) one frame at a time, with a verdict on their integrity.

FFmpeg happily reads play lists that name other files or hosts. Every file is opened with a list of plain
container formats and of no protocol but `file`, so a play list in disguise is refused.
"""

import math
import struct
from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from stnet.choices import DEFAULT_FPS
from stnet.contents import misnamed
from stnet.errors import VideoError
from stnet.video.container import next_packet, open_container
from stnet.video.cropping import stated_crop
from stnet.video.depth import DEEP_LEAST, on_black
from stnet.video.geometry import SQUARE, UPRIGHT, Orientation, aspect_notes, believable_aspect
from stnet.video.source import FPS_RANGE, MAX_PIXELS, Scan, VideoFrame, VideoSource, check_size

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v,mjpeg,ivf,mxf"
OPEN_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".m2ts")
    + (".mts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".gif", ".3gp", ".3g2", ".h264", ".264", ".hevc", ".h265")
    + (".265", ".mjpeg", ".mjpg", ".ivf", ".mxf")
)

PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
PICTURE_CODECS = frozenset(("mjpeg", "png", "bmp", "gif", "webp", "tiff"))
"""What covers are stored in where nothing marks them; beside a film of another codec, streams of these are covers."""

LONGEST_PAUSE = 86_400.0
"""Seconds between two frames that are believed: damaged and hostile files state times beyond all numbers."""

TOLERATED_SHORTFALL = 0.02
"""Share of the declared frames (or duration) that may be missing, beyond one, before a file counts as cut."""


@dataclass(kw_only=True)
class _Tally:
    """What one pass over a file met."""

    decoded: int = 0
    orientation: Orientation | None = UPRIGHT  # None for odd angles
    start: float = 0.0  # seconds, of the first frame, on the container's clock; moved where that clock jumps back
    first: float = 0.0  # seconds, of the first frame, on the container's clock
    end: float = 0.0  # seconds from the first frame to the end of the last
    last_time: float = 0.0
    brightest: int | None = None  # of frames with 16 bits per sample, after the reduction to 8
    jumps: int = 0  # how often the clock went back
    leaps: int = 0  # how often it went on by more than is believed
    flagged: int = 0  # frames the decoder concealed damage in
    failed_packets: int = 0
    problems: list[str] = field(default_factory=list)


class DecodedVideo(VideoSource):
    """A video that FFmpeg decodes, wherever its bytes come from. Subclasses say how it is opened.

    The display matrix stored in the file (turns and mirrors) is applied; `height` and `width` are those of the upright
    frames. Of several video streams the one that a player shows is read; pictures such as covers are none.

    Args:
        label: what messages call it.
        name: what outputs call it.

    Raises:
        VideoError: it cannot be opened, or holds no video stream.
    """

    def __init__(self, label: str, name: str) -> None:
        super().__init__()
        self.label, self.name = label, name
        with self._opened() as (container, stream):
            check_size(self.label, stream.codec_context.height, stream.codec_context.width)
            self.fps = frame_rate(stream)
            self._duration = _declared_duration(container, stream)
            self._stated_frames = stream.frames or None
            stored_aspect = stated_aspect(stream)
            others = len(film_streams(container)) - 1
            self._track = stream.index
            self._stored_size = stream.codec_context.width, stream.codec_context.height
            # AVI knows no other times than those of decoding.
            self._decode_stamps = "avi" in container.format.name.split(",")
        tally = _Tally()
        first = next(self._upright(tally), None)
        if first is None:
            raise VideoError(f"{self.label}: no frame can be decoded; the file is empty or damaged")
        _, self._frame_size = first
        self.height, self.width = self._frame_size
        self.orientation = tally.orientation or UPRIGHT
        self.pixel_aspect = self.orientation.aspect(stored_aspect)
        self._duration = self._duration and self._duration.after(tally.first)
        self.declared_frames = self._stated_frames or self._frames_by_duration()
        self.notes = tuple(self._remarks(tally.orientation, others))

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

    @abstractmethod
    def _container(self) -> Any:
        """Return the opened container. Raises what PyAV does."""

    @contextmanager
    def _opened(self):
        try:
            container = self._container()
        except (av.FFmpegError, UnicodeError) as error:
            raise VideoError(f"{self.label}: cannot be opened as a video ({reason(error)})") from error
        with container:
            films = film_streams(container)
            if not films:
                raise VideoError(f"{self.label}: holds no video stream")
            stream = films[0]
            if stream.codec_context is None:
                raise VideoError(f"{self.label}: no decoder for its video stream; convert it to H.264 first")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream

    def _upright(self, tally: _Tally) -> Iterator[tuple[av.VideoFrame, tuple[int, int]]]:
        """Yield decoded frames and their upright (height, width), until the end, damage or another size."""
        size = getattr(self, "_frame_size", None)
        turned: float | None = None
        with self._opened() as (container, stream):
            for frame, clock in _decode(container, stream, tally, self._decode_stamps):
                if frame.rotation != turned:
                    # Not for every frame: reading side data makes a cycle of references, which keeps the frame alive.
                    turned, tally.orientation = frame.rotation, stated_orientation(frame)
                upright = (tally.orientation or UPRIGHT).size(frame.height, frame.width)
                check_size(self.label, *upright)
                size = size or upright
                if upright != size:
                    tally.problems.append(
                        f"frame size changes from {size[1]} x {size[0]} to {upright[1]} x {upright[0]} "
                        f"at frame {tally.decoded}; nothing is read from there on"
                    )
                    return
                self._keep_time(frame, clock, tally)
                yield frame, upright

    def _remarks(self, orientation: Orientation | None, others: int) -> Iterator[str]:
        """Yield what a user should know before the video is read."""
        if others:
            yield f"holds {others + 1} videos; the one of {self.width} x {self.height} pixels is read"
        if orientation is None:
            yield "is to be turned by other than quarter turns for display; its frames are read as they are stored"
        yield from aspect_notes(self.pixel_aspect)

    def _keep_time(self, frame: av.VideoFrame, clock: float | None, tally: _Tally) -> None:
        interval = float(1 / self.fps)
        if tally.decoded == 0:
            tally.start = tally.first = clock or 0.0
        expected = tally.last_time + interval if tally.decoded else 0.0
        time = clock - tally.start if clock is not None else expected
        back, leap = time < tally.last_time, time > tally.last_time + LONGEST_PAUSE
        if tally.decoded and (back or leap):
            # Recordings that were joined, or damage: times go on from here.
            tally.jumps += back
            tally.leaps += leap
            tally.start += time - expected
            time = expected
        if frame.duration and frame.time_base:
            interval = float(frame.duration * frame.time_base)
        tally.decoded += 1
        tally.flagged += bool(frame.is_corrupt)
        tally.last_time = time
        tally.end = max(tally.end, time + interval)

    def _to_frame(self, frame: av.VideoFrame, tally: _Tally) -> VideoFrame:
        image = (tally.orientation or UPRIGHT).apply(rgb_pixels(frame))
        if frame.format.components[0].bits == 16:
            tally.brightest = max(tally.brightest or 0, int(image.max()))
        return VideoFrame(index=tally.decoded - 1, time=tally.last_time, image=image)

    def _frames_by_duration(self) -> int | None:
        return round(self._duration * self.fps) if self._duration else None

    def _judge(self, tally: _Tally) -> None:
        problems = list(tally.problems)
        if tally.failed_packets:
            problems.append(f"{tally.failed_packets} packets could not be decoded")
        if tally.flagged:
            problems.append(f"{tally.flagged} frames are damaged")
        if tally.brightest is not None and 0 < tally.brightest < DEEP_LEAST:
            problems.append(
                f"its samples of 16 bits reach {tally.brightest} of 255 only: they hold fewer bits, so the frames are "
                "too dark; convert it to 8 bits"
            )
        if tally.jumps:
            problems.append(f"its clock jumps back {tally.jumps} times; times go on at its frame rate there")
        if tally.leaps:
            problems.append(f"its clock leaps ahead by days {tally.leaps} times; times go on at its frame rate there")
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


class VideoFile(DecodedVideo):
    """A video file.

    Raises:
        VideoError: it cannot be opened, or holds no video stream.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        super().__init__(str(self.path), self.path.stem)
        shown = stated_crop(self.path, self._track, *self._stored_size)
        if shown is not None:
            left, top, right, bottom = shown
            self.notes += (
                f"states that only {right - left} x {bottom - top} pixels of its frames, from {left}, {top} on, are "
                "to be shown, as some players do; whole frames are read",
            )

    def _container(self) -> Any:
        try:
            return open_container(self.path, options=OPEN_OPTIONS, metadata_errors="replace")
        except av.FFmpegError as error:
            other = misnamed(self.path, "a video")
            if other is None:
                raise
            raise VideoError(f"{self.path}: {other}") from error


def _decode(container, stream, tally: _Tally, decode_stamps: bool) -> Iterator[tuple[av.VideoFrame, float | None]]:
    """Frames of a stream with their times on its clock (seconds, None where unknown).

    Packets that cannot be decoded are counted and skipped, unreadable data ends it. With `decode_stamps` the container
    states only when packets are to be decoded; frames leave the decoder in another order than packets enter it, at the
    same times, so the next frame takes the earliest time not taken yet. Without B-frames the order is the same, and the
    times of packets that give no frame ("not coded", where a recorder dropped one) are passed over.
    """
    packets = container.demux(stream)
    stamps: deque[float] = deque()
    ended = False
    while not ended:
        try:
            packet = next_packet(packets)
        except (av.FFmpegError, ValueError) as error:
            tally.problems.append(f"reading stopped after {tally.decoded} frames ({reason(error)})")
            packet = None
        ended = packet is None
        stamped = decode_stamps and packet is not None and packet.dts is not None and packet.time_base
        if stamped:
            packet.pts = packet.dts  # so that its frame tells which packet it was
            stamps.append(float(packet.dts * packet.time_base))
        try:
            # None drains the frames that the decoder still holds.
            frames = stream.codec_context.decode(packet)
        except av.error.EOFError:
            continue
        except (av.FFmpegError, ValueError):
            tally.failed_packets += 1
            if stamped:
                stamps.pop()
            continue
        for frame in frames:
            clock = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else None
            if clock is not None and not stream.codec_context.has_b_frames:
                while len(stamps) > 1 and stamps[0] < clock:
                    stamps.popleft()
            yield frame, stamps.popleft() if decode_stamps and stamps else clock


def film_streams(container) -> list:
    """Return the video streams that are no pictures (covers, thumbnails), the one a player shows first."""
    streams = [stream for stream in container.streams.video if not stream.disposition & PICTURES]

    def rank(stream) -> tuple[bool, bool, int]:
        context = stream.codec_context
        area = 0 if context is None else context.height * context.width
        picture = stream.frames == 1 or (context is not None and context.name in PICTURE_CODECS)
        return picture, not stream.disposition & Disposition.default, -area

    return sorted(streams, key=rank)


def rgb_pixels(frame: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame as it is stored, uint8 RGB `[H, W, 3]`; what is transparent shows black."""
    if any(component.is_alpha for component in frame.format.components):
        return on_black(frame.to_ndarray(format="rgba"))
    return frame.to_ndarray(format="rgb24")


def stated_orientation(frame: av.VideoFrame) -> Orientation | None:
    """Return how to lay a frame upright (display matrix of phones and tablets), or None for odd angles."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack("=9i", bytes(data)[:36])[:5]
    return Orientation.from_display_matrix((a, b, c, d))


def stated_aspect(stream) -> Fraction:
    """Return the width of a stream's pixels over their height."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return believable_aspect(aspect.numerator, aspect.denominator) if aspect else SQUARE


def frame_rate(stream) -> Fraction:
    """Return the frames per second that a stream states, the default where it states none to be believed."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and FPS_RANGE[0] <= rate <= FPS_RANGE[1]:
            return Fraction(rate)
    return DEFAULT_FPS


@dataclass(frozen=True, kw_only=True)
class _Duration:
    """Seconds that a file declares; `on_clock` where they may count from the zero of its clock, not its first frame."""

    seconds: float
    on_clock: bool

    def after(self, start: float) -> float:
        """Seconds from the first frame on, which is at `start` on the clock."""
        late = self.on_clock and 0 < start < self.seconds
        return self.seconds - start if late else self.seconds


def _declared_duration(container, stream) -> _Duration | None:
    """Duration of video that the file declares, or None where it does not say (or only with other streams)."""
    if (stream.duration or 0) > 0 and stream.time_base:
        return _Duration(seconds=float(stream.duration * stream.time_base), on_clock=False)
    tag = _seconds(stream.metadata.get("DURATION", ""))
    if tag:
        return _Duration(seconds=tag, on_clock=True)
    if (container.duration or 0) > 0 and len(container.streams) == 1:
        return _Duration(seconds=container.duration / av.time_base, on_clock=True)
    return None


def _seconds(tag: str) -> float | None:
    """Seconds of a Matroska duration tag such as 00:00:04.800000000, or None where it is something else."""
    try:
        hours, minutes, seconds = tag.split(":")
        total = float(int(hours) * 3600 + int(minutes) * 60) + float(seconds)
    except (ValueError, OverflowError):
        return None
    return total if 0 < total < math.inf else None


def reason(error: Exception) -> str:
    """Return what FFmpeg says of an error, without the name of the file."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
