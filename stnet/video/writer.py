"""Video files written frame by frame: H.264 in MP4, playable everywhere, complete or named `.partial`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from stnet.errors import VideoError
from stnet.files import ClosedOrAbandoned
from stnet.video.container import open_container
from stnet.video.geometry import SQUARE

TICKS = 16
"""Clock ticks per frame over the rate's numerator: fine enough for variable rates, exact for constant."""

MOST_TICKS = 2**31 - 1
"""Ticks per second that FFmpeg can count: rates of variable recordings are ratios of large numbers."""

THREADS = 4
"""Of x264, whose pictures depend on their number: by default that of the cores, so that each machine had its own."""

MBTREE = "0"
"""Of x264, off: it reads memory that nothing has written, so that the same frames could end up as other bytes.

`MALLOC_PERTURB_=85`, which fills fresh memory, shows it with glibc.
"""

SNAP = 0.05
"""Times within this share of a frame of the constant-rate grid are put on it (containers round times)."""


class VideoWriter(ClosedOrAbandoned):
    """Writes RGB frames to an mp4 file, one in memory at a time.

    The video grows in `NAME.partial` beside `path` and takes its name when closed without an error; after an
    error the partial file stays, playable as far as it goes where the container allows. Frames are padded at
    the right and bottom to even sizes (the last row and column repeated), as H.264 with 4:2:0 colour needs.

    Args:
        path: where the video goes; an existing file is replaced when the new one is complete.
        fps: frame rate, exact up to numerators of `MOST_TICKS / TICKS`, and the nearest such ratio beyond.
        height, width: size of all frames, in pixels.
        pixel_aspect: width of a pixel over its height, for the player.
        crf: constant rate factor of x264, 0 (lossless) to 51; 18 is visually lossless.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction,
        height: int,
        width: int,
        *,
        pixel_aspect: Fraction = SQUARE,
        crf: int = 18,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._fps, self._size, self._last_tick = _countable(Fraction(fps)), (height, width), -1
        self._closed = False
        with self._reporting("cannot be written"):
            self._container = open_container(self.partial, mode="w", format="mp4")
            self._stream = self._container.add_stream(
                "libx264", rate=self._fps, options={"crf": str(crf), "preset": "veryfast", "mbtree": MBTREE}
            )
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.thread_type, self._stream.codec_context.thread_count = "FRAME", THREADS
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.codec_context.sample_aspect_ratio = pixel_aspect
            self._stream.codec_context.time_base = 1 / (Fraction(self._fps.numerator) * TICKS)
            # Creates the file now rather than with the first frame.
            self._container.start_encoding()

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Append a frame, uint8 `[H, W, 3]`, shown at `time` seconds (default: one frame after the last)."""
        if image.shape != (*self._size, 3) or image.dtype != np.uint8:
            raise VideoError(
                f"{self.path}: frame of shape {list(image.shape)} and type {image.dtype}; "
                f"expected uint8 {[*self._size, 3]}"
            )
        height, width = self._size
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self._tick(time)
        frame.time_base = self._stream.codec_context.time_base
        self._mux(frame)

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._closed:
            return
        self._mux(None)
        self._release()
        os.replace(self.partial, self.path)

    def abandon(self) -> None:
        """Stop writing; what there is stays under the partial name."""
        if self._closed:
            return
        # Where the encoder itself is what failed, nothing more can be saved.
        with suppress(VideoError):
            self._mux(None)
        with suppress(VideoError):
            self._release()

    def _tick(self, time: float | None) -> int:
        step = self._fps.denominator * TICKS
        if time is None:
            tick = self._last_tick + step if self._last_tick >= 0 else 0
        else:
            position = time * float(self._fps)
            grid = round(position)
            tick = grid * step if abs(position - grid) < SNAP else round(position * step)
        # H.264 in MP4 needs increasing times; damaged files may not have them.
        self._last_tick = max(tick, self._last_tick + 1)
        return self._last_tick

    def _mux(self, frame: av.VideoFrame | None) -> None:
        with self._reporting("cannot be written"):
            self._container.mux(self._stream.encode(frame))

    def _release(self) -> None:
        self._closed = True
        with self._reporting("cannot be finished"):
            self._container.close()

    @contextmanager
    def _reporting(self, failure: str) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.partial}: {failure} ({getattr(error, 'strerror', error)})") from error


def _countable(rate: Fraction) -> Fraction:
    most = MOST_TICKS // TICKS
    return rate if rate.numerator <= most else rate.limit_denominator(most // (int(rate) + 1))
