"""Denoising queries: noised lesions that the decoder restores without matching (DN-DETR, 2022; DINO, 2023).

Every lesion of a target frame is copied several times with its box shifted and scaled and some labels swapped; the
decoder has to restore it. For each copy a second, more distant one has to be recognized as no lesion. The copies
are used in training only; noise depends on seed, step and clip alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stnet.data.clips.dataset import ClipBatch
from stnet.model.decoder import ExtraQueries
from stnet.model.detector import Detector, DetectorOutput
from stnet.training.matcher import Matches
from stnet.training.targets import FrameTargets

LABEL_NOISE = 0.25  # share of labels swapped for another class
BOX_NOISE = 0.8  # largest shift of a corner of a copy to restore, in halves of the lesion's width and height
FREQUENCIES = 8
IGNORED_LOGIT = -30.0  # a logit that costs nothing and gets no gradient


@dataclass(frozen=True, kw_only=True)
class NoisedLesions:
    """Noised copies for B x T frames, padded to M lesions a frame: query order is [copies, restore or reject, M].

    Attributes:
        boxes: cx, cy, w, h in [0, 1], `[B, T, K, 4]`.
        labels: category ids as shown to the decoder, `[B, T, K]`.
        copies: of every lesion.
    """

    boxes: Tensor
    labels: Tensor
    copies: int


def noised_lesions(
    batch: ClipBatch, targets: FrameTargets, copies: int, classes: int, seed: tuple[int, ...]
) -> NoisedLesions | None:
    """Draw the copies for a batch; None where it shows no lesion.

    Args:
        batch: names the clips, which seed their own noise.
        targets: of the batch's B x T frames.
        copies: of every lesion.
        classes: number of categories, ids 1 to `classes`.
        seed: of the run and the step.
    """
    if not any(targets.counts):
        return None
    clips, frames, most = len(batch.videos), len(batch.boxes[0]), targets.boxes.shape[1]
    boxes = np.tile(np.float32([0.5, 0.5, 1, 1]), (clips, frames, copies, 2, most, 1))
    labels = np.zeros((clips, frames, copies, 2, most), dtype=np.int64)
    for clip in range(clips):
        rng = np.random.default_rng((*seed, batch.image_ids[clip][0], len(batch.videos[clip])))
        for frame in range(frames):
            count = targets.counts[clip * frames + frame]
            if count:
                known = batch.boxes[clip][frame].cpu().numpy()
                boxes[clip, frame, :, :, :count] = _noised_boxes(known, copies, rng)
                shown = np.broadcast_to(batch.labels[clip][frame].cpu().numpy(), (copies, 2, count))
                swapped = rng.random(shown.shape) < LABEL_NOISE
                labels[clip, frame, :, :, :count] = np.where(swapped, rng.integers(1, classes + 1, shown.shape), shown)
    device = targets.boxes.device
    return NoisedLesions(
        boxes=torch.from_numpy(boxes.reshape(clips, frames, -1, 4)).to(device, non_blocking=True),
        labels=torch.from_numpy(labels.reshape(clips, frames, -1)).to(device, non_blocking=True),
        copies=copies,
    )


def _noised_boxes(boxes: np.ndarray, copies: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes `[n, 4]` to `[copies, 2, n, 4]`: corners moved by up to BOX_NOISE half sizes, or by up to twice that."""
    shape = (copies, 2, len(boxes), 4)
    size = rng.random(shape) + np.array([0.0, 1.0])[:, None, None]
    shift = size * rng.choice([-1.0, 1.0], shape) * BOX_NOISE
    half = np.tile(boxes[:, 2:] / 2, 2)
    corners = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)
    moved = np.clip(corners + shift * half, 0, 1)
    low, high = np.minimum(moved[..., :2], moved[..., 2:]), np.maximum(moved[..., :2], moved[..., 2:])
    return np.concatenate(((low + high) / 2, np.maximum(high - low, 1e-3)), axis=-1).astype(np.float32)


