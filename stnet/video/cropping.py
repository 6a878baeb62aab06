"""What a container says of borders that are not to be shown, which FFmpeg's Python binding neither applies nor tells.

Matroska states them as PixelCrop elements of a track (RFC 9559), MP4 and MOV as a clean aperture (ISO/IEC 14496-12,
12.1.4). Players differ in whether they heed them, so a user has to know.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stnet.video.geometry import Box

_MOST = 20_000
"""Parts of a container that are looked at, so that a hostile file costs no more."""

_EBML, _SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}
_SAMPLE_ENTRY = 78
"""Bytes of a video sample entry before the boxes in it."""

Span = tuple[int, int]
"""Where a part begins in the file, and where it ends."""


def stated_crop(path: Path, track: int, width: int, height: int) -> Box | None:
    """Return the part of the stored frames that a container says is to be shown.

    Args:
        path: the video file.
        track: which of its streams, counted from 0.
        width: of its stored frames, in pixels.
        height: likewise.

    Returns:
        The part; None where it is all of the frame, or where nothing that makes sense is stated.
    """
    try:
        with open(path, "rb") as file:
            end = path.stat().st_size
            matroska = file.read(4) == _EBML.to_bytes(4, "big")
            box = (_matroska if matroska else _mp4)(file, (0, end), track, width, height)
    except (OSError, struct.error, ValueError, IndexError, ZeroDivisionError):
        return None
    if box is None or box == (0, 0, width, height):
        return None
    sensible = 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    return box if sensible else None


def _matroska(file: BinaryIO, whole: Span, track: int, width: int, height: int) -> Box | None:
    (segment,) = list(_children(file, whole, _elements, _SEGMENT))[:1]
    (tracks,) = list(_children(file, segment, _elements, _TRACKS))[:1]
    entry = list(_children(file, tracks, _elements, _TRACK))[track]
    (video,) = list(_children(file, entry, _elements, _VIDEO))[:1]
    cut = {"left": 0, "top": 0, "right": 0, "bottom": 0}
    for kind, (start, end) in _elements(file, video):
        if kind in _CROPS:
            file.seek(start)
            cut[_CROPS[kind]] = int.from_bytes(file.read(min(end - start, 8)), "big")
    return cut["left"], cut["top"], width - cut["right"], height - cut["bottom"]


def _elements(file: BinaryIO, within: Span) -> Iterator[tuple[int, Span]]:
    """Yield the EBML elements of a part, up to the first cluster of frames."""
    position, end = within
    for _ in range(_MOST):
        if position >= end:
            return
        file.seek(position)
        head = file.read(12)
        length = 9 - head[0].bit_length()
        kind = int.from_bytes(head[:length], "big")
        size_length = 9 - head[length].bit_length()
        mask = (1 << 7 * size_length) - 1
        size = int.from_bytes(head[length : length + size_length], "big") & mask
        start = position + length + size_length
        position = end if size == mask else min(start + size, end)  # a mask of ones: to the end
        if kind == _CLUSTER:
            return
        yield kind, (start, position)


def _mp4(file: BinaryIO, whole: Span, track: int, width: int, height: int) -> Box | None:
    (movie,) = list(_children(file, whole, _boxes, b"moov"))[:1]
    span = list(_children(file, movie, _boxes, b"trak"))[track]
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
        (span,) = list(_children(file, span, _boxes, name))[:1]
    _, entry = next(_boxes(file, (span[0] + 8, span[1])))  # behind version, flags and count
    for start, _ in _children(file, (entry[0] + _SAMPLE_ENTRY, entry[1]), _boxes, b"clap"):
        file.seek(start)
        values = struct.unpack(">2I2I2i2i", file.read(32)[:32])
        wide, high, right, down = (values[i] / values[i + 1] for i in (0, 2, 4, 6))
        left, top = (width - wide) / 2 + right, (height - high) / 2 + down
        return round(left), round(top), round(left + wide), round(top + high)
    return None


def _boxes(file: BinaryIO, within: Span) -> Iterator[tuple[bytes, Span]]:
    """Yield the boxes of a part of an MP4 or MOV file."""
    position, end = within
    for _ in range(_MOST):
        if position + 8 > end:
            return
        file.seek(position)
        size, name = struct.unpack(">I4s", file.read(8))
        start = position + 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            start += 8
        position = end if size == 0 else min(position + max(size, start - position), end)
        yield name, (start, position)


def _children(file: BinaryIO, within: Span, walk, kind) -> Iterator[Span]:
    return (span for found, span in walk(file, within) if found == kind)
