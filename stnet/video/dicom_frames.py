"""Where the frames of a DICOM file lie: found in the pixel data itself, whatever number the header states."""

import struct
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from stnet.errors import VideoError
from stnet.video.dicom_codestream import JPEG2000_START, JPEG_START, read_codestream
from stnet.video.dicom_header import MAX_FRAMES, DicomHeader
from stnet.video.source import MAX_PIXELS

ITEM, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
MAX_FRAGMENTS = 4 * MAX_FRAMES

Piece = tuple[int, int]
"""Where bytes begin in the file, and how many they are."""


class FrameMap:
    """The bytes of every frame. `complete` is False where the pixel data ends before it should."""

    def __init__(self, path: Path, header: DicomHeader) -> None:
        self._path = path
        self.complete = True
        if header.syntax.is_encapsulated:
            frames = self._encapsulated(header)
        else:
            frames = self._native(header)
        self.frames: list[list[Piece]] = frames[:MAX_FRAMES]
        self.cut = len(frames) > MAX_FRAMES

    def _native(self, header: DicomHeader) -> list[list[Piece]]:
        start, length = header.value
        size = native_frame_bytes(header)
        return [[(start + index * size, size)] for index in range(min(length // size, MAX_FRAMES + 1))]

    def _encapsulated(self, header: DicomHeader) -> list[list[Piece]]:
        with open(self._path, "rb") as file:
            fragments, table, self.complete = read_fragments(file, header.value)
            if not fragments:
                return []
            extended = header.dataset.get("ExtendedOffsetTable")
            offsets = _unpacked(extended, "Q") if isinstance(extended, bytes) else []
            return _grouped(file, fragments, offsets or _unpacked(table, "L"), header.frames)


def read_fragments(file: BinaryIO, value: Piece, *, broken: bool = False) -> tuple[list[Piece], bytes, bool]:
    """Find the fragments in compressed pixel data.

    Args:
        file: the DICOM file.
        value: where the value of the pixel data lies.
        broken: take the beginning of a fragment that breaks off, too.

    Returns:
        The fragments, the offset table before them, and whether the data ends as it should.
    """
    position, end = value[0], value[0] + value[1]
    fragments: list[Piece] = []
    table: bytes | None = None
    while len(fragments) < MAX_FRAGMENTS:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or position + 8 > end:
            return fragments, table or b"", False
        *tag, length = struct.unpack("<HHL", head)
        if tuple(tag) == SEQUENCE_END:
            break
        if tuple(tag) != ITEM or position + 8 + length > end:
            if broken and tuple(tag) == ITEM and table is not None:
                fragments.append((position + 8, end - position - 8))
            return fragments, table or b"", False
        if table is None:
            table = file.read(min(length, 4 * MAX_FRAMES))
        else:
            fragments.append((position + 8, length))
        position += 8 + length
    return fragments, table or b"", True


def native_frame_bytes(header: DicomHeader) -> int:
    """Bytes of one uncompressed frame."""
    dataset = header.dataset
    size = header.height * header.width * dataset.SamplesPerPixel * (dataset.BitsAllocated // 8)
    return size // 3 * 2 if header.photometric == "YBR_FULL_422" else size


def check_stated_size(data: bytes, name: str) -> None:
    """Raise `VideoError` where compressed bytes would unpack to more than `MAX_PIXELS`."""
    stream = read_codestream(data)
    if stream is not None and stream.height * stream.width > MAX_PIXELS:
        raise VideoError(f"{name}: a compressed frame claims {stream.width} x {stream.height} pixels; it is damaged")


def _unpacked(table: bytes, kind: str) -> list[int]:
    size = struct.calcsize(f"<{kind}")
    return list(struct.unpack(f"<{len(table) // size}{kind}", table[: len(table) // size * size]))


def _grouped(file, fragments: list[Piece], offsets: list[int], stated: int) -> list[list[Piece]]:
    """Fragments grouped into frames: as the compressed images begin, as the offset table says, or one by one.

    Tables are often wrong (a single 0), and so is the number of frames. Where images begin is seen in the fragments
    themselves; only a beginning that damage hides is taken from what agrees with the number of frames.
    """
    by_start, singly = _by_start(file, fragments), [[fragment] for fragment in fragments]
    readings = [groups for groups in (_by_offsets(fragments, offsets), singly) if groups is not None]
    agreed = next((groups for groups in readings if len(groups) == stated), None)
    if by_start is None:
        return agreed or readings[0]
    return agreed if agreed is not None and len(agreed) > len(by_start) else by_start


def _by_offsets(fragments: list[Piece], offsets: list[int]) -> list[list[Piece]] | None:
    """Fragments grouped by a table of where frames begin, or None where it does not fit them."""
    if not offsets or offsets[0] != 0 or any(b <= a for a, b in pairwise(offsets)):
        return None
    first = fragments[0][0]
    begins = [start - first for start, _ in fragments]
    places = [bisect_left(begins, offset) for offset in offsets]
    # Frames beyond the end of a cut file have no fragments.
    known = [(place, offset) for place, offset in zip(places, offsets, strict=True) if place < len(begins)]
    if any(begins[place] != offset for place, offset in known):
        return None
    bounds = [place for place, _ in known] + [len(fragments)]
    return [fragments[a:b] for a, b in pairwise(bounds)]


def _by_start(file, fragments: list[Piece]) -> list[list[Piece]] | None:
    """Return frames that begin where a fragment begins as a compressed image does; None where the first does not."""
    frames: list[list[Piece]] = []
    for start, length in fragments:
        file.seek(start)
        if file.read(min(length, 4)).startswith((JPEG_START, JPEG2000_START)):
            frames.append([])
        if not frames:
            return None
        frames[-1].append((start, length))
    return frames
