"""How many pages a TIFF file links to, and where that chain breaks off, which Pillow does not tell.

Of a file that was cut or damaged it shows no page at all, or those before a broken directory as if they were all.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_FORMS = {42: ("H", 12, "L"), 43: ("Q", 20, "Q")}
"""Of TIFF and BigTIFF, by the number behind the byte order: of a count, an entry in bytes, and an offset."""


@dataclass(frozen=True, kw_only=True)
class TiffPages:
    """The pages of a TIFF file.

    Attributes:
        linked: how many directories of pages the file points to.
        found: how many of these, from the first on, lie in the file; one less where the chain breaks off.
    """

    linked: int
    found: int


def tiff_pages(path: Path) -> TiffPages:
    """Return the pages of a TIFF file; a chain that runs in a circle ends there.

    Raises:
        OSError, ValueError, struct.error: it cannot be read, or is none.
    """
    with open(path, "rb") as file:
        order = {b"II": "<", b"MM": ">"}.get(file.read(2))
        if order is None:
            raise ValueError("no TIFF file")
        (version,) = struct.unpack(f"{order}H", file.read(2))
        if version not in _FORMS:
            raise ValueError("no TIFF file")
        file.seek(4 if version == 42 else 8)
        return _follow(file, order, *_FORMS[version])


def _follow(file: BinaryIO, order: str, count_form: str, entry_bytes: int, offset_form: str) -> TiffPages:
    count_bytes, offset_bytes = (struct.calcsize(f"{order}{form}") for form in (count_form, offset_form))
    size = os.fstat(file.fileno()).st_size
    (offset,) = struct.unpack(f"{order}{offset_form}", file.read(offset_bytes))
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        file.seek(min(offset, size))
        count = file.read(count_bytes)
        if len(count) < count_bytes:
            return TiffPages(linked=len(seen), found=len(seen) - 1)
        (entries,) = struct.unpack(f"{order}{count_form}", count)
        link = offset + count_bytes + entries * entry_bytes
        if entries == 0 or link + offset_bytes > size:
            return TiffPages(linked=len(seen), found=len(seen) - 1)
        file.seek(link)
        (offset,) = struct.unpack(f"{order}{offset_form}", file.read(offset_bytes))
    return TiffPages(linked=len(seen), found=len(seen))
