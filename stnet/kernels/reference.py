"""The specification of both operators: plain differentiable PyTorch (`grid_sample`) on any device.

A sample at pixel position (x, y) of a level with w x h cells interpolates the four cells around it,

    sample(x, y) = sum over cells (i, j) of  max(0, 1 - |x - i|) * max(0, 1 - |y - j|) * value[j, i],

where cells outside the level count as zero and cell centres have integer positions. A sample whose position is not
finite, or a cell or more away from the level, is zero and passes no gradient on; nor does a value reach the output
through a corner of weight zero, were it infinite. A sample with logit -inf is excluded, and a row of only -inf gives
zero. float32 and float64 are computed natively, 16-bit types in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stnet.kernels.derivatives import forward_mode_is_open, values_are_readable
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors, level_starts, read_levels


def stda_reference(problem: StdaProblem, tensors: StdaTensors[Tensor]) -> Tensor:
    """Spatial-temporal deformable attention (STNet, MICCAI 2023): [B, T, Q, H * D] in the dtype of value.

    The own frame is sampled like a group of one frame, the others like a group of W; one softmax spans both.
    """
    output_dtype, dtype = tensors.value.dtype, compute_dtype(tensors.value)
    value = tensors.value.to(dtype)
    offsets, logits = tensors.offsets.unsqueeze(4), tensors.logits.unsqueeze(4)
    own_weights, other_weights = shared_softmax(logits.to(dtype), tensors.other_logits.to(dtype))
    own_table = tuple(row[:1] for row in problem.frame_table)
    other_table = tuple(row[1:] for row in problem.frame_table)
    output = value.new_zeros(problem.clips, problem.targets, problem.queries, problem.heads, problem.head_dim)
    for table, references, group_offsets, group_logits, weights in (
        (own_table, tensors.reference_points, offsets, logits, own_weights),
        (other_table, *tensors.others, other_weights),
    ):
        if weights.numel() == 0:
            continue
        uses = _FrameUses.of(table, value.device)
        frames = value if uses.every(problem.source_frames) else value[:, uses.sources]
        for level, (start, (height, width)) in enumerate(
            zip(problem.level_starts, problem.spatial_shapes, strict=True)
        ):
            reference = references[:, :, :, level].to(dtype)
            position = pixel_positions(reference, group_offsets[..., level, :, :].to(dtype), height, width)
            position = position.masked_fill((group_logits[..., level, :] == -torch.inf)[..., None], torch.nan)
            cells = frames[:, :, start : start + height * width].permute(0, 1, 3, 4, 2).flatten(0, 2)
            samples = uses.by_source(position), uses.by_source(weights[..., level, :])
            sums = _weighted_samples(cells, height, width, 0, *samples)
            output = output + uses.by_target(sums, output.shape)
    return output.flatten(3).to(output_dtype)


def msda_reference(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3): [B, Q, H * D] in the dtype of value.

    The weights are used as they are: no softmax. Levels may overlap, stand in any order, and leave positions out. Cells
    that a level given by tensors claims beyond the end of value count as zero where they cannot be read beforehand.

    Raises:
        ValueError: levels that do not lie within the positions of value, where they can be read.
    """
    value, sampling_locations, attention_weights, shapes, starts = tensors
    dtype = compute_dtype(value)
    clips, heads = problem.clips, problem.heads
    if problem.spatial_shapes is not None:
        shapes, starts = problem.spatial_shapes, level_starts(problem.spatial_shapes)
    elif values_are_readable(shapes):
        shapes, starts = read_levels(problem, tensors)
    output = value.new_zeros(clips * heads, problem.head_dim, problem.queries, dtype=dtype)
    cells = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)
    for level in range(problem.levels):
        height, width, start = *shapes[level], starts[level]
        location = sampling_locations[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1)
        x, y = location.unbind(-1)
        position = torch.stack([x * width, y * height], dim=-1) - 0.5
        weight = attention_weights[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1)
        output = output + _weighted_samples(cells, height, width, start, position, weight)
    return output.unflatten(0, (clips, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def compute_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype of all arithmetic for values of this dtype."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class _FrameUses:
    """A frame table read the other way round: which (target, column) pairs sample each source frame.

    It lets every source frame be sampled in place for all targets at once, instead of copying its values to each.
    Source frames used less often than the others are padded with pair 0; `real` is False there.
    """

    sources: Tensor  # [N] source frames in use, ascending
    pairs: Tensor  # [N * uses] index into the flattened (target, column) pairs
    real: Tensor  # [N * uses] bool
    slots: Tensor  # [T * columns] index of each pair in `pairs`

    @classmethod
    def of(cls, table: tuple[tuple[int, ...], ...], device: torch.device) -> "_FrameUses":
        columns = len(table[0])
        uses: dict[int, list[int]] = {}
        for t, row in enumerate(table):
            for column, frame in enumerate(row):
                uses.setdefault(frame, []).append(t * columns + column)
        most = max(len(pairs) for pairs in uses.values())
        sources = sorted(uses)
        padded = [pair for frame in sources for pair in uses[frame] + [-1] * (most - len(uses[frame]))]
        slots = [padded.index(pair) for pair in range(len(table) * columns)]
        sources, pairs, slots = (torch.tensor(x, device=device) for x in (sources, padded, slots))
        return cls(sources, pairs.clamp(min=0), pairs >= 0, slots)

    def every(self, source_frames: int) -> bool:
        return len(self.sources) == source_frames

    def by_source(self, x: Tensor) -> Tensor:
        """[B, T, Q, H, G, P, ...] to [B * N * H, uses * Q, P, ...]; padded pairs become NaN."""
        x = x.movedim(4, 2).flatten(1, 2)[:, self.pairs]  # [B, N * uses, Q, H, P, ...]
        x = x.masked_fill(~self.real.view(-1, *[1] * (x.dim() - 2)), torch.nan)
        x = x.unflatten(1, (len(self.sources), -1)).movedim(4, 2)  # [B, N, H, uses, Q, P, ...]
        return x.flatten(0, 2).flatten(1, 2)

    def by_target(self, sums: Tensor, shape: torch.Size) -> Tensor:
        """[B * N * H, D, uses * Q], summed over the columns, to the shape of the output [B, T, Q, H, D]."""
        clips, targets, queries, heads, head_dim = shape
        sums = sums.view(clips, len(self.sources), heads, head_dim, -1, queries)
        sums = sums.permute(0, 1, 4, 5, 2, 3).flatten(1, 2)[:, self.slots]
        return sums.unflatten(1, (targets, -1)).sum(dim=2)


def shared_softmax(own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """One softmax over own [B, T, Q, H, 1, L, P] and others [B, T, Q, H, W, L, Pt] logits of a query and head."""
    own_count, other_count = own.shape[4:].numel(), others.shape[4:].numel()
    logits = torch.cat([own.reshape(*own.shape[:4], own_count), others.reshape(*others.shape[:4], other_count)], -1)
    largest = logits.detach().amax(dim=-1, keepdim=True)
    exponentials = (logits - largest.masked_fill(largest == -torch.inf, 0.0)).exp()
    total = exponentials.sum(dim=-1, keepdim=True)
    weights = exponentials / total.masked_fill(total == 0, 1.0)
    own_weights, other_weights = weights.split([own_count, other_count], dim=-1)
    return own_weights.reshape(own.shape), other_weights.reshape(others.shape)


def pixel_positions(reference: Tensor, offsets: Tensor, height: int, width: int) -> Tensor:
    """Pixel positions (x, y) [B, T, Q, H, G, P, 2] from reference [B, T, Q, R] and the offsets of one level."""
    reference = reference[:, :, :, None, None, None]
    if reference.shape[-1] == 2:
        return _in_cells(reference, height, width) + offsets - 0.5
    # A product of infinity would turn the gradient 0 of a sample that does not count into NaN.
    finite = (offsets * reference[..., 2:]).isfinite()
    scaled = torch.where(finite, offsets, 0.0) / offsets.shape[-2] * torch.where(finite, reference[..., 2:], 0.0) * 0.5
    position = _in_cells(reference[..., :2] + scaled, height, width) - 0.5
    return position.masked_fill(~finite, torch.nan)


def _in_cells(position: Tensor, height: int, width: int) -> Tensor:
    """(x, y) in units of the frame to cells of a level, whose sizes are symbols in programs for frames of any size."""
    x, y = position.unbind(-1)
    return torch.stack([x * width, y * height], dim=-1)


def _weighted_samples(
    cells: Tensor,  # [N, D, S], those of the level from `start` on
    height: int | Tensor,
    width: int | Tensor,
    start: int | Tensor,
    position: Tensor,  # [N, K, P, 2] (x, y) in pixels
    weight: Tensor,  # [N, K, P]
) -> Tensor:  # [N, D, K]
    x, y = position.unbind(-1)
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    position = position.masked_fill(~inside[..., None], -2.0)
    if not isinstance(start, Tensor):
        cells, start = cells[:, :, start : start + height * width], 0
    if not isinstance(start, Tensor) and _interpolated_by_grid_sample(cells):
        size = position.new_tensor((width, height))
        maps = cells.unflatten(2, (height, width))
        samples = F.grid_sample(maps, (2.0 * position + 1.0) / size - 1.0, align_corners=False)
    else:
        samples = _interpolate(cells, height, width, start, position)
    return (samples * weight.masked_fill(~inside, 0.0).unsqueeze(1)).sum(dim=-1)


def _interpolated_by_grid_sample(cells: Tensor) -> bool:
    """Return whether `grid_sample` does, many times as fast as `_interpolate`, what is wanted here.

    It has no forward-mode derivative, and an infinite cell with weight zero makes it give NaN. Whether there is one
    can be seen only where the values can be looked at.
    """
    return values_are_readable(cells) and not forward_mode_is_open() and bool(cells.isfinite().all())


def _interpolate(
    cells: Tensor, height: int | Tensor, width: int | Tensor, start: int | Tensor, position: Tensor
) -> Tensor:
    """Bilinear samples [N, D, K, P] at pixel positions [N, K, P, 2]; cells of weight zero do not count."""
    corner = position.detach().floor()
    after = position - corner
    (x_weights, y_weights), (columns, rows) = (
        torch.stack([first, second], dim=-1).unbind(-2)
        for first, second in ((1.0 - after, after), (corner, corner + 1))
    )
    weight = (y_weights.unsqueeze(-1) * x_weights.unsqueeze(-2)).flatten(-2)  # [N, K, P, 4]
    # Levels given as tensors may claim cells that value does not have.
    index = (start + rows.long().unsqueeze(-1) * width + columns.long().unsqueeze(-2)).flatten(-2)
    inside = ((rows >= 0) & (rows < height)).unsqueeze(-1) & ((columns >= 0) & (columns < width)).unsqueeze(-2)
    inside = inside.flatten(-2) & (index >= 0) & (index < cells.shape[2])
    places = index.masked_fill(~inside, 0).flatten(1).unsqueeze(1).expand(-1, cells.shape[1], -1)
    values, weight = cells.gather(2, places).unflatten(2, weight.shape[1:]), weight.unsqueeze(1)
    unread = ~inside.unsqueeze(1) | ((weight == 0) & ~values.isfinite())
    return (weight * values.masked_fill(unread, 0.0)).sum(dim=-1)
