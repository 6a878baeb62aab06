"""The PyTorch functions for deformable attention that other packages carry, by the layout of their tensors.

Each takes the arguments of the functions it replaces and gives what they give: under autocast float32, because
`grid_sample`, by which they sample, is computed in float32 there.
"""

import functools
import inspect
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
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes, starts = [(int(height), int(width)) for height, width in spatial_shapes], None
    device = value.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            return ms_deform_attn(value, spatial_shapes, starts, locations, weights).to(dtype)
    return ms_deform_attn(value, spatial_shapes, starts, locations, weights).to(dtype)


def by_level(
    value: Tensor | Sequence[Tensor],
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample at `[N, Q, H, L, P, 2]`, where levels and points may be one axis; `[N, Q, H * D]`.

    Args:
        value: `[N, S, H, D]`, or for each level a tensor that `joined` takes.
        value_spatial_shapes: (h, w) of the levels.
        sampling_locations: `[N, Q, H, L, P, 2]` or `[N, Q, H, L * P, 2]`.
        attention_weights: `[N, Q, H, L, P]` or `[N, Q, H, L * P]`.
    """
    value = joined(value, value_spatial_shapes, sampling_locations)
    levels = len(value_spatial_shapes)
    if sampling_locations.ndim == 5:
        sampling_locations = sampling_locations.unflatten(3, (levels, -1))
    if attention_weights.ndim == 4:
        attention_weights = attention_weights.unflatten(3, (levels, -1))
    return sample(value, value_spatial_shapes, None, sampling_locations, attention_weights)


def heads_first(
    value: Tensor,
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    value_spatial_shapes_hw: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Sample values `[N, H, D, S]`; the rest as in `by_level`, the shapes as ints too where they are known."""
    shapes = value_spatial_shapes if value_spatial_shapes_hw is None else value_spatial_shapes_hw
    return by_level(value.permute(0, 3, 1, 2).contiguous(), shapes, sampling_locations, attention_weights)


def by_point(
    value: Tensor | Sequence[Tensor],
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
    value_shape: str | None = None,
    allow_acceleration: bool = True,
    *,
    own: Callable,
) -> Tensor:
    """Sample at `[N, Q, H, points of all levels, 2]`, every level with a number of points of its own; `[N, Q, H * D]`.

    Args:
        value: `[N, S, H, D]`, or for each level a tensor that `joined` takes.
        value_spatial_shapes: (h, w) of the levels.
        sampling_locations: `[N, Q, H, sum of points, 2]`.
        attention_weights: `[N, Q, H, sum of points]`.
        num_points_list: The points of each level.
        method: "default"; any other is left to the function that is replaced.
        value_shape: How the replaced function is told what the value is; it shows.
        allow_acceleration: Accepted where the replaced function has it.
        own: The replaced function.
    """
    if method != "default":
        return own(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
    value = joined(value, value_spatial_shapes, sampling_locations)
    locations = _padded(sampling_locations, num_points_list, dim=3)
    weights = _padded(attention_weights, num_points_list, dim=3)
    return sample(value, value_spatial_shapes, None, locations, weights)


def joined(value: Tensor | Sequence[Tensor], spatial_shapes: Shapes, sampling_locations: Tensor) -> Tensor:
    """Return values as `[N, S, H, D]`; each level may come alone, as `[N, H, D, h * w]` or `[N * H, D, h, w]`."""
    if isinstance(value, Tensor):
        return value
    batch, _, heads = sampling_locations.shape[:3]
    cells = [int(height) * int(width) for height, width in spatial_shapes]
    levels = [level.reshape(batch, heads, -1, size) for level, size in zip(value, cells, strict=True)]
    # One copy: the kernels read the D channels of a position together.
    return torch.cat(levels, -1).permute(0, 3, 1, 2).contiguous()


def in_place_of(own: Callable, layout: Callable) -> Callable:
    """Return what takes the place of a function: one of its name, pickled under it, that samples with the operators.

    While a model is traced (ONNX, TorchScript) the replaced function answers: no other runtime has the operators.

    Raises:
        ValueError: The function takes arguments that this layout does not know.
    """
    check_arguments(own, layout)
    bound = functools.partial(layout, own=own) if layout is by_point else layout

    @functools.wraps(own)
    def function(*args, **kwargs):
        return (own if exporting() else bound)(*args, **kwargs)

    return function


def exporting() -> bool:
    """Return whether a model is traced for a runtime that does not have the operators."""
    return torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def check_arguments(own: Callable, replacement: Callable) -> None:
    """Refuse to replace a function that takes other arguments than those known here.

    Raises:
        ValueError: It does.
    """
    known = [p.name for p in inspect.signature(replacement).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = [p.name for p in inspect.signature(replacement).parameters.values() if p.default is p.empty]
    given = list(inspect.signature(own).parameters)
    if not set(known).issuperset(given) or not set(given).issuperset(name for name in needed if name in known):
        raise ValueError(
            f"{own.__module__}.{own.__qualname__} takes ({', '.join(given)}); only ({', '.join(known)}) is known here "
            "(docs/integrations.md lists what goes by another way, as mmcv does)"
        )


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
