"""The operators in Hugging Face models.

    from stnet.integrations.transformers import install
    install(model)

Every layer that transformers calls `MultiScaleDeformableAttention` (Deformable DETR, Grounding DINO, RT-DETR, RF-DETR,
LW-DETR, OmDet-Turbo and others share it) then samples with `stnet.kernels.ms_deform_attn`, in training and inference.
"""

import types

from torch import Tensor, nn

from stnet.kernels import ms_deform_attn

LAYER = "MultiScaleDeformableAttention"


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
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def uninstall(model: nn.Module) -> None:
    """Give the layers their own implementation back."""
    for layer in _layers(model):
        layer.__dict__.pop("forward", None)


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == LAYER]


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
