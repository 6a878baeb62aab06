"""Frames of a DICOM file that are stored one by one, compressed or not."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stnet.errors import VideoError
from stnet.video.dicom_frames import FrameMap, Piece, check_stated_size
from stnet.video.dicom_header import MAX_FRAMES, DicomHeader, hiding_contents
from stnet.video.dicom_pixels import FrameDecoder
from stnet.video.geometry import SQUARE

MAX_FAILURES = 1000
"""Frames that may fail to decode before the rest of a file is given up."""


class CodedFrames:
    """The frames of a DICOM file, decoded one at a time.

    Raises:
        VideoError: they cannot be found, or nothing here can decode them.
    """

    pixel_aspect: Fraction = SQUARE

    def __init__(self, path: Path, header: DicomHeader, name: str) -> None:
        self._path, self._header, self._name = path, header, name
        with hiding_contents(name, "its frames cannot be found; the file is damaged"):
            self._decoder = FrameDecoder(header, name)
            self._map = FrameMap(path, header)
        if not self._map.frames:
            raise VideoError(f"{name}: holds no complete frame; the file is cut or damaged")
        self._failed = 0

    def __len__(self) -> int:
        return len(self._map.frames)

    def __iter__(self) -> Iterator[np.ndarray | None]:
        """Yield uint8 `[H, W, 3]` frames, None in place of those that cannot be decoded."""
        self._failed = 0
        for pieces in self._map.frames:
            image = self._decode(pieces)
            self._failed += image is None
            if self._failed >= MAX_FAILURES:
                return
            yield image

    def remarks(self) -> Iterator[str]:
        """Yield what a user should know before the frames are read."""
        yield from self._decoder.notes
        if self._decoder.needs_survey:
            remark = self._decoder.survey(self._read(pieces) for pieces in self._map.frames)
            if remark is not None:
                yield remark

    def verdict(self, delivered: int) -> tuple[bool, list[str]]:
        """Return whether frames are missing at the end, and all that is wrong with the `delivered` frames."""
        found, stated = len(self._map.frames), self._header.frames
        problems = []
        if self._map.cut:
            problems.append(f"only its first {MAX_FRAMES} frames are read")
        elif found < stated:
            problems.append(f"{found} of {stated} declared frames are in the file")
        short = bool(problems)
        if found > stated:
            problems.append(f"holds {found} frames, {stated} are declared")
        elif not short and not self._map.complete:
            problems.append("its pixel data ends without a mark")
        if delivered < found:
            problems.append(f"{self._failed} frames cannot be decoded")
        return short, problems

    def _decode(self, pieces: list[Piece]) -> np.ndarray | None:
        """Return the whole frame made of these bytes, or None where they are damaged."""
        try:
            with hiding_contents(self._name, "a frame cannot be decoded"):
                data = self._read(pieces)
                check_stated_size(data, self._name)
                return self._decoder(data)
        except VideoError:
            return None

    def _read(self, pieces: list[Piece]) -> bytes:
        parts = []
        # The file may have gone since, and the error of the system names it.
        with hiding_contents(self._name, "a frame cannot be read"), open(self._path, "rb") as file:
            for start, length in pieces:
                if self._header.swapped:
                    parts.append(self._read_swapped(file, start, length))
                    continue
                file.seek(start)
                parts.append(file.read(length))
        return b"".join(parts)

    def _read_swapped(self, file: BinaryIO, start: int, length: int) -> bytes:
        """Read bytes that have changed places in pairs; a frame may begin and end inside of one."""
        before = (start - self._header.value[0]) % 2
        file.seek(start - before)
        data = file.read(before + length + (before + length) % 2)
        swapped = bytearray(len(data) + len(data) % 2)
        swapped[: len(data)] = data
        swapped[::2], swapped[1::2] = swapped[1::2], swapped[::2]
        return bytes(swapped[before : before + length])
