"""Where `spatial_temporal_deform_attn` samples, and how it weighs the samples: for pictures, not for speed.

The operator itself makes no tensor of locations. Take the queries that are of interest out of its arguments first; the
values, which a call samples, are read by nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stnet.kernels.problem import StdaTensors, check_stda
from stnet.kernels.reference import pixel_positions, shared_softmax


@dataclass(frozen=True, kw_only=True)
class SamplingPoints:
    """The N = L * P + W * L * Pt samples of each query and head: those of the own frame, then those of the others.

    Attributes:
        locations: `[B, T, Q, H, N, 2]`, x, y in units of the frame, as `ms_deform_attn` takes them. Samples that are
            not finite, or a cell or more outside of their level, are 0, whatever their weight.
        weights: `[B, T, Q, H, N]`, their sum over N is 1 (0 where all logits are -inf).
        frames: int64 `[T, N]`, the source frame of each.
        levels: int64 `[N]`.
        own: bool `[N]`, whether they lie in the own frame.
    """

    locations: Tensor
    weights: Tensor
    frames: Tensor
    levels: Tensor
    own: Tensor


def sampling_points(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    *,
    frame_table: Sequence[Sequence[int]] | None = None,
    other_reference_points: Tensor | None = None,
) -> SamplingPoints:
    """Return the samples that `spatial_temporal_deform_attn`, given the same arguments, takes.

    Computed in float32 (float64 for float64 arguments), as the operator's reference does.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes, devices or frame indices that do not fit.
    """
    if other_reference_points is None:
        other_reference_points = reference_points
    tensors = StdaTensors(value, reference_points, offsets, logits, other_offsets, other_logits, other_reference_points)
    problem = check_stda(tensors, spatial_shapes, frame_table)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    table = torch.tensor(problem.frame_table, device=value.device).view(problem.targets, -1)
    groups = ((reference_points, offsets.unsqueeze(4)), (other_reference_points, other_offsets))
    weights = shared_softmax(logits.unsqueeze(4).to(dtype), other_logits.to(dtype))
    locations, frames, levels, own = [], [], [], []
    for number, (references, moved) in enumerate(groups):
        width, _, points = moved.shape[4:7]
        locations.append(_locations(problem.spatial_shapes, references.to(dtype), moved.to(dtype)))
        columns = table[:, :1] if number == 0 else table[:, 1:]
        frames.append(columns.repeat_interleave(problem.levels * points, dim=1))
        levels.append(torch.arange(problem.levels, device=value.device).repeat_interleave(points).repeat(width))
        own.append(torch.full((width * problem.levels * points,), number == 0, device=value.device))
    return SamplingPoints(
        locations=torch.cat(locations, dim=4),
        weights=torch.cat([part.flatten(4) for part in weights], dim=4),
        frames=torch.cat(frames, dim=1),
        levels=torch.cat(levels),
        own=torch.cat(own),
    )


def _locations(shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    """Return locations `[B, T, Q, H, G * L * P, 2]` of offsets `[B, T, Q, H, G, L, P, 2]`."""
    levels = []
    for level, (height, width) in enumerate(shapes):
        pixels = pixel_positions(references[:, :, :, level], offsets[..., level, :, :], height, width)
        levels.append((pixels + 0.5) / pixels.new_tensor((width, height)))
    return torch.stack(levels, dim=5).flatten(4, 6)
