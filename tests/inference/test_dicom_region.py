"""Boxes of DICOM files are in pixels of the original frame, though only the scan region is looked at."""

import json
import warnings

import numpy as np
import pytest
import torch

from stnet.inference import VideoDetector
from stnet.video import ArraySource

pydicom = pytest.importorskip("pydicom")
from pydicom import examples  # noqa: E402


@pytest.fixture
def dicom(tmp_path):
    """A loop of 30 frames, whose region begins at 42, 15."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(examples.get_path("ybr_color"))
        region = data.SequenceOfUltrasoundRegions[0]
        region.RegionLocationMinX0, region.RegionLocationMinY0 = 42, 15
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 297, 206
        data.save_as(tmp_path / "a")
    return tmp_path / "a"


def test_lines_of_a_played_file_tell_the_frame_that_boxes_are_in(infer, dicom):
    status, out, _ = infer(str(dicom), "--live", "--json-lines", "--formats", "json", "--output", "out")
    start, *_ = map(json.loads, out.splitlines())
    (path,) = dicom.parent.glob("out/dicom-*/detections.json")
    video = json.loads(path.read_text())["video"]
    told = {name: start[name] for name in ("width", "height", "region")}
    assert told == {name: video[name] for name in told} and told["region"] == [42, 15, 298, 207]
    assert told["width"] > 256 and status in (0, 1)  # frames may be dropped


def test_boxes_are_those_of_the_region_moved(small_model, dicom):
    detector = VideoDetector(small_model, device="cpu")
    results = list(detector(str(dicom), images=True))
    images = np.stack([result.image for result in results])
    assert images.shape == (30, 192, 256, 3) and results[0].origin == (42, 15)
    alone = list(detector(ArraySource(images)))
    for result, plain in zip(results, alone, strict=True):
        moved = plain.detections.boxes + torch.tensor([42.0, 15.0, 42.0, 15.0])
        torch.testing.assert_close(result.detections.boxes, moved, atol=1e-3, rtol=0)
        torch.testing.assert_close(result.detections_in_image.boxes, plain.detections.boxes, atol=1e-3, rtol=0)
