"""Names for DICOM files that tell nothing of the patient, and the private key that leads back from them.

A file's own name and identifiers may tell who the patient is, so it is called after its content: `dicom-` and twelve
digits of a hash. The name is the same in every call, and no two files share one.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path

from stnet.errors import ConfigError
from stnet.files import replacing

PREFIX = "dicom-"
DIGITS = 12
SAMPLE_BYTES = 2**20
"""How much of each end of a file is hashed: the header with its unique identifiers, and pixels."""

COLUMNS = ("name", "file")


def dicom_name(path: Path) -> str | None:
    """Return the name of a DICOM file, or None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"stnet {size} ".encode())
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    except OSError:
        return None
    return PREFIX + digest.hexdigest()[:DIGITS]


def write_dicom_key(path: Path, named: Iterable[tuple[str, Path]]) -> None:
    """Write which file is behind each name, as a table readable by its owner alone.

    The table names patients' files. Names that it holds from earlier calls stay.

    Args:
        path: the table, CSV with the columns `name` and `file`.
        named: names of results and the DICOM files they are of.

    Raises:
        ConfigError: it cannot be written, or another file is there.
    """
    rows = _former_rows(path) | {(name, str(file.absolute())): None for name, file in named}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    try:
        with replacing(path) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(text.getvalue())
    except OSError as error:
        raise ConfigError(f"{path}: the DICOM key cannot be written ({error.strerror}); name another file") from error


def _former_rows(path: Path) -> dict[tuple[str, str], None]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [tuple(row) for row in csv.reader(file)]
    except FileNotFoundError:
        return {}
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{path}: is no DICOM key that could be added to ({error}); name another file") from error
    if rows[:1] != [COLUMNS] or any(len(row) != 2 for row in rows):
        raise ConfigError(f"{path}: is no DICOM key, and is not overwritten; name another file")
    return dict.fromkeys(rows[1:])
