"""The training loss: focal classification, L1 and generalized IoU, each normalized frame by frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stnet.boxes import corners, overlaps
from stnet.choices import CLASS_LOSSES
from stnet.training.matcher import ALPHA, GAMMA, CostWeights, Matches, match
from stnet.training.targets import FrameTargets

TERMS = ("classification", "l1", "giou")
"""Terms of the loss: each has a weight in `LossWeights`, a tensor in `FrameLosses` and a column in `steps.csv`."""

QUALITY_GAMMA = 1.5


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms; the defaults are the published ones."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True, kw_only=True)
class FrameLosses:
    """Unweighted losses per decoder layer and frame, each `[K, N]`; the last layer is the model's result.

    Frames that nobody annotated hold zeros.
    """

    classification: Tensor
    l1: Tensor
    giou: Tensor
    matches: Matches

    def weighted(self, weights: LossWeights) -> Tensor:
        """Return the weighted sum of the terms, `[K, N]`."""
        return sum(getattr(weights, name) * getattr(self, name) for name in TERMS)


class Criterion:
    """Losses of every target frame of a batch.

    Args:
        class_loss: "focal" (published: one-hot targets) or "quality" (the target of a matched query is its
            IoU with the lesion to the power 1.5, so that scores rank boxes; matchability-aware loss of DEIM,
            CVPR 2025).
        weights: of the loss terms.
        cost: weights of the matching cost.
        auxiliary_repeats: queries per lesion in the layers before the last (1: one-to-one).
    """

    def __init__(
        self,
        *,
        class_loss: str = "focal",
        weights: LossWeights | None = None,
        cost: CostWeights | None = None,
        auxiliary_repeats: int = 1,
    ):
        if class_loss not in CLASS_LOSSES:
            raise ValueError(f"class_loss {class_loss!r} is none of {', '.join(CLASS_LOSSES)}")
        if auxiliary_repeats < 1:
            raise ValueError(f"auxiliary_repeats {auxiliary_repeats} is below 1")
        self.class_loss = class_loss
        self.weights = weights or LossWeights()
        self.cost = cost or CostWeights()
        self.auxiliary_repeats = auxiliary_repeats

    def __call__(
        self, layers: Sequence[tuple[Tensor, Tensor]], targets: FrameTargets, matches: Matches | None = None
    ) -> FrameLosses:
        """Match and compute the losses, in float32 at least.

        Args:
            layers: (logits `[..., Q, C]`, boxes `[..., Q, 4]`) of the K supervised decoder layers, in order;
                leading dimensions, equal in all, flatten to N frames.
            targets: of the N frames.
            matches: pairs to use instead of matching; queries that are matched by construction have them.

        Raises:
            NonFiniteError: where predictions are NaN or infinite.
            ValueError: where predictions and targets differ in the number of frames.
        """
        logits = torch.stack([_frames(layer[0]) for layer in layers])  # [K, N, Q, C]
        boxes = torch.stack([_frames(layer[1]) for layer in layers])  # [K, N, Q, 4]
        if logits.shape[1] != len(targets.counts):
            raise ValueError(f"predictions of {logits.shape[1]} frames, targets of {len(targets.counts)}")
        if matches is not None:
            pairs = torch.bincount(matches.layer * logits.shape[1] + matches.frame, minlength=boxes[..., 0, 0].numel())
            return self._losses(logits, boxes, targets, matches, pairs.view(logits.shape[:2]))
        repeats = [self.auxiliary_repeats] * (len(layers) - 1) + [1]
        matches = match(logits, boxes, targets, self.cost, repeats)
        wanted = torch.tensor(repeats)[:, None] * torch.tensor(targets.counts)
        return self._losses(logits, boxes, targets, matches, wanted.to(logits.device))

    def total(self, losses: FrameLosses, frames: float | Tensor) -> Tensor:
        """Return the loss to differentiate: the weighted sum over layers and frames, divided by `frames`.

        Args:
            losses: of the frames of one pass.
            frames: the annotated target frames of the whole global batch, over all processes and accumulation steps,
                so that neither changes the loss.
        """
        return losses.weighted(self.weights).sum() / frames

    def _losses(
        self, logits: Tensor, boxes: Tensor, targets: FrameTargets, matches: Matches, pairs: Tensor
    ) -> FrameLosses:
        layers, frames = logits.shape[:2]
        place = matches.layer * frames + matches.frame
        divisor = pairs.clamp(min=1).to(logits.dtype)

        predicted = boxes[matches.layer, matches.frame, matches.query]  # [P, 4]
        wanted = targets.boxes[matches.frame, matches.target].to(boxes.dtype)
        iou, giou = overlaps(corners(predicted), corners(wanted))

        def per_frame(values: Tensor) -> Tensor:
            summed = values.new_zeros(layers * frames).index_add(0, place, values)
            return summed.view(layers, frames) / divisor

        classification = self._classification(logits, targets, matches, iou.detach())
        return FrameLosses(
            classification=classification.sum((-1, -2)) * targets.annotated / divisor,
            l1=per_frame((predicted - wanted).abs().sum(-1)),
            giou=per_frame(1 - giou),
            matches=matches,
        )

    def _classification(self, logits: Tensor, targets: FrameTargets, matches: Matches, quality: Tensor) -> Tensor:
        """Loss of every logit, `[K, N, Q, C]`."""
        label = targets.labels[matches.frame, matches.target]
        place = (matches.layer, matches.frame, matches.query, label)
        probability = logits.sigmoid()
        if self.class_loss == "quality":
            # Negatives are weighted by their own probability, so easy ones vanish; positives always weigh 1.
            wanted = torch.zeros_like(logits).index_put(place, quality.clamp(0, 1) ** QUALITY_GAMMA)
            positive = torch.zeros_like(logits).index_put(place, torch.ones_like(quality))
            weight = torch.where(positive > 0, 1.0, probability.detach() ** QUALITY_GAMMA)
            return weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        wanted = torch.zeros_like(logits).index_put(place, torch.ones_like(quality))
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        miss = wanted * (1 - probability) + (1 - wanted) * probability
        return (wanted * ALPHA + (1 - wanted) * (1 - ALPHA)) * miss**GAMMA * entropy


def _frames(predictions: Tensor) -> Tensor:
    """`[..., Q, X]` to `[N, Q, X]`, 16-bit numbers to float32."""
    flat = predictions.reshape(-1, *predictions.shape[-2:])
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
