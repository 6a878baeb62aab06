"""Containers of video files, opened so that closing them cannot hang."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av


def open_container(source: Path | BinaryIO, **options: Any) -> Any:
    """`av.open` with FFmpeg's messages off in the whole process; errors are raised all the same.

    Where they are on (torchvision before 0.26 turns them on), a decoder's thread with a message waits for Python's
    lock, and the thread that closes the decoder holds that lock and waits for the decoder's thread: for ever.
    """
    av.logging.set_level(None)
    return av.open(str(source.absolute()) if isinstance(source, Path) else source, **options)


def next_packet(packets: Iterator[Any]) -> Any | None:
    """Return the next packet that a container's `demux` gives, None at the end of the data.

    Raises:
        av.FFmpegError, ValueError: unreadable data.
    """
    try:
        return next(packets, None)
    except IndexError:
        return None  # PyAV flushes at the end, and knows no streams that appeared on the way, as in damaged data
