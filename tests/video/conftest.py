"""Videos made on the spot: a bright square wanders over a gradient, so every frame can be told from its neighbours."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


def picture(index: int, height: int, width: int) -> np.ndarray:
    """Frame `index`, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    image = (40 + 60 * rows / height + 60 * columns / width).astype(np.uint8)
    y, x = (index * 3) % max(1, height - 12), (index * 5) % max(1, width - 12)
    image[y : y + 12, x : x + 12] = 230
    return np.repeat(image[:, :, None], 3, axis=2)


def write_video(
    path: Path,
    *,
    frames: int = 40,
    height: int = 48,
    width: int = 64,
    fps: Fraction = Fraction(25),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    gop: int = 8,
    ticks: list[int] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Encode a video; `ticks` are time stamps in milliseconds for a variable frame rate."""
    with av.open(str(path), mode="w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.codec_context.gop_size = gop
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, height, width), format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def encode() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture
def cut() -> Callable[..., Path]:
    """Keeps the first `share` of a file."""

    def shorten(path: Path, share: float) -> Path:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return shorten
