"""Resizing and normalization, equal to the transform that training and evaluation use.

On the CPU it is that transform. On a GPU frames are uploaded as they are and resized there. Training resizes with
Pillow's antialiased bilinear filter: a horizontal and a vertical pass, each a weighted mean of the pixels under a
triangle that widens with the reduction, with weights of 22 bits after the point, each rounded to whole gray levels.
Here both passes are products with the matrices of those weights, a band of outputs at a time, since an output needs a
few neighbouring pixels alone. Split into upper and lower bits, every product and sum is a whole number below 2^24 and
so exact in float32: the result is Pillow's, bit for bit, for reductions up to 15 times (beyond, sums may round, and a
gray level be one off).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stnet.data.clips import transforms
from stnet.data.clips.transforms import IMAGENET_MEAN, IMAGENET_STD
from stnet.execution.precision import products_in_tf32

WEIGHT_BITS = 22
LOWER_BITS = 11
BAND = 64  # outputs of a product: fewer waste less, more keep a GPU's matrix product busy


class Preprocessor:
    """Turns uint8 RGB frames into the normalized input of the model, on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The arithmetic of `stnet.data.clips.transforms.normalize`.
        scale = np.float32(1 / 255) / np.float32(IMAGENET_STD)
        shift = np.float32(IMAGENET_MEAN) / np.float32(IMAGENET_STD)
        self._scale = torch.from_numpy(scale).to(device).view(1, 3, 1, 1)
        self._shift = torch.from_numpy(shift).to(device).view(1, 3, 1, 1)

    def __call__(self, images: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Resize frames to (height, width) `size` and normalize them.

        Args:
            images: N uint8 frames `[H, W, 3]`, of any sizes.
            size: (height, width) that the model sees.

        Returns:
            float32 `[N, 3, height, width]`.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            groups.setdefault(image.shape, []).append(position)
        if len(groups) == 1:
            return self._prepare(images, size)
        output = torch.empty(len(images), 3, *size, device=self._device, dtype=torch.float32)
        for positions in groups.values():
            output[positions] = self._prepare([images[i] for i in positions], size)
        return output

    def _prepare(self, images: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Frames of one size."""
        if self._device.type == "cpu":
            return transforms.normalize(transforms.resize(np.stack(images), *size))
        frames = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        for place, image in zip(frames.numpy(), images, strict=True):
            np.copyto(place, image)
        uploaded = frames.to(self._device, non_blocking=True)
        return self._normalize(resize(uploaded.permute(0, 3, 1, 2).float(), size))

    def _normalize(self, images: Tensor) -> Tensor:
        return images * self._scale - self._shift


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's antialiased bilinear resizing of float32 `[N, C, H, W]` with whole values from 0 to 255."""
    if _vertical_first(tuple(images.shape[-2:]), size):
        return _resize_width(_resize_height(images, size[0]), size[1])
    return _resize_height(_resize_width(images, size[1]), size[0])


@lru_cache(maxsize=64)
def _vertical_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Return the order of Pillow's passes, which its versions choose differently: found by trying both on noise."""
    if source[0] == target[0] or source[1] == target[1]:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (1, *source, 3), dtype=np.uint8)
    wanted = transforms.resize(noise, *target)
    found = torch.from_numpy(noise).permute(0, 3, 1, 2).float()
    found = _resize_height(_resize_width(found, target[1]), target[0])
    horizontal_first = np.array_equal(found.permute(0, 2, 3, 1).numpy(), wanted)
    return not horizontal_first


def _resize_width(images: Tensor, width: int) -> Tensor:
    if images.shape[-1] == width:
        return images
    lines = images.reshape(-1, images.shape[-1])
    bands = _bands(images.shape[-1], width, images.device)
    sums = [_product(lines[:, band.pixels], band.weights.T).chunk(2, dim=1) for band in bands]
    return _rounded(sums, dim=1).view(*images.shape[:-1], width)


def _resize_height(images: Tensor, height: int) -> Tensor:
    if images.shape[-2] == height:
        return images
    bands = _bands(images.shape[-2], height, images.device)
    sums = [_product(band.weights, images[..., band.pixels, :]).chunk(2, dim=-2) for band in bands]
    return _rounded(sums, dim=-2)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in full float32: TF32 would drop the bits that count."""
    if not left.is_cuda:
        return left @ right
    with products_in_tf32(False):
        return left @ right


def _rounded(sums: list[tuple[Tensor, Tensor]], dim: int) -> Tensor:
    """Gray levels from sums over the upper and the lower bits of the weights, band by band, rounded half up."""
    upper, lower = (torch.cat(parts, dim) for parts in zip(*sums, strict=True))
    total = upper.int() * 2**LOWER_BITS + lower.int() + 2 ** (WEIGHT_BITS - 1)
    return (total >> WEIGHT_BITS).clamp_(0, 255).float()


class Band(NamedTuple):
    """Neighbouring outputs: the source pixels they need, and their weights `[2 * outputs, pixels]`.

    Weights are whole numbers as float32: of all outputs the upper bits, then of all the lower bits.
    """

    pixels: slice
    weights: Tensor


@lru_cache(maxsize=32)
def _bands(source: int, target: int, device: torch.device) -> tuple[Band, ...]:
    weights = _weights(source, target)
    bands = []
    for first in range(0, target, BAND):
        rows = weights[first : first + BAND]
        used = np.flatnonzero(rows.any(axis=0))
        pixels = slice(int(used[0]), int(used[-1]) + 1)
        parts = np.concatenate([rows >> LOWER_BITS, rows & (2**LOWER_BITS - 1)])[:, pixels]
        bands.append(Band(pixels, torch.from_numpy(parts.astype(np.float32)).to(device)))
    return tuple(bands)


def _weights(source: int, target: int) -> np.ndarray:
    """Weights of the triangle filter times 2^WEIGHT_BITS, int64 `[target, source]`."""
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), source)
    pixels = np.arange(source)
    distance = np.abs(pixels[None] - centres[:, None] + 0.5) * (1.0 / support)
    weights = np.maximum(1.0 - distance, 0.0)
    weights[(pixels[None] < first[:, None]) | (pixels[None] >= last[:, None])] = 0.0
    weights *= 1.0 / weights.sum(axis=1, keepdims=True)
    return np.floor(weights * 2**WEIGHT_BITS + 0.5).astype(np.int64)
