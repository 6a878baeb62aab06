"""One writer per folder: a lock that the operating system gives back when its process ends, however it ends."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from stnet.errors import VideoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


def lock_beside(file: Path) -> Path:
    """Return the file that stands for the lock on another one, for `FolderLock`."""
    return file.with_name(f".{file.name}.running")


class FolderLock:
    """Keeps other runs from writing to the same place until released.

    On file systems without locks it does nothing.

    Args:
        path: the file that stands for the lock, which is there while it is held.

    Attributes:
        exclusive: False where the file system has no locks.

    Raises:
        VideoError: another run holds it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.exclusive = True
        self._handle = self._acquire()

    def release(self) -> None:
        """Let others write; harmless when done twice."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        if fcntl is None:  # Windows removes no open file
            os.close(handle)
        with suppress(OSError):
            self._path.unlink()
        if fcntl is not None:
            os.close(handle)

    def _acquire(self) -> int:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(handle)
            except BaseException:
                os.close(handle)
                raise
            with suppress(OSError):
                # Else its former holder has removed the file since it was opened here: another one is in its place.
                if os.path.samestat(os.fstat(handle), os.stat(self._path)):
                    return handle
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            if fcntl is None:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                self.exclusive = False
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise
            raise VideoError(
                f"{self._path.parent}: another run is writing there; wait for it, or choose another --output"
            ) from error
