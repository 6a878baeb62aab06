"""The backbones by name."""

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
