"""Spatial-temporal deformable attention (STDA) as a module: the projections around the operator."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stnet.kernels import SamplingPoints, sampling_points, spatial_temporal_deform_attn


class SpatialTemporalDeformableAttention(nn.Module):
    """Multi-head attention that samples a few points in the own and in the other frames of a clip (STNet, section 2).

    Args:
        points: samples per level and head in the own frame.
        other_frames: W, other frames attended to.
        other_points: samples per level and head in each of them.
        backend: of the operator, as `spatial_temporal_deform_attn` takes it.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        other_frames: int,
        other_points: int,
        backend: str = "auto",
    ):
        super().__init__()
        self.heads, self.levels = heads, levels
        self.points, self.other_frames, self.other_points = points, other_frames, other_points
        self.backend = backend
        own, others = heads * levels * points, heads * other_frames * levels * other_points
        self.sampling_offsets = nn.Linear(dim, own * 2)
        self.attention_weights = nn.Linear(dim, own)
        self.temporal_sampling_offsets = nn.Linear(dim, others * 2)
        self.temporal_attention_weights = nn.Linear(dim, others)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as a star: point p of head h lies p + 1 pixels out in the direction of the head."""
        angle = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        for linear, groups, points in (
            (self.sampling_offsets, self.levels, self.points),
            (self.temporal_sampling_offsets, self.other_frames * self.levels, self.other_points),
        ):
            star = direction[:, None, None] * torch.arange(1, points + 1)[:, None]
            nn.init.zeros_(linear.weight)
            with torch.no_grad():
                linear.bias.copy_(star.expand(-1, groups, -1, -1).flatten())
        for linear in (self.attention_weights, self.temporal_attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def project_values(self, memory: Tensor) -> Tensor:
        """Features [B, F, S, d] to the values [B, F, S, H, D] that are sampled."""
        return self.value_proj(memory).unflatten(-1, (self.heads, -1))

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        frame_table: Sequence[Sequence[int]],
        other_reference_points: Tensor | None = None,
    ) -> Tensor:
        """Attend from every query to the frames its target is given in the frame table.

        Args:
            query: `[B, T, Q, d]`.
            reference_points: `[B, T, Q, L, 2]` or `[B, T, Q, L, 4]`, float32, in units of the padded frame.
            value: `[B, F, S, H, D]` from `project_values`.
            spatial_shapes: height and width of the L levels.
            frame_table: T rows of own and other source frames.
            other_reference_points: like `reference_points`, for the other frames; default: the same.

        Returns:
            [B, T, Q, d].
        """
        offsets, logits, other_offsets, other_logits = self._project_queries(query)
        sampled = spatial_temporal_deform_attn(
            value,
            spatial_shapes,
            reference_points,
            offsets,
            logits,
            other_offsets,
            other_logits,
            frame_table=frame_table,
            other_reference_points=other_reference_points,
            backend=self.backend,
        )
        return self.output_proj(sampled)

    def sampling_points(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        frame_table: Sequence[Sequence[int]],
        other_reference_points: Tensor | None = None,
    ) -> SamplingPoints:
        """Return where `forward` samples, given the same arguments, and how it weighs the samples."""
        return sampling_points(
            value,
            spatial_shapes,
            reference_points,
            *self._project_queries(query),
            frame_table=frame_table,
            other_reference_points=other_reference_points,
        )

    def _project_queries(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One matrix product for the four projections; the operator reads its slices in place."""
        linears = (
            self.sampling_offsets,
            self.attention_weights,
            self.temporal_sampling_offsets,
            self.temporal_attention_weights,
        )
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        projected = F.linear(query, weight, bias).split([linear.out_features for linear in linears], dim=-1)
        own = (self.heads, self.levels, self.points)
        others = (self.heads, self.other_frames, self.levels, self.other_points)
        shapes = ((*own, 2), own, (*others, 2), others)
        return tuple(part.unflatten(-1, shape) for part, shape in zip(projected, shapes, strict=True))
