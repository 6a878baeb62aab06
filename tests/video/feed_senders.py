"""Senders of feeds on the loopback address: H.264 in MPEG-TS by PyAV, in threads."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

RATE = 25


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A grey frame whose brightness tells its number."""
    return np.full((height, width, 3), 30 + 4 * (number % 50), np.uint8)


def noise(number: int, height: int, width: int) -> np.ndarray:
    """A frame that takes many bytes."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def send(
    target,
    frames: int,
    *,
    height: int = 48,
    width: int = 64,
    rate: float = RATE,
    stop=None,
    first: int = 0,
    show=picture,
) -> None:
    """Encode frames to a URL or a writable object, at a rate (0: as fast as they are taken)."""
    with av.open(target, "w", format="mpegts", options={"flush_packets": "1"}) as output:
        stream = output.add_stream("libx264", rate=RATE, options={"tune": "zerolatency", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = 5
        for number in range(first, first + frames):
            if stop is not None and stop.is_set():
                break
            output.mux(stream.encode(av.VideoFrame.from_ndarray(show(number, height, width), format="rgb24")))
            if rate:
                time.sleep(1 / rate)
        output.mux(stream.encode(None))


@contextmanager
def sending(target, frames: int = 10_000, **options) -> Iterator[threading.Event]:
    """Send in a thread until the end of the block; a path is a named pipe."""
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            if isinstance(target, Path):
                with open(target, "wb", buffering=0) as pipe:
                    send(pipe, frames, stop=stop, **options)
            else:
                send(target, frames, stop=stop, **options)
        except (OSError, av.FFmpegError) as error:  # the reader has gone
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(10)


def recorded(folder: Path, frames: int, **options) -> bytes:
    """The bytes of a feed."""
    path = folder / "recorded.ts"
    with open(path, "wb") as file:
        send(file, frames, rate=0, **options)
    return path.read_bytes()


def free_port(kind: str = "tcp") -> int:
    """A port that nobody uses at the moment."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def named_pipe(folder: Path) -> Path:
    path = folder / "scanner"
    os.mkfifo(path)
    return path
