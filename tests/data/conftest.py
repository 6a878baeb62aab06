"""What tests of data sets share."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stnet.data.phantom import write_phantoms


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


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    """A data set without a fault, not to be changed."""
    return write_phantoms(tmp_path_factory.mktemp("clean") / "set", 6, 3, 2, frames=6, height=64, width=80)


@pytest.fixture
def dataset(clean, tmp_path) -> Path:
    """A copy of it, to plant faults in."""
    return shutil.copytree(clean, tmp_path / "set")


@pytest.fixture
def buv_example(shared, tmp_path) -> Path:
    """The example of BUV's annotations, over frames of noise."""
    document = json.loads((shared / "data" / "buv_schema_example.json").read_text())
    rng = np.random.default_rng(0)
    for image in document["images"]:
        path = tmp_path / "rawframes" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (image["height"], image["width"]), dtype=np.uint8)).save(path)
    (tmp_path / "train.json").write_text(json.dumps(document))
    return tmp_path
