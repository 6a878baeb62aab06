"""The operators in mmcv, with or without its compiled operators: mmdet, mmdet3d, BEVFormer, Co-DETR and their forks.

    import stnet.integrations.mmcv; stnet.integrations.mmcv.install()

With `mmcv-lite` (or an `mmcv._ext` that does not load) a stand-in takes the place of `mmcv._ext`: deformable attention
by `stnet.kernels`, `nms`, `roi_align` and the sigmoid focal loss by torchvision; every other operator can be imported
and raises when it is called. With a compiled `mmcv._ext` only deformable attention is replaced. mmcv's own function
for the CPU is replaced in both cases, wherever loaded code refers to it. mmcv may be imported earlier; code that needs
`mmcv.ops` is imported afterwards where there are no compiled operators, because its import fails without them.
"""

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import one_hot

from stnet.integrations import functions, layouts, msda
from stnet.integrations.stand_in import StandIn, installed

NAME = "mmcv._ext"
ON_THE_CPU = ("mmcv.ops.multi_scale_deform_attn", "multi_scale_deformable_attn_pytorch")


def install() -> ModuleType:
    """Make mmcv's deformable attention use the operators; calling it again changes nothing.

    Returns:
        `mmcv._ext`.

    Raises:
        ModuleNotFoundError: Neither mmcv nor mmcv-lite is installed.
    """
    importlib.import_module("mmcv")
    extension = _compiled()
    if extension is None:
        if installed(NAME) is None:
            StandIn(NAME, FUNCTIONS, missing=_missing).install()
        extension = importlib.import_module(NAME)
    elif not hasattr(extension, "__stnet__"):
        extension.__stnet__ = {name: getattr(extension, name) for name in DEFORMABLE_ATTENTION}
        vars(extension).update(DEFORMABLE_ATTENTION)
    functions.replace(*ON_THE_CPU, layouts.by_level)
    return extension


def uninstall() -> None:
    """Undo `install`; without compiled operators code imported from now on finds no `mmcv._ext`."""
    functions.restore(*ON_THE_CPU)
    if (stand_in := installed(NAME)) is not None:
        stand_in.uninstall()
    elif (extension := _compiled()) is not None and hasattr(extension, "__stnet__"):
        vars(extension).update(vars(extension).pop("__stnet__"))


def _compiled() -> ModuleType | None:
    """Return the compiled operators where they can be loaded."""
    if installed(NAME) is not None:
        return None
    try:
        return importlib.import_module(NAME)
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        warnings.warn(f"{NAME} does not load ({error}); a stand-in takes its place", stacklevel=3)
        return None


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Return the output of multi-scale deformable attention; see `stnet.integrations.msda`."""
    return msda.ms_deform_attn_forward(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
    )


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int = 64,
) -> None:
    """Write the three gradients into the tensors given for them, as mmcv's operator does."""
    gradients = msda.ms_deform_attn_backward(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output, im2col_step
    )
    for place, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        place.copy_(gradient)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes `[N, 4]` that stay, best first; `offset` 1 counts x1 - x0 + 1 pixels."""
    boxes = boxes.float() + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in float32: at a threshold of 0.4 an overlap of 0.4 stays, which is more than 0.4 in float64.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32, device="cpu").item()
    return torchvision.ops.nms(boxes, scores.float(), threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average-pooled regions `[N, C, aligned_height, aligned_width]` into `output`."""
    if pool_mode == 0:
        raise NotImplementedError(_not_here("roi_align with pool_mode='max'"))
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the feature map into `grad_input`."""
    size = (aligned_height, aligned_width)
    with torch.enable_grad():
        feature_map = torch.zeros_like(grad_input, requires_grad=True)
        output = torchvision.ops.roi_align(feature_map, rois, size, spatial_scale, sampling_ratio, aligned)
    grad_input.copy_(*torch.autograd.grad(output, feature_map, grad_output))


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of logits `[N, C]` into `output`; a target of C is the background."""
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of every loss by its logit into `grad_input`."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha).sum()
    grad_input.copy_(*torch.autograd.grad(loss, logits))


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = logits.shape[1]
    wanted = one_hot(target, classes + 1)[:, :classes].to(logits.dtype)
    loss = torchvision.ops.sigmoid_focal_loss(logits, wanted, alpha, gamma)
    if weight.numel() == 0:
        return loss
    return loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]


def _missing(name: str) -> Callable:
    if name.startswith("__"):
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

    def operator(*args, **kwargs):
        raise NotImplementedError(_not_here(name))

    operator.__name__ = name
    return operator


def _not_here(name: str) -> str:
    return (
        f"mmcv's operator {name} is compiled code, which is not installed; stnet stands in for "
        f"{', '.join(FUNCTIONS)} only. `pip install mmcv` where a wheel fits your PyTorch"
    )


DEFORMABLE_ATTENTION = {f.__name__: f for f in (ms_deform_attn_forward, ms_deform_attn_backward)}
FUNCTIONS = DEFORMABLE_ATTENTION | {
    f.__name__: f
    for f in (nms, roi_align_forward, roi_align_backward, sigmoid_focal_loss_forward, sigmoid_focal_loss_backward)
}
