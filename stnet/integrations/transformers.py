"""The operators in Hugging Face models.

    from stnet.integrations.transformers import install
    install(model)

Every layer that transformers calls `MultiScaleDeformableAttention` (Deformable DETR, Grounding DINO, RT-DETR, RF-DETR,
LW-DETR, OmDet-Turbo and others share it) then samples with `stnet.kernels.ms_deform_attn`, in training and inference;
so do the layers of RT-DETR v2 and D-FINE, where every level has a number of points of its own.
"""

import sys
import types
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from stnet.kernels import ms_deform_attn

LAYER = "MultiScaleDeformableAttention"
OTHER_LAYERS = ("RTDetrV2MultiscaleDeformableAttention", "DFineMultiscaleDeformableAttention")
CORE = "multi_scale_deformable_attention_v2"
"""The function that samples for the other layers: one copy in the module of each."""
CORE_ATTRIBUTE = "ms_deformable_attn_core"
"""Where D-FINE's layer keeps that function; RT-DETR v2 calls it by its name."""


def install(model: nn.Module) -> int:
    """Make the deformable attention layers of this model use the operators; weights and the class stay untouched.

    Returns:
        The number of layers.

    Raises:
        ValueError: the model has no such layer.
    """
    layers = _layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no {LAYER} layer; models that share it are those of Deformable DETR's family"
        )
    for layer in layers:
        _install(layer)
    return len(layers)


def uninstall(model: nn.Module) -> None:
    """Give the layers their own implementation back."""
    for layer in _layers(model):
        layer.__dict__.pop("forward", None)
        if hasattr(layer, CORE_ATTRIBUTE):
            setattr(layer, CORE_ATTRIBUTE, _own_core(layer))


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in (LAYER, *OTHER_LAYERS)]


def _install(layer: nn.Module) -> None:
    if type(layer).__name__ == LAYER:
        layer.forward = types.MethodType(_forward, layer)
        return
    core = partial(_sample, own=_own_core(layer))
    if hasattr(layer, CORE_ATTRIBUTE):
        setattr(layer, CORE_ATTRIBUTE, core)
        return
    # The class's own forward, which finds another function under the name it calls.
    own = type(layer).forward
    names = {**own.__globals__, CORE: core}
    forward = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    layer.forward = types.MethodType(forward, layer)


def _own_core(layer: nn.Module) -> Callable:
    return getattr(sys.modules[type(layer).__module__], CORE)


def _forward(
    layer: nn.Module,
    value: Tensor,  # [N, S, H, D]
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: list[tuple],
    level_start_index: Tensor,
    sampling_locations: Tensor,  # [N, Q, H, L, P, 2]
    attention_weights: Tensor,  # [N, Q, H, L, P]
    im2col_step: int,
) -> Tensor:
    return ms_deform_attn(value, value_spatial_shapes, level_start_index, sampling_locations, attention_weights)


def _sample(
    value: Tensor,  # [N, S, H, D]
    value_spatial_shapes: list[tuple[int, int]],
    sampling_locations: Tensor,  # [N, Q, H, sum of points, 2]
    attention_weights: Tensor,  # [N, Q, H, sum of points]
    num_points_list: list[int],
    method: str = "default",
    *,
    own: Callable,
) -> Tensor:
    if method != "default":
        return own(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
    shapes = [(int(height), int(width)) for height, width in value_spatial_shapes]
    starts = [0, *accumulate(height * width for height, width in shapes)][:-1]
    locations = _by_level(sampling_locations, num_points_list, dim=3)
    weights = _by_level(attention_weights, num_points_list, dim=3)
    return ms_deform_attn(value, shapes, starts, locations, weights)


def _by_level(points: Tensor, counts: list[int], dim: int) -> Tensor:
    """Points of all levels one after the other, `[..., sum of counts, ...]`, as `[..., L, most, ...]`; zeros where a
    level has fewer, of weight zero like them."""
    most = max(counts)
    padded = [
        torch.cat([level, level.new_zeros([*level.shape[:dim], most - count, *level.shape[dim + 1 :]])], dim)
        if count < most
        else level
        for level, count in zip(points.split(counts, dim), counts, strict=True)
    ]
    return torch.stack(padded, dim)
