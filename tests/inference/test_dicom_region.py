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

from tests.video.dicom_making import dataset, loop, region, save  # noqa: E402


def test_boxes_are_those_of_the_region_moved(small_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(examples.get_path("ybr_color"))
        region = data.SequenceOfUltrasoundRegions[0]
        region.RegionLocationMinX0, region.RegionLocationMinY0 = 42, 15
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 297, 206
        data.save_as(tmp_path / "a")
    detector = VideoDetector(small_model, device="cpu")
    results = list(detector(str(tmp_path / "a"), images=True))
    images = np.stack([result.image for result in results])
    assert images.shape == (30, 192, 256, 3) and results[0].origin == (42, 15)
    alone = list(detector(ArraySource(images)))
    for result, plain in zip(results, alone, strict=True):
        moved = plain.detections.boxes + torch.tensor([42.0, 15.0, 42.0, 15.0])
        torch.testing.assert_close(result.detections.boxes, moved, atol=1e-3, rtol=0)
        torch.testing.assert_close(result.detections_in_image.boxes, plain.detections.boxes, atol=1e-3, rtol=0)


def test_a_played_file_states_the_frame_that_its_boxes_are_in(infer, tmp_path):
    save(dataset(loop(2, 60, 110), SequenceOfUltrasoundRegions=[region(50, 10, 109, 59)]), tmp_path / "a.dcm")
    options = ("--live", "--every-frame", "--json-lines", "--formats", "csv", "--score-threshold", "0")
    status, out, err = infer("a.dcm", *options)
    start, *frames, _ = map(json.loads, out.splitlines())
    assert status == 0 and (start["width"], start["height"]) == (110, 60), err
    assert start["region"] == [50, 10, 110, 60]
    boxes = np.concatenate([frame["boxes"] for frame in frames])
    assert boxes[:, 2].max() > 60 and (boxes >= (50, 10, 50, 10)).all() and (boxes <= (110, 60, 110, 60)).all()
