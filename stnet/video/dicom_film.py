"""Videos inside DICOM files: MPEG-2, H.264 and HEVC streams in the fragments of the pixel data, decoded by FFmpeg.

The stream is as little to be trusted as any file: only plain containers and the decoders of the transfer syntaxes
are let near it, and no protocol at all, so nothing in it can name another file.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from stnet.errors import VideoError
from stnet.video.container import open_container
from stnet.video.dicom_frames import Piece, read_fragments
from stnet.video.dicom_header import DicomHeader, hiding_contents
from stnet.video.reader import DecodedVideo

MPEG2, H264, HEVC = ("mpeg2video", "mpeg1video"), ("h264",), ("hevc",)

FILM_SYNTAXES = {
    **{f"1.2.840.10008.1.2.4.{number}{form}": MPEG2 for number in (100, 101) for form in ("", ".1")},
    **{f"1.2.840.10008.1.2.4.{number}{form}": H264 for number in range(102, 107) for form in ("", ".1")},
    **{f"1.2.840.10008.1.2.4.{number}": HEVC for number in (107, 108)},
}
"""The decoders that belong to a transfer syntax."""

FORMATS = "h264,hevc,mpegvideo,mpeg,mpegts,mov,mp4,m4a,3gp,3g2,mj2"


class FilmFrames:
    """The frames of a DICOM file that holds one compressed video.

    Raises:
        VideoError: it cannot be decoded, or has another size than the header says.
    """

    def __init__(self, path: Path, header: DicomHeader, name: str) -> None:
        self._stated = header.frames
        with hiding_contents(name, "its video cannot be found"), open(path, "rb") as file:
            pieces, _, self._complete = read_fragments(file, header.value, broken=True)
        if not pieces:
            raise VideoError(f"{name}: holds no complete frame; the file is cut or damaged")
        self._video = video = EncapsulatedVideo(path, pieces, FILM_SYNTAXES[str(header.syntax)], name)
        if (video.height, video.width) != (header.height, header.width):
            raise VideoError(
                f"{name}: its video has {video.width} x {video.height} pixels, its header says "
                f"{header.width} x {header.height}; the file is damaged"
            )
        self.pixel_aspect = video.pixel_aspect

    def __len__(self) -> int:
        return self._stated

    def __iter__(self) -> Iterator[np.ndarray | None]:
        return (frame.image for frame in self._video)

    def remarks(self) -> Iterator[str]:
        """Return what a user should know before the frames are read."""
        return iter(())

    def verdict(self, delivered: int) -> tuple[bool, list[str]]:
        """Return whether frames are missing at the end, and all that is wrong with the `delivered` frames."""
        problems = list(self._video.problems)
        short = delivered < self._stated
        if short:
            problems.insert(0, f"{delivered} of {self._stated} declared frames are in the file")
        elif delivered > self._stated:
            problems.append(f"holds {delivered} frames, {self._stated} are declared")
        elif not self._complete:
            problems.append("its pixel data ends without a mark")
        return short, problems


class EncapsulatedVideo(DecodedVideo):
    """The video in the fragments of a DICOM file's pixel data.

    Args:
        path: the DICOM file.
        pieces: where its fragments lie.
        decoders: those that belong to its transfer syntax (`FILM_SYNTAXES`).
        name: what outputs and messages call it.

    Raises:
        VideoError: it cannot be opened or decoded.
    """

    def __init__(self, path: Path, pieces: list[Piece], decoders: tuple[str, ...], name: str) -> None:
        self._path, self._pieces, self._decoders = path, pieces, decoders
        super().__init__(name, name)

    def _container(self) -> Any:
        options = {
            "format_whitelist": FORMATS,
            "codec_whitelist": ",".join(self._decoders),
            "protocol_whitelist": "none",
        }
        with hiding_contents(self.label, "cannot be opened"):
            file = FragmentFile(self._path, self._pieces)
        container = open_container(file, mode="r", options=options, metadata_errors="replace")
        found = {stream.codec_context and stream.codec_context.name for stream in container.streams.video}
        if found - set(self._decoders):
            container.close()
            raise VideoError(f"{self.label}: its video stream is none of its transfer syntax; the file is damaged")
        return container


class FragmentFile(io.RawIOBase):
    """Fragments of a file, to be read as one file."""

    def __init__(self, path: Path, pieces: list[Piece]) -> None:
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 (closed with this object)
        self._pieces = pieces
        self._begins = [0, *accumulate(length for _, length in pieces)]
        self._position = 0

    def readable(self) -> bool:
        """Return True: it is made to be read."""
        return True

    def seekable(self) -> bool:
        """Return True: containers may keep their index at the end."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._begins[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the fragment at the position, as far as it goes."""
        number = bisect_right(self._begins, self._position) - 1
        if number >= len(self._pieces):
            return 0
        start, length = self._pieces[number]
        inside = self._position - self._begins[number]
        self._file.seek(start + inside)
        data = self._file.read(min(len(buffer), length - inside))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
