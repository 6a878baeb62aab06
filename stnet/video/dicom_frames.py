"""Where the frames of a DICOM file lie: found in the pixel data itself, whatever number the header states."""

import struct
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path

from stnet.errors import VideoError
from stnet.video.dicom_header import MAX_FRAMES, DicomHeader
from stnet.video.source import MAX_PIXELS

ITEM, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
MAX_FRAGMENTS = 4 * MAX_FRAMES

JPEG_START, JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
JPEG_SIZES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers of segments that state the size of a JPEG or JPEG-LS image."""

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
            fragments, table = self._fragments(file, header.value)
            if not fragments:
                return []
            extended = header.dataset.get("ExtendedOffsetTable")
            offsets = _unpacked(extended, "Q") if isinstance(extended, bytes) else []
            groups = _by_offsets(fragments, offsets or _unpacked(table, "L"))
            if groups is not None:
                return groups
            if header.frames == len(fragments):
                return [[fragment] for fragment in fragments]
            return _by_start(file, fragments)

    def _fragments(self, file, value: Piece) -> tuple[list[Piece], bytes]:
        """The whole fragments in the pixel data, and the offset table before them."""
        position, end = value[0], value[0] + value[1]
        fragments: list[Piece] = []
        table: bytes | None = None
        while len(fragments) < MAX_FRAGMENTS:
            file.seek(position)
            head = file.read(8)
            if len(head) < 8 or position + 8 > end:
                self.complete = False
                break
            *tag, length = struct.unpack("<HHL", head)
            if tuple(tag) == SEQUENCE_END:
                break
            if tuple(tag) != ITEM or position + 8 + length > end:
                self.complete = False
                break
            if table is None:
                table = file.read(min(length, 4 * MAX_FRAMES))
            else:
                fragments.append((position + 8, length))
            position += 8 + length
        return fragments, table or b""


def native_frame_bytes(header: DicomHeader) -> int:
    """Bytes of one uncompressed frame."""
    dataset = header.dataset
    size = header.height * header.width * dataset.SamplesPerPixel * (dataset.BitsAllocated // 8)
    return size // 3 * 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else size


def check_stated_size(data: bytes, name: str) -> None:
    """Raise `VideoError` where compressed bytes would unpack to more than `MAX_PIXELS`."""
    size = _stated_size(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise VideoError(f"{name}: a compressed frame claims {size[1]} x {size[0]} pixels; the file is damaged")


def _stated_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG, JPEG-LS or JPEG 2000 stream states, or None where it states none."""
    if data.startswith(JPEG2000_START) and len(data) >= 24:
        width, height, left, top = struct.unpack(">4L", data[8:24])
        return max(0, height - top), max(0, width - left)
    if not data.startswith(JPEG_START):
        return None
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker in JPEG_SIZES:
            return struct.unpack(">HH", data[position + 5 : position + 9])
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    return None


def _unpacked(table: bytes, kind: str) -> list[int]:
    size = struct.calcsize(f"<{kind}")
    return list(struct.unpack(f"<{len(table) // size}{kind}", table[: len(table) // size * size]))


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


def _by_start(file, fragments: list[Piece]) -> list[list[Piece]]:
    """A frame begins wherever a fragment begins as a compressed image does; without such marks with each one."""
    frames: list[list[Piece]] = []
    marked = False
    for number, (start, length) in enumerate(fragments):
        file.seek(start)
        begins = file.read(min(length, 4)).startswith((JPEG_START, JPEG2000_START))
        marked = marked or (number == 0 and begins)
        if begins or not marked or not frames:
            frames.append([])
        frames[-1].append((start, length))
    return frames
