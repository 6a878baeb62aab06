"""The published formulation of STNet, for comparison: frames in a Python loop around the classic operator.

For every target frame the values of the other frames are gathered into a copy, sampling locations are stored, and the
classic single-frame operator is called twice: on the own frame, and on the other frames as so many more levels.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stnet.model.attention import SpatialTemporalDeformableAttention
from stnet.model.detector import Detector

Shapes = Sequence[tuple[int, int]]
Classic = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
"""value [N, S, H, D], (h, w) of the levels, locations [N, Q, H, L, P, 2], weights [N, Q, H, L, P] -> [N, Q, H * D]."""


def grid_sample_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return the classic operator over `grid_sample`, a call per level, as its authors' PyTorch version has it.

    Computed in the wider of the dtypes of value and locations, as autocast would.
    """
    batch, _, heads, width = value.shape
    dtype = torch.promote_types(value.dtype, locations.dtype)
    grids = 2 * locations.to(dtype) - 1
    samples = []
    for level, part in enumerate(value.to(dtype).split([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, width, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    flat_weights = weights.to(dtype).transpose(1, 2).flatten(0, 1).flatten(-2).unsqueeze(1)
    output = (torch.stack(samples, dim=-2).flatten(-2) * flat_weights).sum(-1)
    return output.view(batch, heads * width, -1).transpose(1, 2).to(value.dtype)


def published_attention(
    classic: Classic,
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    *,
    frame_table: Sequence[Sequence[int]],
    other_reference_points: Tensor | None = None,
) -> Tensor:
    """`spatial_temporal_deform_attn` by the published formulation; arguments and result as there."""
    if other_reference_points is None:
        other_reference_points = reference_points
    sizes = torch.tensor([(w, h) for h, w in spatial_shapes], dtype=reference_points.dtype, device=value.device)
    outputs = []
    for target, row in enumerate(frame_table):
        own_logits, others_logits = logits[:, target], other_logits[:, target].flatten(3, 4)
        weights = torch.cat([own_logits.flatten(3), others_logits.flatten(3)], dim=-1).softmax(-1)
        own_weights, others_weights = weights.split([own_logits[0, 0, 0].numel(), others_logits[0, 0, 0].numel()], -1)
        others = len(row) - 1
        own_locations = _locations(reference_points[:, target], offsets[:, target], sizes)
        output = classic(value[:, row[0]], spatial_shapes, own_locations, own_weights.view(own_logits.shape))
        if others:
            references = other_reference_points[:, target].repeat(1, 1, others, 1)
            locations = _locations(references, other_offsets[:, target].flatten(3, 4), sizes.repeat(others, 1))
            gathered = value[:, list(row[1:])].flatten(1, 2)
            shapes = list(spatial_shapes) * others
            output = output + classic(gathered, shapes, locations, others_weights.view(others_logits.shape))
        outputs.append(output)
    return torch.stack(outputs, dim=1)


def _locations(reference: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    """[B, Q, H, L, P, 2] in [0, 1] from references [B, Q, L, R], offsets [B, Q, H, L, P, 2] and (w, h) [L, 2]."""
    reference = reference[:, :, None, :, None]
    if reference.shape[-1] == 2:
        return reference + offsets / sizes[:, None]
    return reference[..., :2] + offsets / offsets.shape[-2] * reference[..., 2:] * 0.5


class PublishedAttention(nn.Module):
    """`SpatialTemporalDeformableAttention` by the published formulation, with the weights of a given one.

    Four separate projections of the query, then the frame loop.
    """

    def __init__(self, attention: SpatialTemporalDeformableAttention, classic: Classic):
        super().__init__()
        self.heads, self.levels = attention.heads, attention.levels
        self.points, self.other_frames = attention.points, attention.other_frames
        self.other_points = attention.other_points
        for name, module in attention.named_children():
            self.add_module(name, module)
        self.classic = classic

    def project_values(self, memory: Tensor) -> Tensor:
        """Return the values `[B, F, S, H, D]` of a memory `[B, F, S, d]`."""
        return self.value_proj(memory).unflatten(-1, (self.heads, -1))

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        frame_table: Sequence[Sequence[int]],
        other_reference_points: Tensor | None = None,
    ) -> Tensor:
        """Attend as the published code does: other frames copied, sampling locations in memory."""
        own = (self.heads, self.levels, self.points)
        others = (self.heads, self.other_frames, self.levels, self.other_points)
        sampled = published_attention(
            self.classic,
            value,
            spatial_shapes,
            reference_points,
            self.sampling_offsets(query).unflatten(-1, (*own, 2)),
            self.attention_weights(query).unflatten(-1, own),
            self.temporal_sampling_offsets(query).unflatten(-1, (*others, 2)),
            self.temporal_attention_weights(query).unflatten(-1, others),
            frame_table=frame_table,
            other_reference_points=other_reference_points,
        )
        return self.output_proj(sampled)


def as_published(model: Detector, classic: Classic) -> Detector:
    """Return a copy of a detector that attends by the published formulation; same weights, same results."""
    model = copy.deepcopy(model)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.attention = PublishedAttention(layer.attention, classic)
    return model
