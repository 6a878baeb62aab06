"""Assignment of predictions to lesions: Hungarian matching by frame and decoder layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stnet.boxes import corners, overlaps
from stnet.errors import NonFiniteError
from stnet.training.targets import FrameTargets

ALPHA = 0.25  # share of positives in the focal terms, in matching and in the loss
GAMMA = 2.0


@dataclass(frozen=True, kw_only=True)
class CostWeights:
    """Weights of the matching cost; the defaults are the published ones."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Matches:
    """P pairs: prediction (layer, frame, query) belongs to target (frame, target); `[P]` int64 each."""

    layer: Tensor
    frame: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def matching_cost(logits: Tensor, boxes: Tensor, targets: FrameTargets, weights: CostWeights) -> Tensor:
    """Cost of giving each query to each target of its frame.

    Args:
        logits: `[K, N, Q, C]`, K decoder layers, N frames.
        boxes: cx, cy, w, h in [0, 1], `[K, N, Q, 4]`.
        targets: of the N frames.
        weights: of the three terms.

    Returns:
        `[K, N, Q, M]`; columns beyond a frame's number of boxes mean nothing.
    """
    queries = logits.shape[2]
    labels = targets.labels[None, :, None, :].expand(len(logits), -1, queries, -1)
    probability = logits.gather(-1, labels).sigmoid()
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + 1e-8).log()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + 1e-8).log()
    predicted, wanted = boxes[..., :, None, :], targets.boxes[None, :, None]
    l1 = (predicted - wanted).abs().sum(-1)
    _, giou = overlaps(corners(predicted), corners(wanted))
    return weights.classification * (positive - negative) + weights.l1 * l1 - weights.giou * giou


def match(
    logits: Tensor,
    boxes: Tensor,
    targets: FrameTargets,
    weights: CostWeights | None = None,
    repeats: Sequence[int] | None = None,
) -> Matches:
    """Assign at most one query to each target, at the least total cost (DETR, ECCV 2020).

    All costs are computed where the predictions are, then moved to the host in one copy.

    Args:
        logits: `[K, N, Q, C]`, K decoder layers, N frames; float32 or float64.
        boxes: cx, cy, w, h in [0, 1], `[K, N, Q, 4]`.
        targets: of the N frames.
        weights: of the cost terms; None for the published ones.
        repeats: queries for each target in each of the K layers (one-to-many matching); None for one.

    Returns:
        The pairs, sorted by layer, frame and query. More targets than queries leave some unmatched.

    Raises:
        NonFiniteError: where a cost is NaN or infinite, which SciPy would report without saying where.
    """
    repeats = [1] * len(logits) if repeats is None else list(repeats)
    if len(repeats) != len(logits):
        raise ValueError(f"{len(repeats)} repeats for {len(logits)} decoder layers")
    pairs: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    if any(targets.counts):
        cost = matching_cost(logits.detach(), boxes.detach(), targets, weights or CostWeights()).cpu().numpy()
        _refuse_non_finite(cost, targets)
        for layer, repeat in enumerate(repeats):
            for frame, count in enumerate(targets.counts):
                if count:
                    columns = np.tile(cost[layer, frame, :, :count], repeat)
                    query, column = linear_sum_assignment(columns)
                    pairs.append((layer, frame, query, column % count))
    return _stack(pairs, logits.device)


def _refuse_non_finite(cost: np.ndarray, targets: FrameTargets) -> None:
    used = np.arange(cost.shape[-1]) < np.asarray(targets.counts)[:, None]  # [N, M]
    broken = ~np.isfinite(cost) & used[None, :, None, :]
    frames = np.flatnonzero(broken.any(axis=(0, 2, 3))).tolist()
    if frames:
        raise NonFiniteError(f"the predictions of frame {frames[0]} of the batch are not finite", frames)


def _stack(pairs: list[tuple[int, int, np.ndarray, np.ndarray]], device: torch.device) -> Matches:
    if not pairs:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Matches(layer=empty, frame=empty, query=empty, target=empty)
    rows = np.concatenate(
        [
            np.stack((np.full(len(query), layer), np.full(len(query), frame), query, target))
            for layer, frame, query, target in pairs
        ],
        axis=1,
    )
    layer, frame, query, target = torch.from_numpy(rows.astype(np.int64)).to(device, non_blocking=True)
    return Matches(layer=layer, frame=frame, query=query, target=target)
