"""ResNet feature extractor (He et al., 2016) with torchvision's blocks and parameter names."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from stnet.model.norms import norm_layer

STAGES = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Feature maps of strides 8, 16 and 32: the outputs of layer2, layer3 and layer4.

    With frozen BatchNorm, the mode for pretrained weights, the stem and layer1 are not trained either.
    """

    def __init__(self, name: str, width: int = 64, norm: str = "frozen_batch"):
        super().__init__()
        block, depths = STAGES[name]
        normalization = norm_layer(norm)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = normalization(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self.channels = []  # of the three outputs
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            layer = _stage(block, channels, planes, depth, stride=1 if stage == 0 else 2, norm_layer=normalization)
            setattr(self, f"layer{stage + 1}", layer)
            channels = planes * block.expansion
            if stage:
                self.channels.append(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if norm == "frozen_batch":
            for part in (self.conv1, self.bn1, self.layer1):
                part.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return three maps `[N, channels, ceil(H / s), ceil(W / s)]`, s = 8, 16, 32, of images `[N, 3, H, W]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stride8 = self.layer2(self.layer1(x))
        stride16 = self.layer3(stride8)
        return [stride8, stride16, self.layer4(stride16)]


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    planes: int,
    depth: int,
    stride: int,
    norm_layer: Callable[[int], nn.Module],
) -> nn.Sequential:
    downsample = None
    if stride != 1 or channels != planes * block.expansion:
        projection = nn.Conv2d(channels, planes * block.expansion, 1, stride=stride, bias=False)
        downsample = nn.Sequential(OrderedDict([("0", projection), ("1", norm_layer(planes * block.expansion))]))
    blocks = [block(channels, planes, stride, downsample, norm_layer=norm_layer)]
    blocks += [block(planes * block.expansion, planes, norm_layer=norm_layer) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
