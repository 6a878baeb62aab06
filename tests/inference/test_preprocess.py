"""Resizing on the device equals Pillow's."""

import numpy as np
import pytest
import torch

from stnet.data.clips.transforms import prepare_frames, resized_size
from stnet.data.clips.transforms import resize as resize_with_pillow
from stnet.execution import preprocess
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
    ((300, 400), (256, 341)),
    ((130, 260), (65, 129)),
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


def test_an_output_reads_its_neighbourhood_alone(monkeypatch):
    """Multiply-adds of a GPU's resizing, against products with whole matrices."""
    counted = []
    real = preprocess._product

    def counting(left, right):
        product = real(left, right)
        counted.append(product.numel() * left.shape[-1])
        return product

    monkeypatch.setattr(preprocess, "_product", counting)
    for source, target in (((32, 800), (32, 683)), ((600, 32), (512, 32))):
        counted.clear()
        assert resize(torch.zeros(1, 3, *source), target).shape == (1, 3, *target)
        dense = 2 * 3 * 32 * max(source) * max(target)
        assert sum(counted) < dense / 7


def test_frames_for_a_gpu_are_copied_once(monkeypatch):
    """Into pinned memory, from which the transfer need not wait; a recorder takes the GPU's place."""
    gpu, pinned, transfers = torch.device("cuda:0"), [], []
    empty, to = torch.empty, torch.Tensor.to

    def allocate(*arguments, pin_memory=False, **options):
        made = empty(*arguments, **options)
        if pin_memory:
            pinned.append(made)
        return made

    def transfer(tensor, *target, **options):
        if gpu not in target:
            return to(tensor, *target, **options)
        transfers.append((tensor, options))
        return tensor

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.Tensor, "to", transfer)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
    frames.append(frames[0][::-1, :, ::-1])  # numpy's views cannot become tensors
    size = resized_size(60, 80, 32, 100)
    prepare = Preprocessor(gpu)
    transfers.clear()  # of constants
    found = prepare(frames, size)
    assert len(pinned) == len(transfers) == 1
    assert transfers[0][0] is pinned[0] and transfers[0][1] == {"non_blocking": True}
    torch.testing.assert_close(found, prepare_frames(np.stack(frames), 32, 100), rtol=0, atol=1e-6)
