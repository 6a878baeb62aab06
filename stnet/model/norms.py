"""Normalization layers of the backbones."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

GROUP_NORM_GROUPS = 8


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, computed in the dtype of its input.

    Under autocast the float32 statistics would turn 16-bit activations into float32 ones, twice as large.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled and shifted by fixed statistics."""
        scale, shift = self.scale_and_shift()
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return factor and summand of every channel, each `[C]`."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


def norm_layer(norm: str, epsilon: float = 1e-5, momentum: float = 0.1) -> Callable[[int], nn.Module]:
    """Return what builds a normalization of a number of channels.

    Args:
        norm: "frozen_batch", "batch" or "group", as in `ModelConfig.backbone_norm`.
        epsilon: added to the variances of BatchNorm.
        momentum: share of a new batch in the running statistics of BatchNorm.
    """
    if norm == "frozen_batch":
        return partial(FrozenBatchNorm, eps=epsilon)
    if norm == "batch":
        return partial(nn.BatchNorm2d, eps=epsilon, momentum=momentum)
    return partial(nn.GroupNorm, GROUP_NORM_GROUPS)


def convolve_and_normalize(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Return `norm(conv(x))` for a convolution without bias.

    In training fixed statistics scale the kernel instead of the result, which is a quarter less memory traffic in
    depthwise convolutions. Elsewhere they are applied as trained ones are in evaluation, to the last bit.
    """
    if not isinstance(norm, FrozenBatchNorm):
        return norm(conv(x))
    if not torch.is_grad_enabled():
        return F.batch_norm(conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
