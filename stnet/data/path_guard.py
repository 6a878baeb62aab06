"""Paths that files of others name: they stay inside the data set."""

import os
from pathlib import Path


class PathGuard:
    """Maps file names to paths that stay inside `root` even through symbolic links."""

    def __init__(self, root: Path):
        self.root = root
        self._real_root = os.path.realpath(root)
        self._inside: dict[Path, bool] = {}

    def path(self, file_name: str) -> Path:
        """Return the path of a file name, which need not exist.

        Raises:
            ValueError: it leads out of the folder.
        """
        path = self.root / file_name
        if path.parent not in self._inside:
            self._inside[path.parent] = self._is_inside(path.parent)
        if not self._inside[path.parent] or (path.is_symlink() and not self._is_inside(path)):
            raise ValueError("leads out of the dataset through a symbolic link")
        return path

    def _is_inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real_root or real.startswith(os.path.join(self._real_root, ""))
