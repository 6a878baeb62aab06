"""What a compressed frame says of itself, where headers of DICOM files are often wrong: its size and its colours."""

import io
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

JPEG_START, JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"

JPEG_SIZES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers of segments that state the size of a JPEG or JPEG-LS image."""

JPEG_LOSSY = frozenset((0xC0, 0xC1, 0xC2))
JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers that no segment follows."""

JPEG_SCAN, APP0, APP14 = 0xDA, 0xE0, 0xEE
J2K_CODING, J2K_TILE = b"\xff\x52", b"\xff\x90"

Colours = Literal["RGB", "YBR_FULL", "YBR_ICT", "YBR_RCT"]


@dataclass(frozen=True, kw_only=True)
class Codestream:
    """The size of a compressed image, and its colours where the stream tells them (in DICOM's words).

    `lossy_jpeg`: three components of 8 bits by discrete cosine transform, which Pillow decodes.
    """

    height: int
    width: int
    colours: Colours | None = None
    lossy_jpeg: bool = False


def read_codestream(data: bytes) -> Codestream | None:
    """Return what a JPEG, JPEG-LS or JPEG 2000 stream states, or None where the bytes are none or break off."""
    try:
        if data.startswith(JPEG2000_START):
            return _jpeg2000(data)
        return _jpeg(data) if data.startswith(JPEG_START) else None
    except (struct.error, IndexError):
        return None


def decode_jpeg(data: bytes, colours: str) -> np.ndarray:
    """Return uint8 RGB `[H, W, 3]` of a lossy JPEG with three components. Raises what Pillow does.

    Args:
        data: the stream.
        colours: what its components are: "RGB", else luminance and chroma.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if colours == "RGB" and _converted_by_libjpeg(data):
            image.draft("YCbCr", image.size)  # the components as they are
        pixels = np.array(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError("not three components")
    return pixels


def _jpeg2000(data: bytes) -> Codestream:
    width, height, left, top = struct.unpack(">4L", data[8:24])
    colours: Colours | None = None
    position = 2
    while data[position : position + 2] not in (J2K_TILE, b""):
        marker, length = data[position : position + 2], struct.unpack(">H", data[position + 2 : position + 4])[0]
        if marker == J2K_CODING and data[position + 8]:  # the decoder undoes the colour transform
            colours = "YBR_RCT" if data[position + 13] == 1 else "YBR_ICT"
        position += 2 + length
    return Codestream(height=max(0, height - top), width=max(0, width - left), colours=colours)


def _jpeg(data: bytes) -> Codestream | None:
    frame: tuple[int, bytes] | None = None
    adobe: int | None = None
    jfif = False
    for marker, segment in _jpeg_segments(data):
        if marker == APP0 and segment.startswith(b"JFIF\0"):
            jfif = True
        elif marker == APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11]
        elif marker in JPEG_SIZES and frame is None:
            frame = marker, segment
    if frame is None:
        return None
    marker, segment = frame
    precision, height, width, components = struct.unpack(">BHHB", segment[:6])
    if marker not in JPEG_LOSSY or components != 3:
        return Codestream(height=height, width=width)
    names, sampling = segment[6::3][:3], segment[7::3][:3]
    if adobe is not None:
        colours = "YBR_FULL" if adobe else "RGB"
    elif jfif or len(set(sampling)) > 1:  # nobody subsamples red, green and blue
        colours = "YBR_FULL"
    else:
        colours = "RGB" if names == b"RGB" else None
    return Codestream(height=height, width=width, colours=colours, lossy_jpeg=precision == 8)


def _jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """Markers and contents of the segments before the compressed data, as far as they are whole."""
    segments, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == JPEG_SCAN:
            break
        if marker == 0xFF:
            position += 1
        elif marker in JPEG_ALONE:
            position += 2
        else:
            (length,) = struct.unpack(">H", data[position + 2 : position + 4])
            segments.append((marker, data[position + 4 : position + 2 + length]))
            position += 2 + max(2, length)
    return segments


def _converted_by_libjpeg(data: bytes) -> bool:
    """Whether libjpeg takes the components for luminance and chroma: unless Adobe's mark or their names say RGB."""
    stated = read_codestream(data)
    return stated is None or stated.colours != "RGB"
