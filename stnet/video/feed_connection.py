"""One connection to a feed, decoded frame by frame, with limits on time and sizes.

A feed is not trusted: no format that names other files is read, frames and packets are limited, nothing is waited for
without an end, and nothing of an address that may be a password gets into a message.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from stnet.errors import VideoError
from stnet.video.container import next_packet, open_container
from stnet.video.feed_names import FeedName
from stnet.video.feed_pipe import PipeReader
from stnet.video.geometry import UPRIGHT, Orientation
from stnet.video.reader import FORMATS, film_streams, frame_rate, reason, rgb_pixels, stated_aspect, stated_orientation
from stnet.video.source import MAX_PIXELS, check_size

STREAM_FORMATS = f"{FORMATS},nut,yuv4mpegpipe"
"""Containers of pipes and plain network streams."""

RTSP_FORMATS = {"format_whitelist": "rtsp", "protocol_whitelist": "rtsp,rtp,udp,tcp", "rtsp_flags": "prefer_tcp"}
CAMERA_FORMAT = "video4linux2,v4l2"

QUICK = {"probesize": "2000000", "analyzeduration": "1000000"}
"""FFmpeg's options for a feed: how far to look ahead, in bytes and microseconds, until frames are given."""

OPENING_SECONDS = (2.0, 10.0)
"""How long a feed may take to be opened: as long as it is waited for, within these limits."""

SILENT_SECONDS = 5.0
"""How long a feed that is open may show no frame."""

SILENT_PACKETS = 50
"""And how many packets without a frame that takes: on a busy machine time alone tells nothing of the sender."""

MAX_PACKET = 2**26
"""Most bytes of a coded frame."""


class FeedLostError(Exception):
    """A feed gives no more frames, and why; it may do so again."""


@dataclass(frozen=True, kw_only=True)
class FeedFormat:
    """What the frames of a feed are like, until it says otherwise.

    Attributes:
        height, width: of the upright frames.
        fps: frames per second that it states.
        pixel_aspect: width of a pixel over its height.
    """

    height: int
    width: int
    fps: Fraction
    pixel_aspect: Fraction


