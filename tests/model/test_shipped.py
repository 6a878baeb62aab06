"""The shipped models: small enough, described, and the default one knows real breasts."""

import json
import re
import warnings

import numpy as np
import pytest
from PIL import Image
from torchvision.ops import box_iou

import stnet
from stnet.choices import DEFAULT_MODEL
from stnet.model.checkpoint import SHIPPED, read_checkpoint, resolve, shipped_names

MEGABYTES = 12


def test_every_shipped_model_is_small_and_says_what_it_was_trained_on():
    assert DEFAULT_MODEL in shipped_names()
    assert [name for name in shipped_names() if resolve(name).stat().st_size > MEGABYTES * 1e6] == []
    for name in shipped_names():
        assert read_checkpoint(resolve(name)).provenance.trained_on
        assert json.loads((SHIPPED / f"{name}.json").read_text())["command"]


def test_the_default_has_operating_points_and_no_caution():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = stnet.VideoDetector(device="cpu")
    assert detector.operating_point == "balanced" and 0 < detector.score_threshold < 1
    assert "BUS-BRA" in detector.provenance.trained_on


def test_the_default_finds_lesions_of_unseen_patients(shared):
    folder = shared / "data" / "busbra"
    content = json.loads((folder / "val.json").read_text())
    images = content["images"][:: len(content["images"]) // 16][:16]
    detector = stnet.VideoDetector(device="cpu", targets=1)
    found = lesions = false = 0
    for image in images:
        truth = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in truth], np.float32).reshape(-1, 4)
        pixels = np.asarray(Image.open(folder / image["file_name"]).convert("RGB"))
        (result,) = detector(pixels[None])
        detections = result.detections.above(detector.score_threshold)
        overlaps = box_iou(detections.boxes, detections.boxes.new_tensor(boxes))
        lesions += len(boxes)
        found += int((overlaps.amax(0) >= 0.5).sum()) if len(detections.boxes) else 0
        false += len(detections.boxes[(overlaps.amax(1) < 0.1)].unique(dim=0)) if len(detections.boxes) else 0
    assert found >= 0.75 * lesions and false <= 3


@pytest.mark.parametrize("name", shipped_names())
def test_nothing_is_said_of_the_machine_that_trained(name):
    metadata = read_checkpoint(resolve(name)).metadata
    assert metadata and not [text for text in metadata.values() if re.search(r'"(/|~|[A-Za-z]:\\)', text)]
