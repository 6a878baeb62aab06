"""A stand-in for the compiled extension `MultiScaleDeformableAttention` of the Deformable DETR family.

    import stnet.integrations.msda; stnet.integrations.msda.install()

before the model's code is imported. Repositories that call `MSDA.ms_deform_attn_forward` and `ms_deform_attn_backward`
(Deformable DETR, DINO, Mask2Former, DAB-DETR, the published STNet with its 20 stacked levels, ...) then run unmodified,
in training and inference, on any device and in half precision too. Repositories that keep the same two functions under
another name, as the original Grounding DINO does, take that name: `install("groundingdino._C")`.
"""

import sys
from types import ModuleType

from torch import Tensor

from stnet.kernels import ms_deform_attn
from stnet.kernels.operators import ms_deform_attn_backward as gradients

MODULE_NAME = "MultiScaleDeformableAttention"


def install(name: str = MODULE_NAME, *, replace: bool = False) -> ModuleType:
    """Make `import MultiScaleDeformableAttention` give this module's functions; calling it again changes nothing.

    Args:
        name: what the extension is imported as.
        replace: take the place of a compiled extension that is loaded already. Code that imported it earlier keeps it.

    Raises:
        RuntimeError: another module of that name is loaded and `replace` is False.
    """
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__stnet__", False):
        return loaded
    if loaded is not None and not replace:
        raise RuntimeError(
            f"{name} is loaded from {getattr(loaded, '__file__', 'elsewhere')}; call install() before the "
            "model's code is imported, or pass replace=True"
        )
    module = ModuleType(name, __doc__)
    module.__stnet__ = True
    module.ms_deform_attn_forward = ms_deform_attn_forward
    module.ms_deform_attn_backward = ms_deform_attn_backward
    sys.modules[name] = module
    return module


def uninstall(name: str = MODULE_NAME) -> None:
    """Undo `install` for code imported from now on."""
    if getattr(sys.modules.get(name), "__stnet__", False):
        del sys.modules[name]


def ms_deform_attn_forward(
    value: Tensor,  # [N, S, H, D]
    spatial_shapes: Tensor,  # [L, 2]
    level_start_index: Tensor,  # [L]
    sampling_locations: Tensor,  # [N, Q, H, L, P, 2]
    attention_weights: Tensor,  # [N, Q, H, L, P]
    im2col_step: int,
) -> Tensor:
    """The classic extension's forward: `[N, Q, H * D]`."""
    return ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,  # [N, Q, H * D]
    im2col_step: int,
) -> list[Tensor]:
    """The classic extension's backward: gradients of value, sampling locations and attention weights."""
    return list(gradients(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output))
