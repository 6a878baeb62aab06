"""STNet's decoder: object queries of each target frame look into all frames of the clip and refine their boxes."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stnet.model.attention import SpatialTemporalDeformableAttention
from stnet.model.config import ModelConfig
from stnet.model.encoder import FeedForward, all_frame_table
from stnet.model.geometry import ClipGeometry

CLASS_PRIOR = 0.01  # score of every class before training (focal loss, Lin et al., 2017)


@dataclass(frozen=True)
class LayerOutput:
    """Predictions of one decoder layer."""

    logits: Tensor  # [B, T, Q, classes]
    boxes: Tensor  # [B, T, Q, 4] cx cy w h in [0, 1] of the unpadded image


@dataclass(frozen=True)
class ExtraQueries:
    """Queries beside the learned ones, such as denoising queries during training; they come after them.

    K is their number. `attention_mask` [B * T * heads or 1, Q + K, Q + K] is True where a query may NOT attend.
    """

    content: Tensor  # [B, T, K, d]
    position: Tensor  # [B, T, K, d]
    boxes: Tensor  # [B, T, K, 4] cx cy w h in [0, 1]: where they start
    attention_mask: Tensor


def inverse_sigmoid(x: Tensor) -> Tensor:
    """log(x / (1 - x)) with x clamped to [0, 1] and both terms floored at 1e-5."""
    x = x.clamp(0.0, 1.0)
    return torch.log(x.clamp(min=1e-5) / (1.0 - x).clamp(min=1e-5))


def _full_precision(parameter: Tensor) -> AbstractContextManager:
    """Leaves autocast, if it is on: 16-bit boxes are off by up to a pixel of 512."""
    device = parameter.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # which knows no autocast, not even to be off
        return nullcontext()
    return torch.autocast(device, enabled=False)


class BoxHead(nn.Module):
    """Three linear layers with ReLU in between: features [..., d] to box logits [..., 4]."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return box logits `[..., 4]` of features `[..., d]`."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class DecoderLayer(nn.Module):
    """Self-attention among the queries of a frame, STDA into the memory, feed-forward; LayerNorm after each."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(
            config.hidden_dim, config.heads, dropout=config.dropout, batch_first=True
        )
        nn.init.xavier_uniform_(self.self_attention.out_proj.weight)
        self.self_norm = nn.LayerNorm(config.hidden_dim)
        self.attention = SpatialTemporalDeformableAttention(
            config.hidden_dim,
            config.heads,
            config.levels,
            config.decoder_points,
            config.frames - 1,
            config.decoder_other_points,
            backend,
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: tuple[tuple[int, int], ...],
        frame_table: tuple[tuple[int, ...], ...],
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Query contents [B, T, Q, d] to contents [B, T, Q, d]; arguments as in `Decoder`."""
        query = (content + position).flatten(0, 1)
        attended, _ = self.self_attention(
            query, query, content.flatten(0, 1), attn_mask=attention_mask, need_weights=False
        )
        content = self.self_norm(content + self.dropout(attended.view_as(content)))
        sampled = self.attention(content + position, reference_points, value, spatial_shapes, frame_table)
        return self.feedforward(self.norm(content + self.dropout(sampled)))


class Decoder(nn.Module):
    """Decoder layers with their class and box heads, and the learned object queries."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        dim = config.hidden_dim
        self.box_refine = config.box_refine
        self.layers = nn.ModuleList(DecoderLayer(config, backend) for _ in range(config.decoder_layers))
        self.query_embed = nn.Embedding(config.queries, 2 * dim)  # position half, then content half
        self.reference_points = nn.Linear(dim, 2)
        heads = config.decoder_layers if config.box_refine else 1
        self.class_heads = nn.ModuleList(nn.Linear(dim, config.classes) for _ in range(heads))
        self.box_heads = nn.ModuleList(BoxHead(dim) for _ in range(heads))
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        for head in self.class_heads:
            nn.init.constant_(head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
        nn.init.constant_(self.box_heads[0].layers[-1].bias[2:], -2.0)

    def forward(
        self,
        memory: Tensor,
        geometry: ClipGeometry,
        targets: list[int],
        extra: ExtraQueries | None = None,
        all_layers: bool = False,
        recompute: bool = False,
    ) -> list[LayerOutput]:
        """Detect in the target frames.

        Args:
            memory: `[B, F, S, d]` from the encoder.
            geometry: of the clips' frames.
            targets: clip positions of the T target frames.
            extra: queries beside the learned ones.
            all_layers: return the predictions of every layer (for auxiliary losses), else of the last alone.
            recompute: keep only the layers' inputs for the backward pass and recompute the rest there.
        """
        clips, frames = memory.shape[:2]
        position, content = self.query_embed.weight.split(memory.shape[-1], dim=-1)
        with _full_precision(position):
            reference = self.reference_points(position).sigmoid()
        # The box logits a layer's head adds to; width and height start from the head alone.
        start = F.pad(inverse_sigmoid(reference), (0, 2))
        position, content, reference, start = (
            x.expand(clips, len(targets), -1, -1) for x in (position, content, reference, start)
        )
        attention_mask = None
        if extra is not None:
            position = torch.cat([position, extra.position], dim=2)
            content = torch.cat([content, extra.content], dim=2)
            reference = torch.cat([reference, extra.boxes[..., :2].to(reference.dtype)], dim=2)
            start = torch.cat([start, inverse_sigmoid(extra.boxes).to(start.dtype)], dim=2)
            attention_mask = extra.attention_mask

        frame_table = all_frame_table(frames, targets)
        ratios = geometry.valid_ratios[:, None, None]  # [B, 1, 1, L, 2]
        outputs = []
        for index, (layer, value) in enumerate(zip(self.layers, self._project_values(memory), strict=True)):
            scale = torch.cat([ratios, ratios], dim=-1)[..., : reference.shape[-1]]
            references = reference.to(scale.dtype).unsqueeze(3) * scale
            arguments = (content, position, references, value, geometry.spatial_shapes, frame_table, attention_mask)
            content = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
            last = index == len(self.layers) - 1
            if not (self.box_refine or all_layers or last):
                continue
            head = index if self.box_refine else 0
            with _full_precision(position):
                found = content.to(position.dtype)
                boxes = (self.box_heads[head](found) + start).sigmoid()
                if all_layers or last:
                    outputs.append(LayerOutput(self.class_heads[head](found), boxes))
            if self.box_refine:
                reference = boxes.detach()
                start = inverse_sigmoid(reference)
        return outputs

    def _project_values(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Return the values [B, F, S, H, D] of every layer by one matrix product, since all layers share the memory."""
        attentions = [layer.attention for layer in self.layers]
        weight = torch.cat([attention.value_proj.weight for attention in attentions])
        bias = torch.cat([attention.value_proj.bias for attention in attentions])
        values = F.linear(memory, weight, bias).unflatten(-1, (len(attentions), attentions[0].heads, -1))
        return values.unbind(-3)
