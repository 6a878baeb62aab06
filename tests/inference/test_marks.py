"""A mark on a visible pixel stays on it from any source into every result: JSON, CSV, annotated video, report page.

The network is replaced by one that sees nothing but the bright square, so that its boxes are where the pixels are.
"""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.execution.engine import Engine
from stnet.inference import cli
from stnet.video import open_source
from tests.video.test_marks import SOURCES

BORDER = 3  # pixels by which resizing to the model's size may move an edge
SURE = 9.0


def _see(images: torch.Tensor) -> list[torch.Tensor]:
    """Instead of level maps: the square's cx, cy, w, h in units of the frame, `[N, 4, 1, 1]`."""
    found = []
    for image in images.float().mean(1):
        bright = image > (image.min() + image.max()) / 2
        rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
        (y0, y1), (x0, x1) = ((float(side[0]), float(side[-1]) + 1) for side in (rows, columns))
        height, width = image.shape
        found.append(((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height))
    return [torch.tensor(found).view(-1, 4, 1, 1)]


def _tell(levels: list[torch.Tensor], targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = levels[0][:, :targets, :, 0, 0].unsqueeze(2)
    logits = torch.full((*boxes.shape[:3], 3), -SURE)
    logits[..., 1] = SURE
    return logits, boxes


@pytest.fixture
def results(monkeypatch, checkpoint, tmp_path):
    """A function that runs infer.py on a source; gives the folder of its results and the page."""
    monkeypatch.setattr(Engine, "extract", lambda self, images: _see(images))
    monkeypatch.setattr(
        Engine, "detect", lambda self, levels, targets=None: _tell(list(levels), targets or self.targets)
    )

    def run(path):
        out = tmp_path / "results"
        options = ["--checkpoint", str(checkpoint), "--output", str(out), "--report", "--device", "cpu"]
        assert cli.main([str(path), *options]) == 0
        (folder,) = (entry for entry in out.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        return folder, (out / "report.html").read_text()

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", SOURCES)
def test_marks_stay_on_their_pixels_in_every_result(make, results, tmp_path):
    path = make(tmp_path)
    box = np.array(SOURCES[make], dtype=float)
    folder, page = results(path)
    source = open_source(path)
    frames = list(source)
    origin = np.array([*frames[0].origin, *frames[0].origin])

    document = json.loads((folder / "detections.json").read_text())
    assert len(document["frames"]) == len(frames)
    for frame in document["frames"]:
        assert np.abs(np.array(frame["boxes"][0]) - box).max() <= BORDER
    with (folder / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(frames)
    for row in rows:
        assert np.abs(np.array([float(row[name]) for name in ("x0", "y0", "x1", "y1")]) - box).max() <= BORDER

    for frame in open_source(folder / "annotated.mp4"):
        height, width = frame.image.shape[:2]
        scale = np.array([width / source.width, height / source.height] * 2)
        _assert_outlined(frame.image, (box - origin) * scale)

    shown = re.search(r'<script type="application/json" id="frames-0">(.*?)</script>', page, re.DOTALL)[1]
    picture = next(text for text in json.loads(shown) if text)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[-1]))).convert("RGB"))
    scale = np.array([image.shape[1] / source.width, image.shape[0] / source.height] * 2)
    x0, y0, x1, y1 = ((box - origin) * scale).round().astype(int)
    assert image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].mean() > 200
    listed = re.findall(r"\[(-?[\d.]+),\s*(-?[\d.]+),\s*(-?[\d.]+),\s*(-?[\d.]+),\s*0\.99", page)
    assert listed
    assert all(np.abs(np.array(one, dtype=float) - (box - origin)).max() <= BORDER for one in listed)


def _assert_outlined(image: np.ndarray, box: np.ndarray) -> None:
    """Colour stands along the left edge of the box, and brightness inside of it."""
    x0, y0, x1, y1 = box.round().astype(int)
    colourful = np.ptp(image.astype(int), axis=2) > 60
    reach = BORDER + 2
    assert colourful[y0:y1, max(0, x0 - reach) : x0 + reach].any(axis=1).mean() > 0.8
    # The upper half may hold the label, and colour at half resolution bleeds inwards: the lower half is bright.
    inside = image[(y0 + y1) // 2 : y1 - reach, x0 + reach : x1 - reach]
    assert (inside.max(axis=2) > 150).mean() > 0.8
