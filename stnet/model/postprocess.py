"""From logits and boxes to scored detections in pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from stnet.errors import StnetError
from stnet.model.operating_points import OperatingPoints


@dataclass(frozen=True)
class Detections:
    """Detections of one frame, best first."""

    boxes: Tensor  # float32 [N, 4] x0 y0 x1 y1 in pixels of the original frame, unclipped
    scores: Tensor  # float32 [N] in [0, 1]
    labels: Tensor  # int64 [N] category ids; 1 is the first class name

    def __repr__(self) -> str:
        best = f", best score {float(self.scores[0]):.3g}" if len(self.scores) else ""
        return f"Detections({len(self.scores)}{best})"

    def above(self, threshold: float) -> "Detections":
        """Return the detections with at least this score."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


def check_finite(logits: Tensor, boxes: Tensor, name: str, dtype: str, option: str = "--dtype") -> None:
    """Require that a model has found numbers.

    Args:
        logits: its output, of any shape.
        boxes: the same.
        name: of the video, for the message.
        dtype: what it computed in, for example "float16".
        option: of the command line that chooses the dtype.

    Raises:
        StnetError: it has not, which overflows of 16-bit types and broken weights cause.
    """
    if not (logits.isfinite().all() and boxes.isfinite().all()):
        remedy = "check the weights" if dtype == "float32" else f"use {option} float32, or check the weights"
        raise StnetError(f"{name}: the model gives values that are not finite in {dtype}; {remedy}")


def class_scores(logits: Tensor, points: OperatingPoints | None) -> Tensor:
    """Return the scores of logits `[..., classes]` in [0, 1], as people see them.

    Args:
        logits: of the classes that annotations use, without the first one.
        points: calibrate them so; None leaves them as they are.
    """
    return logits.sigmoid() if points is None else points.calibrated_logits(logits)


def select_detections(
    logits: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    top: int = 100,
    keep_class0: bool = False,
    duplicate_iou: float = 1.0,
    points: OperatingPoints | None = None,
) -> list[Detections]:
    """Return the `top` best (query, class) pairs of each target frame.

    A query's classes share its box, so duplicates are told by queries: with `duplicate_iou` below 1, queries whose
    box overlaps that of a query with a better best score by more than this IoU are left out, with all their classes.

    Args:
        logits: `[T, Q, classes]`.
        boxes: `[T, Q, 4]` cx cy w h in [0, 1].
        height: of the original frame in pixels.
        width: of the original frame in pixels.
        top: pairs of each frame.
        keep_class0: keep the class that no annotation uses, as the published code does.
        duplicate_iou: above 0; 1 keeps all, as the published code does.
        points: calibrate the scores so. Which queries are duplicates is told by the model's own scores, as in the
            evaluation that the calibration was chosen by.

    Returns:
        One `Detections` per target frame, on the device of the logits.
    """
    first_class = 0 if keep_class0 else 1
    logits = logits.float()[..., first_class:]
    scores = class_scores(logits, points)
    classes = scores.shape[-1]
    centre, size = boxes.float().split(2, dim=-1)
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    duplicates = _duplicates(corners, logits.sigmoid().amax(-1), duplicate_iou) if duplicate_iou < 1 else None
    if duplicates is not None:
        scores = scores.masked_fill(duplicates.unsqueeze(-1), -1.0)
    scores, index = scores.flatten(1).topk(min(top, scores[0].numel()), dim=1)
    labels = index % classes + first_class
    corners = corners.gather(1, (index // classes).unsqueeze(-1).expand(-1, -1, 4))
    corners = corners * corners.new_tensor([width, height, width, height])
    found = [Detections(*frame) for frame in zip(corners, scores, labels, strict=True)]
    return [frame.above(0.0) for frame in found] if duplicate_iou < 1 else found


def _duplicates(corners: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Which queries `[T, Q]` overlap a better one of their frame, that is kept, by more than `iou`."""
    frames, queries = scores.shape
    frame = torch.arange(frames, device=scores.device).repeat_interleave(queries)
    kept = batched_nms(corners.flatten(0, 1), scores.flatten(), frame, iou)
    dropped = torch.ones(frames * queries, dtype=torch.bool, device=scores.device)
    dropped[kept] = False
    return dropped.view(frames, queries)
