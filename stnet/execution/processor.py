"""A model rewritten for a processor: fused layers, and rows in portions whose intermediates stay in its caches.

A frame's features meet twelve linear layers in six encoder layers. Taken all at once, what lies between two of them is
up to 60 MB: it goes through memory, and the operating system hands its pages out anew every time. In portions it is
written and read in the second level cache. Frames go through the backbone in portions for the same reason.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from stnet.execution.folding import linear_of
from stnet.execution.onednn import RELU, RELU6, PackedConvolution, PackedLinear
from stnet.model.decoder import Decoder
from stnet.model.detector import Detector
from stnet.model.efficientnet import EfficientNetLite, InvertedResidual, pad_for_stride
from stnet.model.encoder import EncoderLayer, FeedForward, all_frame_table
from stnet.model.geometry import ClipGeometry
from stnet.model.resnet import ResNet

ROWS_OF_A_THREAD = 1024  # of the encoder's positions in a portion, at most; fewer would wait for each other more often
IMAGES = 2  # of a portion


def rewrite_for_processor(model: Detector) -> None:
    """Fuse and pack the layers of a model on the CPU, in evaluation mode, of channels-last images.

    BatchNorms must have been folded already: a convolution that has another norm after it is not fused with ReLU.
    """
    model.encoder.layers = nn.ModuleList(_InPortions(layer) for layer in model.encoder.layers)
    model.decoder = _LayerByLayer(model.decoder)
    for layer in model.decoder.layers:
        layer.self_attention = _SelfAttention(layer.self_attention)
    _rewrite_backbone(model.backbone)
    for parent in list(model.modules()):
        if isinstance(parent, FeedForward):
            parent.linear1, parent.relu = PackedLinear(parent.linear1, relu=True), nn.Identity()
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child))
            elif isinstance(child, nn.Conv2d):
                setattr(parent, name, PackedConvolution(child))


def extract_in_portions(model: Detector, images: Tensor) -> list[Tensor]:
    """Return what `model.extract_features` does for images `[N, 3, H, W]`, a few of them at a time."""
    portions = [model.extract_features(portion) for portion in images.split(IMAGES)]
    return portions[0] if len(portions) == 1 else [torch.cat(level) for level in zip(*portions, strict=True)]


def _take_over(module: nn.Module, source: nn.Module) -> None:
    """Let a new module have all that a source has: parameters, submodules and settings."""
    nn.Module.__init__(module)
    vars(module).update(vars(source))


class _InPortions(EncoderLayer):
    """An encoder layer that goes from end to end with some positions of one frame, then with the next."""

    def __init__(self, source: EncoderLayer) -> None:
        _take_over(self, source)

    def forward(self, x: Tensor, position: Tensor, geometry: ClipGeometry) -> Tensor:
        """Return what `EncoderLayer.forward` returns."""
        value, output = self.attention.project_values(x), torch.empty_like(x)
        references, other_references = self.reference_points(x, geometry)
        position = position.expand_as(x)
        table = all_frame_table(x.shape[1])
        for here in _portions(x):
            own = x[here]
            attended = self.attention(
                own + position[here],
                references[here],
                value[here[0]],
                geometry.spatial_shapes,
                (table[here[1].start],),
                other_references[here],
            )
            output[here] = self.feedforward(self.norm(attended.add_(own)))
        return output


def _portions(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of `[B, F, S, d]`: one clip, one frame, some positions."""
    clips, frames, positions = x.shape[:3]
    rows = math.ceil(positions / math.ceil(positions / (ROWS_OF_A_THREAD * torch.get_num_threads())))
    for clip in range(clips):
        for frame in range(frames):
            for start in range(0, positions, rows):
                yield slice(clip, clip + 1), slice(frame, frame + 1), slice(start, start + rows)


class _LayerByLayer(Decoder):
    """A decoder that projects the values of a layer when it comes to it; those of all of them are 60 MB."""

    def __init__(self, source: Decoder) -> None:
        _take_over(self, source)

    def _project_values(self, memory: Tensor) -> Iterator[Tensor]:
        return (layer.attention.project_values(memory) for layer in self.layers)


class _SelfAttention(nn.Module):
    """`nn.MultiheadAttention` among queries, with queries and keys of one product."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        dim, self.heads = source.embed_dim, source.num_heads
        weight, bias = source.in_proj_weight, source.in_proj_bias
        self.query_and_key = linear_of(weight[: 2 * dim], bias[: 2 * dim])
        self.value, self.output = linear_of(weight[2 * dim :], bias[2 * dim :]), source.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Return the attended `[N, Q, d]` and None; `key` is `query`."""
        q, k = self.query_and_key(query).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, self.value(value)))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.output(attended.transpose(1, 2).flatten(2)), None


def _rewrite_backbone(backbone: ResNet | EfficientNetLite) -> None:
    """Fuse convolutions with the activations that follow them, and with residual sums."""
    if not isinstance(backbone.bn1, nn.Identity):
        return
    if isinstance(backbone, EfficientNetLite):
        backbone.conv1, backbone.relu = PackedConvolution(backbone.conv1, RELU6), nn.Identity()
        backbone.blocks = nn.ModuleList(_InvertedResidual(block) for block in backbone.blocks)
        return
    backbone.conv1, backbone.relu = PackedConvolution(backbone.conv1, RELU), nn.Identity()
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(backbone, name, nn.Sequential(*(_ResidualBlock(block) for block in getattr(backbone, name))))


class _ResidualBlock(nn.Module):
    """A block of a ResNet. Its sum is written over its input, which nothing else reads: outputs of stages have none."""

    def __init__(self, source: BasicBlock | Bottleneck) -> None:
        super().__init__()
        names = ("conv1", "conv2", "conv3") if isinstance(source, Bottleneck) else ("conv1", "conv2")
        self.convolutions = nn.ModuleList(PackedConvolution(getattr(source, name), RELU) for name in names)
        self.downsample = None if source.downsample is None else PackedConvolution(source.downsample[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output `[N, C', H', W']`; `x` is lost where nothing is downsampled."""
        residual = x if self.downsample is None else self.downsample(x)
        *before, last = self.convolutions
        for convolution in before:
            x = convolution(x)
        return last(x, residual)


class _InvertedResidual(nn.Module):
    """A block of an EfficientNet-Lite. Outputs of stages are the inputs of blocks that add nothing to them."""

    def __init__(self, source: InvertedResidual) -> None:
        super().__init__()
        self.expansion = PackedConvolution(source.conv1, RELU6) if "conv1" in source._modules else nn.Identity()
        self.depthwise, self.projection = PackedConvolution(source.conv2, RELU6), PackedConvolution(source.conv3)
        self.stride, self.residual = source.stride, source.residual

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output `[N, C', H', W']`; `x` is lost where it is added."""
        y = self.expansion(x)
        y = pad_for_stride(y, self.depthwise) if self.stride > 1 else y
        y = self.depthwise(y)
        return self.projection(y, x if self.residual else None)
