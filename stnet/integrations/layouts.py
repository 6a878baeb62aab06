"""The PyTorch functions for deformable attention that other packages carry, by the layout of their tensors.

Each takes the arguments of the functions it replaces and gives what they give: under autocast float32, because
`grid_sample`, by which they sample, is computed in float32 there.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stnet.kernels import ms_deform_attn

Shapes = Tensor | Sequence[Sequence[int]]


def sample(value: Tensor, spatial_shapes: Shapes, starts: Tensor | None, locations: Tensor, weights: Tensor) -> Tensor:
    """Return `[N, Q, H * D]` in the dtype in which `grid_sample` would leave it.

    Args:
        value: `[N, S, H, D]`.
        spatial_shapes: (h, w) of the levels, ints or `[L, 2]`.
        starts: First position of each level, `[L]`, where the shapes are a tensor and it is known.
        locations: `[N, Q, H, L, P, 2]`.
        weights: `[N, Q, H, L, P]`.
    """
    dtype = torch.promote_types(value.dtype, weights.dtype)
    if isinstance(spatial_shapes, Tensor):
        if starts is None:
            cells = spatial_shapes.prod(1)
            starts = cells.cumsum(0) - cells
    else:
        spatial_shapes = [(int(height), int(width)) for height, width in spatial_shapes]
        starts = [0]
        for height, width in spatial_shapes[:-1]:
            starts.append(starts[-1] + height * width)
    device = value.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            return ms_deform_attn(value, spatial_shapes, starts, locations, weights).to(dtype)
    return ms_deform_attn(value, spatial_shapes, starts, locations, weights).to(dtype)


def by_level(
    value: Tensor, value_spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample values `[N, S, H, D]` at `[N, Q, H, L, P, 2]`, levels and points maybe as one axis; `[N, Q, H * D]`."""
    levels = len(value_spatial_shapes)
    if sampling_locations.ndim == 5:
        sampling_locations = sampling_locations.unflatten(3, (levels, -1))
    if attention_weights.ndim == 4:
        attention_weights = attention_weights.unflatten(3, (levels, -1))
    return sample(value, value_spatial_shapes, None, sampling_locations, attention_weights)


def by_point(
    value: Tensor | Sequence[Tensor],
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
    *,
    own: Callable,
) -> Tensor:
    """Sample at `[N, Q, H, points of all levels, 2]`, every level with a number of points of its own; `[N, Q, H * D]`.

    Args:
        value: `[N, S, H, D]`.
        value_spatial_shapes: (h, w) of the levels.
        sampling_locations: `[N, Q, H, sum of points, 2]`.
        attention_weights: `[N, Q, H, sum of points]`.
        num_points_list: The points of each level.
        method: "default"; any other is left to the function that is replaced.
        own: That function.
    """
    if method != "default":
        return own(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
    locations = _padded(sampling_locations, num_points_list, dim=3)
    weights = _padded(attention_weights, num_points_list, dim=3)
    return sample(value, value_spatial_shapes, None, locations, weights)


def _padded(points: Tensor, counts: Sequence[int], dim: int) -> Tensor:
    """Give points of all levels, `[..., sum of counts, ...]`, as `[..., L, most, ...]`.

    Zeros fill the levels that have fewer; being of weight zero they add nothing.
    """
    most = max(counts)
    if min(counts) == most:
        return points.unflatten(dim, (len(counts), most))
    levels = [
        torch.cat([level, level.new_zeros([*level.shape[:dim], most - count, *level.shape[dim + 1 :]])], dim)
        for level, count in zip(points.split(list(counts), dim), counts, strict=True)
    ]
    return torch.stack(levels, dim)
