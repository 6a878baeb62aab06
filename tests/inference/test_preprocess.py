"""Resizing on the device equals Pillow's."""

import numpy as np
import pytest
import torch

from stnet.data.clips.transforms import prepare_frames, resized_size
from stnet.data.clips.transforms import resize as resize_with_pillow
from stnet.execution.preprocess import Preprocessor, resize

SIZES = [
    ((60, 80), (51, 68)),
    ((37, 53), (64, 91)),
    ((90, 30), (33, 12)),
    ((300, 20), (20, 31)),
    ((100, 90), (90, 88)),
    ((480, 640), (128, 170)),
    ((1, 1), (4, 5)),
    ((16, 9), (16, 9)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_device_resize_is_pillows(source, target):
    frames = np.random.default_rng(0).integers(0, 256, (4, *source, 3), dtype=np.uint8)
    expected = resize_with_pillow(frames, *target)
    found = resize(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), target).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_frames_of_several_sizes(device):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((60, 80, 3), (30, 40, 3), (60, 80, 3))]
    size = resized_size(60, 80, 32, 100)
    found = Preprocessor(torch.device(device))(frames, size).cpu()
    assert found.shape == (3, 3, *size)
    for frame, image in zip(frames, found, strict=True):
        expected = prepare_frames(frame[None], 32, 100)[0]
        assert (found.dtype, image.shape) == (torch.float32, expected.shape)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
