"""The operators in Hugging Face models.

    from stnet.integrations.transformers import install
    install(model)

Every layer that transformers calls `MultiScaleDeformableAttention` (Deformable DETR, Grounding DINO, RT-DETR, RF-DETR
and others share it) then samples with `stnet.kernels.ms_deform_attn`, in training and inference; so do the layers that
call `multi_scale_deformable_attention` (Mask2Former, OneFormer) or `multi_scale_deformable_attention_v2` (RT-DETR v2,
D-FINE, DEIMv2, where every level has a number of points of its own).

A layer changes its class for a subclass. So copies, replicas of `DataParallel` and pickles keep the operators, and the
weights and the model's own classes stay untouched. Who loads such a pickle needs stnet; `uninstall` before saving
makes one for everybody.
"""

import functools
from collections.abc import Callable
from types import FunctionType

from torch import Tensor, nn

from stnet.integrations import layouts

LAYER = "MultiScaleDeformableAttention"
FUNCTIONS = {
    "multi_scale_deformable_attention": layouts.by_level,
    "multi_scale_deformable_attention_v2": layouts.by_point,
}
"""What other layers call instead, a copy in the module of each, and what takes its place."""
FUNCTION_ATTRIBUTE = "ms_deformable_attn_core"
"""Where the layers of D-FINE and DEIMv2 keep that function."""


def install(model: nn.Module) -> int:
    """Make the deformable attention layers of this model use the operators.

    Returns:
        The number of layers.

    Raises:
        ValueError: The model has no such layer, or one that samples by a function with other arguments.
    """
    layers = [layer for layer in model.modules() if _sampler(layer) is not None]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no {LAYER} layer, nor one that calls {' or '.join(FUNCTIONS)}; "
            "docs/integrations.md lists what has"
        )
    for layer in layers:
        _check(layer)
    for layer in layers:
        layer.__class__ = _with_operators(_own_class(layer))
    return len(layers)


def uninstall(model: nn.Module) -> None:
    """Give the layers their own implementation back."""
    for layer in model.modules():
        layer.__class__ = _own_class(layer)


def _own_class(layer: nn.Module) -> type[nn.Module]:
    return getattr(type(layer), "_own_class", type(layer))


def _sampler(layer: nn.Module) -> Callable | None:
    """Return the function by which this layer samples: its forward, or one of `FUNCTIONS`."""
    forward = _own_class(layer).forward
    if forward.__qualname__ == f"{LAYER}.forward":
        return forward
    if (name := _called(forward)) is not None:
        return forward.__globals__[name]
    kept = vars(layer).get(FUNCTION_ATTRIBUTE)
    return kept if getattr(kept, "__name__", None) in FUNCTIONS else None


def _called(forward: Callable) -> str | None:
    """Return the name of the function of `FUNCTIONS` that is called here."""
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return next((name for name in FUNCTIONS if name in names and name in forward.__globals__), None)


def _check(layer: nn.Module) -> None:
    sampler = _sampler(layer)
    layouts.check_arguments(sampler, FUNCTIONS.get(sampler.__name__, _forward))
    if "forward" in vars(layer):
        raise ValueError(
            f"a {type(layer).__name__} layer has a forward of its own instance (a hook of accelerate, a kernel of the "
            "Hub), which would hide the operators; call install() before that is added"
        )


@functools.cache
def _with_operators(own: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a layer's class that samples with the operators."""
    members = {"_own_class": own, "__reduce_ex__": _reduce, "__module__": __name__}
    forward = own.forward
    if forward.__qualname__ == f"{LAYER}.forward":
        members["forward"] = _forward
    elif (name := _called(forward)) is not None:
        # The class's own forward, which finds another function under the name it calls.
        names = {**forward.__globals__, name: layouts.in_place_of(forward.__globals__[name], FUNCTIONS[name])}
        members["forward"] = FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        members["forward"].__kwdefaults__ = forward.__kwdefaults__
    else:
        members[FUNCTION_ATTRIBUTE] = property(_replaced_attribute)
    return type(own.__name__, (own,), members)


def _replaced_attribute(layer: nn.Module) -> Callable:
    own = vars(layer)[FUNCTION_ATTRIBUTE]
    return layouts.in_place_of(own, FUNCTIONS[own.__name__])


def _reduce(layer: nn.Module, protocol: int) -> tuple:
    return _empty_layer, (_own_class(layer),), layer.__getstate__()


def _empty_layer(own: type[nn.Module]) -> nn.Module:
    """Make a layer without contents, which unpickling and copying fill."""
    replacement = _with_operators(own)
    return replacement.__new__(replacement)


def _forward(
    self: nn.Module,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: list[tuple],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    if layouts.exporting():
        return self._own_class.forward(
            self,
            value,
            value_spatial_shapes,
            value_spatial_shapes_list,
            level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step,
        )
    return layouts.sample(value, value_spatial_shapes, level_start_index, sampling_locations, attention_weights)
