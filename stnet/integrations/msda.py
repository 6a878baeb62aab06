"""A stand-in for the compiled extension `MultiScaleDeformableAttention` of the Deformable DETR family.

    import stnet.integrations.msda; stnet.integrations.msda.install()

Repositories that call `MSDA.ms_deform_attn_forward` and `ms_deform_attn_backward` (Deformable DETR, DINO, Mask2Former,
DAB-DETR, the published STNet with its 20 stacked levels, ...) then run unmodified, in training and inference, on any
device and in half precision too. Repositories that keep the same two functions under another name take that name:
`install("groundingdino._C")`, `install("detrex._C")`.

Call it before the model's code is imported. Code that caught its failing import (`try: from groundingdino import _C`)
may have been imported earlier: the name it misses is put in place. Like the extension the functions follow the dtype of
the values, under autocast too.
"""

import sys
from types import ModuleType

import torch
from torch import Tensor

from stnet.integrations.stand_in import StandIn, installed
from stnet.kernels import ms_deform_attn
from stnet.kernels import ms_deform_attn_backward as gradients

MODULE_NAME = "MultiScaleDeformableAttention"


def install(name: str = MODULE_NAME, *, replace: bool = False) -> ModuleType:
    """Make `import MultiScaleDeformableAttention` give this module's functions; calling it again changes nothing.

    Args:
        name: What the extension is imported as.
        replace: Take the place of a compiled extension that is loaded already. Code that imported it earlier keeps it.

    Returns:
        The module that will be imported.

    Raises:
        RuntimeError: Another module of that name is loaded and `replace` is False.
    """
    if (present := installed(name)) is not None:
        return present.module
    loaded = sys.modules.get(name)
    if loaded is not None and not replace:
        raise RuntimeError(
            f"{name} is loaded from {getattr(loaded, '__file__', 'elsewhere')}; call install() before the "
            "model's code is imported, or pass replace=True"
        )
    functions = {f.__name__: f for f in (ms_deform_attn_forward, ms_deform_attn_backward)}
    stand_in = StandIn(name, functions)
    stand_in.install()
    return stand_in.module


def uninstall(name: str = MODULE_NAME) -> None:
    """Undo `install` for code imported from now on; a module that was replaced is back."""
    if (present := installed(name)) is not None:
        present.uninstall()


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the output of multi-scale deformable attention, as the classic extension does.

    Args:
        value: `[N, S, H, D]`.
        spatial_shapes: (h, w) of the levels, `[L, 2]`.
        level_start_index: First position of each level, `[L]`.
        sampling_locations: (x, y) in [0, 1], `[N, Q, H, L, P, 2]`.
        attention_weights: `[N, Q, H, L, P]`.
        im2col_step: Ignored; any batch size works.

    Returns:
        `[N, Q, H * D]` in the dtype of value.
    """
    with torch.autocast(value.device.type, enabled=False):
        return ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> list[Tensor]:
    """Return the gradients of value, sampling locations and attention weights, as the classic extension does.

    Args:
        value: As in `ms_deform_attn_forward`, like the others.
        spatial_shapes: `[L, 2]`.
        level_start_index: `[L]`.
        sampling_locations: `[N, Q, H, L, P, 2]`.
        attention_weights: `[N, Q, H, L, P]`.
        grad_output: `[N, Q, H * D]`.
        im2col_step: Ignored.
    """
    with torch.autocast(value.device.type, enabled=False):
        return list(
            gradients(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output)
        )
