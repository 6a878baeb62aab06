"""The backbones by name."""

import torch

from stnet.model.config import ModelConfig
from stnet.model.efficientnet import SCALES, EfficientNetLite
from stnet.model.resnet import ResNet

Backbone = ResNet | EfficientNetLite


def build_backbone(config: ModelConfig) -> Backbone:
    """Return the network that makes maps of strides 8, 16 and 32 of frames; `channels` tells theirs."""
    if config.backbone in SCALES:
        half_range = config.backbone_input == "half_range"
        return EfficientNetLite(config.backbone, config.backbone_norm, half_range)
    return ResNet(config.backbone, config.backbone_width, config.backbone_norm)


def lay_out_for(backbone: Backbone, device: torch.device) -> None:
    """Give the weights the memory format in which a device convolves float32 fastest.

    Training and evaluation both ask for it: another format rounds differently. Depthwise kernels of 5 x 5 get their
    gradients three times as fast on a CPU (oneDNN, one thread).
    """
    if device.type == "cpu":
        backbone.to(memory_format=torch.channels_last)
