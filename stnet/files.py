"""Files that appear whole or not at all."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

PARTIAL = ".partial"
"""Ending of a file that still grows, or whose writing was broken off."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a file beside `path` to be written; once it is, it takes the place of `path` in one step.

    The temporary name ends like `path`, and two processes never share one. After an error it is gone and `path` is as
    it was before.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        synchronize(temporary)
        os.replace(temporary, path)
        synchronize(path.parent)
    except OSError as error:
        # A name that the user has never seen; none where a write failed, as on a full disk.
        if error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in two-space indentation, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def synchronize(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder.

    Raises:
        OSError: for example on a full disk.
    """
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ClosedOrAbandoned(ABC):
    """Something that is written in a `with` statement: closed at its end, abandoned after an error."""

    @abstractmethod
    def close(self) -> None:
        """Finish, and give what was written its name."""

    @abstractmethod
    def abandon(self) -> None:
        """Stop writing; what there is stays under the partial name."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class GrowingFile(ClosedOrAbandoned):
    """A text file that grows as `NAME.partial` and takes its name when closed without an error.

    After an error the partial file stays: it holds what was already produced.

    Args:
        path: the final name.
        newline: as for `open`.

    Raises:
        OSError: from every method, whenever it cannot be written, a full disk included.
    """

    def __init__(self, path: Path, newline: str | None = None) -> None:
        self.path, self._newline = path, newline
        self.partial = path.with_name(path.name + PARTIAL)
        self._handle: IO[str] = open(self.partial, "w", encoding="utf-8", newline=newline)  # noqa: SIM115

    def write(self, text: str) -> None:
        """Append text."""
        self._handle.write(text)

    def close(self, revised: Callable[[Iterable[str]], Iterable[str]] | None = None) -> None:
        """Finish the file and give it its name.

        Args:
            revised: makes the final lines of those written, where the end tells what could not be known before. Lines
                are read and written one at a time.
        """
        if self._handle.closed:
            return
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        if revised is None:
            os.replace(self.partial, self.path)
            return
        with (
            replacing(self.path) as temporary,
            open(self.partial, encoding="utf-8", newline=self._newline) as written,
            open(temporary, "w", encoding="utf-8", newline=self._newline) as final,
        ):
            final.writelines(revised(written))
        self.partial.unlink()

    def abandon(self) -> None:
        """Stop writing; what there is stays under the partial name."""
        # What is still in memory may not fit on a full disk either.
        with suppress(OSError):
            self._handle.close()
