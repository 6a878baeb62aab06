"""Data that a user names: that it is there is told before anything that computes is imported."""

from pathlib import Path

from stnet.errors import DataError

REPAIRS_FILE = "repairs.json"
"""Where the repairs of a data set are listed."""


def require_data_folder(root: Path) -> None:
    """Require that a data set folder is there.

    Raises:
        DataError: it is not.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the annotation files")


def require_files(*paths: Path) -> None:
    """Require that files or folders are there.

    Raises:
        DataError: one is not.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check the path")
