"""Both operators for exported programs: the reference's function in few operations, which every runtime has.

Other runtimes run what is exported one operation after another, and exporters take many milliseconds for each. So all
samples of a call, whatever their level and frame, are placed and weighed together, and every cell is a row of one
table, which an embedding reads (ONNX: Gather). Row 0 holds zeros: cells that do not count are read there. Only what is
read, D numbers for each of four cells of every sample, is computed in portions.

There is no GridSample, of which some runtimes are reported to compile this operator wrongly without an error; and no
arithmetic in more than six dimensions, which OpenVINO 2026.4 gets wrong on a CPU where sizes are open.

Rows are counted in 32 bits: there may be 2^31 of them, B * F * S * H.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors
from stnet.kernels.reference import compute_dtype

PORTION = 64
"""Cells of every query and head that are in memory at once."""


def stda_portable(problem: StdaProblem, tensors: StdaTensors[Tensor]) -> Tensor:
    """Return `stda_reference(problem, tensors)`, `[B, T, Q, H * D]` in the dtype of value.

    A query and head has K = L * P + W * L * Pt samples, those of the own frame first.
    """
    value, dtype = tensors.value, compute_dtype(tensors.value)
    columns, levels, points = _samples_of(problem)
    sizes = _level_sizes(problem.spatial_shapes, value)
    size = sizes.index_select(0, torch.tensor(levels, device=value.device))

    offsets, logits = [tensors.offsets.flatten(4, 5)], [tensors.logits.flatten(4)]
    if problem.other_frames:
        offsets.append(tensors.other_offsets.flatten(4, 6))
        logits.append(tensors.other_logits.flatten(4))
    offsets, logits = _as(torch.cat(offsets, dim=4), dtype), _as(torch.cat(logits, dim=4), dtype)
    references = torch.cat([tensors.reference_points, tensors.other_reference_points], dim=3)
    indices = [level + problem.levels * (column > 0) for column, level in zip(columns, levels, strict=True)]
    references = references.index_select(3, torch.tensor(indices, device=value.device))
    references = _as(references.unsqueeze(3), dtype)  # [B, T, Q, 1, K, R]
    if problem.components == 4:
        moved = offsets / offsets.new_tensor(points).unsqueeze(-1) * references[..., 2:] * 0.5
        position = (references[..., :2] + moved) * size - 0.5
    else:
        position = references * size + offsets - 0.5
    weights = logits.softmax(-1).masked_fill(logits == -torch.inf, 0.0)  # which a row of nothing but -inf is, too

    frames = [[[[[row[column]] for column in columns]]] for row in problem.frame_table]
    frames = torch.tensor(frames, dtype=torch.int32, device=value.device)  # [T, 1, 1, K, 1]
    clips = torch.arange(problem.clips, dtype=torch.int32, device=value.device).view(-1, 1, 1, 1, 1, 1)
    output = _weighted_cells(value, clips * problem.source_frames + frames, levels, sizes, position, weights)
    output = output.view(problem.clips, problem.targets, problem.queries, problem.heads * problem.head_dim)
    return _as(output, value.dtype)


def msda_portable(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> Tensor:
    """Return `msda_reference(problem, tensors)`, `[B, Q, H * D]` in the dtype of value, of levels that are ints."""
    value, dtype = tensors.value, compute_dtype(tensors.value)
    sizes = _level_sizes(problem.spatial_shapes, value)
    position = (_as(tensors.sampling_locations, dtype) * sizes.unsqueeze(1) - 0.5).flatten(3, 4)
    levels = [level for level in range(problem.levels) for _ in range(problem.points)]
    clips = torch.arange(problem.clips, dtype=torch.int32, device=value.device).view(-1, 1, 1, 1, 1)
    weights = _as(tensors.attention_weights, dtype).flatten(3)
    output = _weighted_cells(value, clips, levels, sizes, position, weights)
    return _as(output.view(problem.clips, problem.queries, problem.heads * problem.head_dim), value.dtype)


def _samples_of(problem: StdaProblem) -> tuple[list[int], list[int], list[int]]:
    """Return for each of a query's K samples its column of the frame table, its level, and the points of its group."""
    samples = [(0, level, problem.points) for level in range(problem.levels) for _ in range(problem.points)]
    for column in range(1, 1 + problem.other_frames):
        for level in range(problem.levels):
            samples += [(column, level, problem.other_points)] * problem.other_points
    return tuple(map(list, zip(*samples, strict=True)))


def _level_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return (width, height) of each level, int32 `[L, 2]`; numbers may be symbols, which `torch.tensor` refuses."""
    numbers = [number for height, width in spatial_shapes for number in (width, height)]
    scalars = [torch.scalar_tensor(number, dtype=torch.int32, device=like.device) for number in numbers]
    return torch.stack(scalars).view(-1, 2)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x.to(dtype)`; in a program that is an operation, and a check, even where it does nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _weighted_cells(
    value: Tensor,  # [..., S, H, D]
    frames: Tensor,  # int32 [..., 1, 1, K or 1, 1]: the frame that a sample lies in, counted over all clips
    levels: list[int],  # K
    sizes: Tensor,  # int32 [L, 2] (width, height)
    position: Tensor,  # [..., H, K, 2] (x, y) in pixels of the level
    weights: Tensor,  # [..., H, K]
) -> Tensor:  # [N, 1, D], N the product of the dimensions of weights before K
    positions, heads, head_dim = value.shape[-3:]
    levels = torch.tensor(levels, device=value.device)
    width, height = sizes.index_select(0, levels).split(1, dim=-1)  # [K, 1] each
    x, y = position.split(1, dim=-1)
    columns = x.floor() + x.new_tensor([0.0, 1.0, 0.0, 1.0])  # [..., K, 4]: the cells around a sample
    lines = y.floor() + y.new_tensor([0.0, 0.0, 1.0, 1.0])
    shares = (1.0 - (x - columns).abs()) * (1.0 - (y - lines).abs()) * weights.unsqueeze(-1)
    inside = (columns >= 0) & (columns < width) & (lines >= 0) & (lines < height)
    weights = shares.masked_fill(~inside, 0.0)

    areas = sizes.prod(-1, dtype=torch.int32)
    starts = (areas.cumsum(0, dtype=torch.int32) - areas).index_select(0, levels).unsqueeze(-1)
    head = torch.arange(1, heads + 1, dtype=torch.int32, device=value.device).view(-1, 1, 1)  # row 0 is no cell
    places = (lines.int() * width + columns.int() + (frames * positions + starts)) * heads + head
    places = places.masked_fill(weights == 0, 0)

    table = torch.cat([position.new_zeros(1, head_dim), _as(value, position.dtype).reshape(-1, head_dim)])
    count = 4 * len(levels)
    weights, places = weights.reshape(-1, 1, count), places.reshape(-1, count)
    portions = zip(weights.split(PORTION, dim=-1), places.split(PORTION, dim=-1), strict=True)
    return sum(weight.bmm(F.embedding(place, table)) for weight, place in portions)
