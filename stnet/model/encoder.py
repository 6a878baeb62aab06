"""STNet's encoder: every position of every frame attends to its own and to the other frames of the clip."""

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stnet.model.attention import SpatialTemporalDeformableAttention
from stnet.model.config import ModelConfig
from stnet.model.geometry import ClipGeometry


def all_frame_table(frames: int, targets: list[int] | None = None) -> tuple[tuple[int, ...], ...]:
    """Rows (own frame, the other frames of the clip in ascending order) for each target frame; default: all."""
    targets = list(range(frames)) if targets is None else targets
    return tuple((t, *(f for f in range(frames) if f != t)) for t in targets)


class FeedForward(nn.Module):
    """Two linear layers with ReLU, a residual connection and LayerNorm after it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_dim, config.feedforward_dim)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(config.feedforward_dim, config.hidden_dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[..., d]` of features `[..., d]`."""
        hidden = self.dropout(self.relu(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(hidden)))


class EncoderLayer(nn.Module):
    """STDA and a feed-forward part, each with residual connection and LayerNorm after it."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.attention = SpatialTemporalDeformableAttention(
            config.hidden_dim,
            config.heads,
            config.levels,
            config.encoder_points,
            config.frames - 1,
            config.encoder_other_points,
            backend,
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config)

    def forward(self, x: Tensor, position: Tensor, geometry: ClipGeometry) -> Tensor:
        """Features [B, F, S, d] to features [B, F, S, d]; `position` [B or 1, 1, S, d] is added to the queries."""
        attended = self.attention(*self.attention_arguments(x, position, geometry))
        return self.feedforward(self.norm(x + self.dropout(attended)))

    def attention_arguments(self, x: Tensor, position: Tensor, geometry: ClipGeometry) -> tuple[Any, ...]:
        """Return what the layer gives to its attention's `forward`."""
        references, other_references = self.reference_points(x, geometry)
        return (
            x + position,
            references,
            self.attention.project_values(x),
            geometry.spatial_shapes,
            all_frame_table(x.shape[1]),
            other_references,
        )

    def reference_points(self, x: Tensor, geometry: ClipGeometry) -> tuple[Tensor, Tensor]:
        """Return those in the own and in the other frames for the positions of `x`, `[B, F, S, L, 2]` each."""
        references = geometry.reference_points[:, None].expand(*x.shape[:2], -1, -1, -1)
        # The published model scales the other frames' reference points by the valid ratio of level 0 on all levels.
        return references, references[:, :, :, :1].expand_as(references)


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, backend) for _ in range(config.encoder_layers))

    def forward(self, x: Tensor, position: Tensor, geometry: ClipGeometry, recompute: bool = False) -> Tensor:
        """Return the memory `[B, F, S, d]`.

        Args:
            x: features `[B, F, S, d]`.
            position: `[B or 1, 1, S, d]`, added to the queries.
            geometry: of the clips' frames.
            recompute: keep only the layers' inputs for the backward pass and recompute the rest there.
        """
        for layer in self.layers:
            x = (
                checkpoint(layer, x, position, geometry, use_reentrant=False)
                if recompute
                else layer(x, position, geometry)
            )
        return x
