"""Geometry of boxes, broadcasting over leading dimensions."""

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """Turn boxes cx, cy, w, h `[..., 4]` into x0, y0, x1, y1 `[..., 4]`, same unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection over union, and its generalized form (Rezatofighi et al., CVPR 2019).

    Args:
        first: x0, y0, x1, y1 `[..., 4]`, x0 <= x1 and y0 <= y1.
        second: likewise; leading dimensions broadcast.

    Returns:
        IoU in [0, 1] and generalized IoU in [-1, 1], both `[...]`. Two boxes without area overlap by 0.
    """
    tiny = torch.finfo(first.dtype).tiny
    upper_left = torch.maximum(first[..., :2], second[..., :2])
    lower_right = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (lower_right - upper_left).clamp(min=0).prod(-1)
    union = _area(first) + _area(second) - intersection
    iou = intersection / union.clamp(min=tiny)
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull_area = hull.prod(-1)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=tiny)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