class TrainedModel(nn.Module):
    """A detector with what only training needs: the embedding of denoising queries.

    Args:
        detector: the model to train.
        denoising: whether denoising queries will be given.
    """

    def __init__(self, detector: Detector, denoising: bool):
        super().__init__()
        self.detector = detector
        dim = detector.config.hidden_dim
        self.label_embedding = nn.Embedding(detector.config.classes, dim) if denoising else None
        self.box_embedding = nn.Linear(8 * FREQUENCIES, dim) if denoising else None

    def forward(
        self, clips: Tensor, padding_mask: Tensor | None, targets: int, noised: NoisedLesions | None = None
    ) -> DetectorOutput:
        """As Detector.forward; the predictions for the noised lesions follow those of the learned queries."""
        return self.detector(clips, padding_mask, targets, None if noised is None else self._queries(noised))

    def _queries(self, noised: NoisedLesions) -> ExtraQueries:
        frequencies = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=noised.boxes.device)
        # Boxes are small, so widths and heights vary little: their logarithms vary more.
        coordinates = torch.cat((noised.boxes[..., :2], noised.boxes[..., 2:].log2() / 8), dim=-1)
        phase = (coordinates.unsqueeze(-1) * frequencies).flatten(-2)
        waves = torch.cat((phase.sin(), phase.cos()), dim=-1)
        return ExtraQueries(
            content=self.label_embedding(noised.labels),
            position=self.box_embedding(waves),
            boxes=noised.boxes,
            attention_mask=self._attention_mask(noised),
        )

    def _attention_mask(self, noised: NoisedLesions) -> Tensor:
        """`[Q + K, Q + K]`, True = may not attend: nobody sees the copies but those of the same group."""
        learned, extra = self.detector.config.queries, noised.boxes.shape[2]
        group = torch.arange(extra, device=noised.boxes.device) // (extra // noised.copies)
        mask = torch.zeros(learned + extra, learned + extra, dtype=torch.bool, device=group.device)
        mask[:, learned:] = True
        mask[learned:, learned:] = group[:, None] != group
        return mask


Layers = list[tuple[Tensor, Tensor]]  # logits [B, T, Q, C] and boxes [B, T, Q, 4] of each decoder layer


def split_queries(layers: Layers, learned: int) -> tuple[Layers, Layers]:
    """Predictions of the learned queries, and of those that follow them."""
    return (
        [(logits[..., :learned, :], boxes[..., :learned, :]) for logits, boxes in layers],
        [(logits[..., learned:, :], boxes[..., learned:, :]) for logits, boxes in layers],
    )


def denoising_matches(layers: Layers, targets: FrameTargets, copies: int) -> tuple[Layers, Matches]:
    """Return the known assignment of noised copies, and their predictions with those of padding made harmless.

    Args:
        layers: predictions for the K copies.
        targets: of the B x T frames.
        copies: of every lesion.
    """
    most, device = targets.boxes.shape[1], targets.boxes.device
    counts = torch.tensor(targets.counts)
    real = torch.arange(most) < counts[:, None]  # [N, M]
    frame, target = real.nonzero(as_tuple=True)
    copy = torch.arange(copies)[:, None]
    query = (copy * 2 * most + target).flatten()  # the first of each pair is the one to restore
    frame, target = (index.expand(copies, -1).flatten() for index in (frame, target))
    supervised = len(layers)
    layer = torch.arange(supervised).repeat_interleave(len(query))
    rows = torch.stack((layer, *(index.repeat(supervised) for index in (frame, query, target))))
    layer, frame, query, target = rows.to(device, non_blocking=True)
    matches = Matches(layer=layer, frame=frame, query=query, target=target)
    padding = (~real.repeat(1, 2 * copies)).to(device, non_blocking=True)  # [N, K]
    harmless = [
        (logits.masked_fill(padding.view(*logits.shape[:-1], 1), IGNORED_LOGIT), boxes) for logits, boxes in layers
    ]
    return harmless, matches
