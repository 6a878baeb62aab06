"""EfficientNet-Lite 0, 1 and 2 (Liu and Tan, 2020) as feature extractors: no squeeze-and-excitation, ReLU6."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stnet.model.norms import convolve_and_normalize, norm_layer
from stnet.normalization import IMAGENET_MEAN, IMAGENET_STD

STEM_CHANNELS = 32
EPSILON = 1e-3  # of the BatchNorms, as in TensorFlow, where the weights were trained
MOMENTUM = 0.01


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Equal blocks of EfficientNet-B0 before scaling; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
)
OUTPUT_STAGES = (2, 4, 6)  # the last of strides 8, 16 and 32
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""Factors of channels and of blocks."""


class EfficientNetLite(nn.Module):
    """Feature maps of strides 8, 16 and 32.

    With frozen BatchNorm, the mode for pretrained weights, what comes before stride 8 is not trained either.

    Args:
        name: one of SCALES.
        norm: "frozen_batch", "batch" or "group".
        half_range: convert images, normalized like ImageNet's for torchvision, to (x - 127) / 128 first.
    """

    def __init__(self, name: str, norm: str = "frozen_batch", half_range: bool = False):
        super().__init__()
        width, depth = SCALES[name]
        self.half_range = half_range
        if half_range:
            mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
            self.register_buffer("input_scale", 255 / 128 * deviation)
            self.register_buffer("input_shift", (255 * mean - 127) / 128)
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self.bn1 = norm_layer(norm, EPSILON, MOMENTUM)(STEM_CHANNELS)
        self.relu = nn.ReLU6()
        self.blocks = nn.ModuleList()
        self.channels = []  # of the three outputs
        self._outputs = []  # indices of the blocks that make them
        channels = STEM_CHANNELS
        for number, stage in enumerate(STAGES):
            # Stem and last stage keep their number of blocks in the Lite family.
            repeats = stage.blocks if number in (0, len(STAGES) - 1) else math.ceil(depth * stage.blocks)
            planes = _scaled(stage.channels, width)
            for repeat in range(repeats):
                stride = stage.stride if repeat == 0 else 1
                self.blocks.append(InvertedResidual(channels, planes, stage.kernel, stride, stage.expansion, norm))
                channels = planes
            if number in OUTPUT_STAGES:
                self.channels.append(channels)
                self._outputs.append(len(self.blocks) - 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if norm == "frozen_batch":
            strided = [index for index, block in enumerate(self.blocks) if block.stride == 2]
            for part in (self.conv1, self.bn1, *self.blocks[: strided[1]]):
                part.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return three maps `[N, channels, ceil(H / s), ceil(W / s)]`, s = 8, 16, 32, of images `[N, 3, H, W]`."""
        if self.half_range:
            images = images * self.input_scale.view(1, 3, 1, 1) + self.input_shift.view(1, 3, 1, 1)
        x = self.relu(convolve_and_normalize(pad_for_stride(images, self.conv1), self.conv1, self.bn1))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._outputs:
                maps.append(x)
        return maps


class InvertedResidual(nn.Module):
    """Expansion by 1 x 1, depthwise convolution, linear projection by 1 x 1 (Sandler et al., 2018).

    Args:
        channels: of the input.
        planes: of the output.
        kernel: side of the depthwise kernel.
        stride: of the depthwise convolution.
        expansion: channels of the depthwise convolution, in units of `channels`; 1 leaves the first 1 x 1 out.
        norm: as in `EfficientNetLite`.
    """

    def __init__(self, channels: int, planes: int, kernel: int, stride: int, expansion: int, norm: str):
        super().__init__()
        normalization = norm_layer(norm, EPSILON, MOMENTUM)
        expanded = channels * expansion
        self.stride = stride
        self.residual = stride == 1 and channels == planes
        if expansion > 1:
            self.conv1 = nn.Conv2d(channels, expanded, 1, bias=False)
            self.bn1 = normalization(expanded)
        padding = kernel // 2 if stride == 1 else 0  # with a stride the padding lies on one side: see `pad_for_stride`
        self.conv2 = nn.Conv2d(expanded, expanded, kernel, stride, padding, groups=expanded, bias=False)
        self.bn2 = normalization(expanded)
        self.conv3 = nn.Conv2d(expanded, planes, 1, bias=False)
        self.bn3 = normalization(planes)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N, planes, ceil(H / stride), ceil(W / stride)]` of `[N, channels, H, W]`."""
        y = x
        if "conv1" in self._modules:
            y = F.relu6(convolve_and_normalize(y, self.conv1, self.bn1))
        y = pad_for_stride(y, self.conv2) if self.stride > 1 else y
        y = F.relu6(convolve_and_normalize(y, self.conv2, self.bn2))
        y = convolve_and_normalize(y, self.conv3, self.bn3)
        return x + y if self.residual else y


def pad_for_stride(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return `x` padded for a convolution of stride 2 that starts where TensorFlow's does at even sizes.

    There (0, 1) is enough for 3 x 3 and (1, 2) for 5 x 5. One more row and column keeps the same grid at odd sizes and
    gives them the last position, so that sizes are halved rounding up, whether or not they are known beforehand.
    """
    before = conv.kernel_size[0] // 2 - 1
    after = conv.kernel_size[0] // 2 + 1
    return F.pad(x, (before, after, before, after))


def _scaled(channels: int, factor: float) -> int:
    """Return a number of channels times a factor, as the multiple of 8 that is nearest but not 10 % below."""
    scaled = max(8, int(channels * factor + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * factor else scaled
