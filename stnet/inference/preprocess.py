"""Resizing and normalization on the device, equal to the transform that training and evaluation use.

Training resizes with Pillow's antialiased bilinear filter: two passes, horizontal then vertical, each a weighted
mean of the pixels under a triangle that widens with the reduction, each rounded to whole gray levels. Here both
passes are products with the matrices of those weights, in float32, so the result is Pillow's except where a
weighted mean lies within rounding error of a half: at most one gray level (of 255) apart, in few pixels.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stnet.data.transforms import IMAGENET_MEAN, IMAGENET_STD


class Preprocessor:
    """Turns uint8 RGB frames into the normalized input of the model, on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The arithmetic of `stnet.data.transforms.normalize`.
        scale = np.float32(1 / 255) / np.float32(IMAGENET_STD)
        shift = np.float32(IMAGENET_MEAN) / np.float32(IMAGENET_STD)
        self._scale = torch.from_numpy(scale).to(device).view(1, 3, 1, 1)
        self._shift = torch.from_numpy(shift).to(device).view(1, 3, 1, 1)

    def __call__(self, images: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Resize frames to (height, width) `size` and normalize them.

        Args:
            images: N uint8 frames `[H, W, 3]`, of any sizes.

        Returns: float32 `[N, 3, height, width]`.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            groups.setdefault(image.shape, []).append(position)
        if len(groups) == 1:
            return self._normalize(resize(self._upload(images), size))
        output = torch.empty(len(images), 3, *size, device=self._device)
        for positions in groups.values():
            output[positions] = resize(self._upload([images[i] for i in positions]), size)
        return self._normalize(output)

    def _upload(self, images: list[np.ndarray]) -> Tensor:
        """float32 `[N, 3, H, W]` with values 0 to 255."""
        frames = torch.from_numpy(np.stack(images))
        if self._device.type == "cuda":
            frames = frames.pin_memory().to(self._device, non_blocking=True)
        return frames.permute(0, 3, 1, 2).to(self._device, torch.float32)

    def _normalize(self, images: Tensor) -> Tensor:
        return images * self._scale - self._shift


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's antialiased bilinear resizing of float32 `[N, C, H, W]` with whole values from 0 to 255."""
    height, width = images.shape[-2:]
    if width != size[1]:
        images = _product(images, _weights(width, size[1], images.device).T)
    if height != size[0]:
        images = _product(_weights(height, size[0], images.device), images)
    return images


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in full float32 (TF32 would be off by gray levels), rounded half up as Pillow does."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        product = left @ right
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return product.add_(0.5).floor_().clamp_(0, 255)


@lru_cache(maxsize=32)
def _weights(source: int, target: int, device: torch.device) -> Tensor:
    """Weights `[target, source]` of the triangle filter, each row summing to one.

    Pillow computes them in double precision and rounds them to 22 bits after the point.
    """
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), source)
    pixels = np.arange(source)
    distance = np.abs(pixels[None] + 0.5 - centres[:, None]) / support
    weights = np.maximum(1.0 - distance, 0.0)
    weights[(pixels[None] < first[:, None]) | (pixels[None] >= last[:, None])] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return torch.from_numpy(np.round(weights * 2**22) / 2**22).to(device, torch.float32)