class FeedConnection:
    """A feed that is open.

    Args:
        name: what to open.
        stopped: ends it when set.
        patience: seconds that it is waited for.
        reader: gives its bytes where it is a pipe.

    Attributes:
        damaged, failed: frames in which the decoder concealed damage, and packets that it could not decode.

    Raises:
        FeedLostError: it cannot be opened now.
        VideoError: it can never be used.
    """

    def __init__(
        self, name: FeedName, stopped: threading.Event, patience: float, reader: PipeReader | None = None
    ) -> None:
        self.damaged = self.failed = 0
        self._shown, self._stopped, self._endless = name.shown, stopped, name.kind == "udp"
        self._orientation: Orientation | None = UPRIGHT
        self._turned: float | None = None
        self._images: Iterator[av.VideoFrame] = iter(())
        self._container: Any = None
        self._reader = reader
        try:
            self._container = self._open(name, min(max(patience, OPENING_SECONDS[0]), OPENING_SECONDS[1]))
            self._stream = self._film()
        except BaseException:
            self.close()
            raise
        self._packets = self._container.demux()

    def format_of(self, image: np.ndarray) -> FeedFormat:
        """Return the format of upright frames like one of them, `[H, W, 3]`."""
        aspect = (self._orientation or UPRIGHT).aspect(stated_aspect(self._stream))
        return FeedFormat(
            height=image.shape[0], width=image.shape[1], fps=frame_rate(self._stream), pixel_aspect=aspect
        )

    def next_image(self) -> np.ndarray:
        """Return the next frame, upright.

        Raises:
            FeedLostError: none came.
            EOFError: the sender has ended, or the feed was stopped.
            VideoError: it is too large.
        """
        deadline, packets = time.monotonic() + SILENT_SECONDS, 0
        while not self._stopped.is_set():
            frame = next(self._images, None)
            if frame is not None:
                return self._upright(frame)
            if packets >= SILENT_PACKETS and time.monotonic() > deadline:
                raise FeedLostError(f"no frame for {SILENT_SECONDS:g} s")
            packets += 1
            self._images = iter(self._decoded())
        raise EOFError

    def close(self) -> None:
        """Let go of the camera or connection."""
        if self._container is not None:
            with suppress(av.FFmpegError):
                self._container.close()

    def _open(self, name: FeedName, seconds: float) -> Any:
        form, options = None, {**QUICK, "format_whitelist": STREAM_FORMATS}
        if not name.waits:
            options["fflags"] = "nobuffer"  # what was looked at to know the format is old by then, and not given
        if name.kind == "camera":
            form, options["format_whitelist"] = "v4l2", CAMERA_FORMAT
        elif name.kind == "rtsp":
            form, options = "rtsp", options | RTSP_FORMATS
        elif self._reader is None:
            options["protocol_whitelist"] = name.kind
        try:
            return open_container(
                self._reader or name.place,
                format=form,
                options=options,
                # A pipe's reader keeps the time itself: FFmpeg would count how long Python's lock was waited for.
                timeout=None if self._reader is not None else (seconds, SILENT_SECONDS),
                metadata_errors="replace",
            )
        except av.error.ExitError as error:
            raise FeedLostError(f"no video within {seconds:g} s") from error
        except (av.FFmpegError, UnicodeError, ValueError) as error:
            self._blame_reader()
            raise FeedLostError(reason(error)) from error

    def _film(self) -> Any:
        films = film_streams(self._container)
        if not films or films[0].codec_context is None:
            self._blame_reader()
            raise FeedLostError("it holds no video that can be decoded")
        context = films[0].codec_context
        context.thread_type = "SLICE"  # threads by frame would hold back a frame each
        context.options = {"max_pixels": str(MAX_PIXELS), "flags": "low_delay"}
        return films[0]

    def _decoded(self) -> list[av.VideoFrame]:
        """Return the frames that the next packet gives."""
        packet = self._packet()
        if packet.stream_index != self._stream.index:
            return []
        if packet.size > MAX_PACKET:
            raise VideoError(f"{self._shown}: a frame of {packet.size} bytes exceeds the limit of {MAX_PACKET}")
        try:
            return self._stream.codec_context.decode(packet)
        except EOFError:
            return []
        except (av.FFmpegError, ValueError):
            self.failed += 1
            return []

    def _packet(self) -> Any:
        try:
            # Of all streams: one that sends sound alone would keep a wait for pictures going for ever.
            packet = next_packet(self._packets)
        except av.error.ExitError as error:
            raise self._silent() from error
        except (av.FFmpegError, ValueError) as error:
            self._blame_reader()
            raise FeedLostError(reason(error)) from error
        if packet is None:
            self._blame_reader()
            if self._endless:  # FFmpeg takes a wait that was broken off for the end now and then
                raise self._silent()
            raise EOFError
        if self._reader is not None:
            self._reader.packet_complete()
        return packet

    def _silent(self) -> FeedLostError:
        return FeedLostError(f"no data for {SILENT_SECONDS:g} s")

    def _blame_reader(self) -> None:
        """Raise what ended the reading of a pipe, which FFmpeg takes for the end of the data."""
        if self._reader is None:
            return
        if self._reader.error is not None:
            raise self._reader.error
        if self._reader.problem is not None:
            raise FeedLostError(self._reader.problem)

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        check_size(self._shown, frame.height, frame.width)
        self.damaged += bool(frame.is_corrupt)
        if frame.rotation != self._turned:
            # Not for every frame: reading side data makes a cycle of references, which keeps the frame alive.
            self._turned, self._orientation = frame.rotation, stated_orientation(frame)
        return (self._orientation or UPRIGHT).apply(rgb_pixels(frame))
