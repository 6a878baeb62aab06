"""What tests of data sets share."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def full_disk(monkeypatch) -> Callable[[int], None]:
    """Has the disk be full once it holds a number of pictures more; of the next, half is written."""

    def fill(room: int) -> None:
        left, save = iter(range(room)), Image.Image.save

        def on_full_disk(image: Image.Image, file: Path) -> None:
            if next(left, None) is None:
                file.write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            save(image, file)

        monkeypatch.setattr(Image.Image, "save", on_full_disk)

    return fill
