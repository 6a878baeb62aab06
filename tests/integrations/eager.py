"""Layers and functions written the way other packages write them, and deformable attention from its equation."""

import torch
from torch import nn
from torch.nn.functional import grid_sample


def deformable_attention(value, shapes, locations, weights):
    """A sum of weighted bilinear samples, level by level: `[N, Q, H * D]`."""
    batch, _, heads, dim = value.shape
    total, start = 0.0, 0
    for level, (height, width) in enumerate(shapes):
        height, width = int(height), int(width)
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        start += height * width
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples = grid_sample(maps, grid, align_corners=False)
        total = total + (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.view(batch, heads * dim, -1).transpose(1, 2)


def problem(levels, dtype=torch.float32, batch=3, queries=11, heads=2, dim=4, points=3):
    """Value, shapes, starts, locations (some outside) and weights."""
    generator = torch.Generator().manual_seed(len(levels))
    shapes = torch.tensor(levels)
    cells = shapes.prod(dim=1)
    value = torch.randn(batch, int(cells.sum()), heads, dim, generator=generator)
    locations = torch.rand(batch, queries, heads, len(levels), points, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(levels), points, generator=generator)
    return value.to(dtype), shapes, cells.cumsum(0) - cells, locations.to(dtype), weights.to(dtype)


class MultiScaleDeformableAttention(nn.Module):
    """The layer that most models of transformers share."""

    def forward(
        self,
        value,
        value_spatial_shapes,
        value_spatial_shapes_list,
        level_start_index,
        sampling_locations,
        attention_weights,
        im2col_step,
    ):
        return deformable_attention(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights):
    """The function of Mask2Former and OneFormer."""
    return deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def multi_scale_deformable_attention_v2(
    value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"
):
    """The function of RT-DETR v2, D-FINE and DEIMv2."""
    total = 0.0
    locations = sampling_locations.split(num_points_list, 3)
    weights = attention_weights.split(num_points_list, 3)
    if method == "discrete":
        locations = [torch.round(level, decimals=1) for level in locations]
    cells = [height * width for height, width in value_spatial_shapes]
    for part, shape, where, weight in zip(value.split(cells, 1), value_spatial_shapes, locations, weights, strict=True):
        total = total + deformable_attention(part, [shape], where.unsqueeze(3), weight.unsqueeze(3))
    return total


class LayerByLevel(nn.Module):
    """As in Mask2Former: the function is called by its name."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, value, shapes, locations, weights):
        return multi_scale_deformable_attention(value, shapes, locations, weights) * self.scale


class LayerByPoint(LayerByLevel):
    """As in RT-DETR v2."""

    counts = (3, 1)
    method = "default"

    def forward(self, value, shapes, locations, weights):
        counts = list(self.counts)
        return multi_scale_deformable_attention_v2(value, shapes, locations, weights, counts, self.method) * self.scale


class LayerWithCore(LayerByPoint):
    """As in D-FINE: the layer keeps the function."""

    def __init__(self, scale=1.0):
        super().__init__(scale)
        self.ms_deformable_attn_core = multi_scale_deformable_attention_v2

    def forward(self, value, shapes, locations, weights):
        counts = list(self.counts)
        return self.ms_deformable_attn_core(value, shapes, locations, weights, counts, self.method) * self.scale
