"""A model rewritten for inference: fewer operations, the same function.

Every function here changes the model it is given: hand in a copy.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from stnet.model.attention import SpatialTemporalDeformableAttention
from stnet.model.detector import Detector

# Names under which ResNet blocks keep a convolution and the norm that follows it.
_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))


def fold_batch_norms(model: Detector) -> int:
    """Fold BatchNorm with fixed statistics into the convolution before it; return how many were folded.

    y = s (w * x) + (b - s mean) with s = weight / sqrt(var + eps), computed in float64. GroupNorm stays.
    """
    folded = 0
    for block in list(model.backbone.modules()):
        for conv_name, norm_name in _PAIRS:
            conv, norm = block._modules.get(conv_name), block._modules.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d):
                block._modules[conv_name] = _folded(conv, norm)
                block._modules[norm_name] = nn.Identity()
                folded += 1
    return folded


def pack_projections(model: Detector) -> None:
    """Give every STDA module one weight for its four query projections, concatenated once."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is SpatialTemporalDeformableAttention:
                setattr(parent, name, PackedAttention(child))


def keep_boxes_in_float32(model: Detector) -> None:
    """Let the decoder's heads and reference points compute in float32, whatever the rest does.

    Box coordinates have to resolve a fraction of a pixel, which 16-bit types do not.
    """
    decoder = model.decoder
    decoder.reference_points = InFloat32(decoder.reference_points)
    decoder.class_heads = nn.ModuleList(InFloat32(head) for head in decoder.class_heads)
    decoder.box_heads = nn.ModuleList(InFloat32(head) for head in decoder.box_heads)


class PackedAttention(SpatialTemporalDeformableAttention):
    """STDA whose query projections are one linear layer."""

    def __init__(self, source: SpatialTemporalDeformableAttention) -> None:
        nn.Module.__init__(self)
        # Sizes and settings; parameters and submodules live in private dictionaries.
        vars(self).update({name: value for name, value in vars(source).items() if not name.startswith("_")})
        self.value_proj, self.output_proj = source.value_proj, source.output_proj
        linears = (
            source.sampling_offsets,
            source.attention_weights,
            source.temporal_sampling_offsets,
            source.temporal_attention_weights,
        )
        self._widths = [linear.out_features for linear in linears]
        weights, biases = ([getattr(linear, name) for linear in linears] for name in ("weight", "bias"))
        self.query_proj = linear_of(torch.cat(weights), torch.cat(biases))

    def _project_queries(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = self.query_proj(query).split(self._widths, dim=-1)
        own = (self.heads, self.levels, self.points)
        others = (self.heads, self.other_frames, self.levels, self.other_points)
        shapes = ((*own, 2), own, (*others, 2), others)
        return tuple(part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True))


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a layer with weights `[out, in]` and a bias `[out]`, which are not trained."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach(), False), nn.Parameter(bias.detach(), False)
    return linear


class InFloat32(nn.Module):
    """Runs a module in float32 on inputs of any floating type."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's output for `x` in float32."""
        return self.module(x.float())


def _folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> nn.Conv2d:
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    bias = norm.bias.double() - scale * mean
    if conv.bias is not None:
        bias = bias + scale * conv.bias.double()
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        folded.bias.copy_(bias)
    return folded.requires_grad_(False)
