"""Sizes of one call of the operators, checked before anything is launched.

Letters used for shapes throughout `stnet.kernels`:

    B clips, F source frames, S positions of a frame (all levels), H heads, D channels of a head,
    T target frames, Q queries of a target frame, L levels, P points per level in the own frame,
    W other frames, Pt points per level in each other frame, R components of a reference point (2 or 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LEVELS = 8
MAX_MSDA_LEVELS = 64
FLOATING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, kw_only=True)
class StdaProblem:
    """The sizes of a `spatial_temporal_deform_attn` call, all Python ints."""

    clips: int
    source_frames: int
    positions: int
    heads: int
    head_dim: int
    targets: int
    queries: int
    points: int
    other_frames: int
    other_points: int
    components: int
    spatial_shapes: tuple[tuple[int, int], ...]
    frame_table: tuple[tuple[int, ...], ...]

    @property
    def levels(self) -> int:
        return len(self.spatial_shapes)

    @property
    def level_starts(self) -> tuple[int, ...]:
        """First position of each level within a frame."""
        return level_starts(self.spatial_shapes)

    @property
    def samples(self) -> int:
        """Samples of one query and head: L * (P + W * Pt)."""
        return self.levels * (self.points + self.other_frames * self.other_points)


def level_starts(spatial_shapes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """First position of each level when levels of (h, w) cells are concatenated."""
    starts, position = [], 0
    for height, width in spatial_shapes:
        starts.append(position)
        position += height * width
    return tuple(starts)


def default_frame_table(targets: int, source_frames: int, other_frames: int) -> tuple[tuple[int, ...], ...]:
    """Target t is source frame t; the others are the remaining frames in ascending order.

    Raises:
        ValueError: the others are not exactly the remaining frames, so that a table has to be given.
    """
    # Not `in (0, ...)`, nor below: torch.compile of PyTorch 2.11 takes no symbolic number for equal to one in a tuple.
    if other_frames != 0 and other_frames != source_frames - 1:
        raise ValueError(
            f"{other_frames} other frames of {source_frames} source frames: without a frame_table there must be "
            f"{source_frames - 1} or 0; pass a frame_table that names them"
        )
    if targets > source_frames:
        raise ValueError(f"{targets} target frames but {source_frames} source frames; pass a frame_table")
    remaining = range(source_frames) if other_frames else ()
    return tuple((t, *(f for f in remaining if f != t)) for t in range(targets))


def check_stda(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: Sequence[Sequence[int]] | None = None,
    other_reference_points: Tensor | None = None,
) -> StdaProblem:
    """Check the arguments of `spatial_temporal_deform_attn` and name their sizes.

    Raises:
        TypeError: a dtype the operator does not take.
        ValueError: shapes, devices or frame indices that do not fit, with the offending numbers.
    """
    tensors = {
        "value": (value, 5),
        "reference_points": (reference_points, 5),
        "offsets": (offsets, 7),
        "logits": (logits, 6),
        "other_offsets": (other_offsets, 8),
        "other_logits": (other_logits, 7),
    }
    if other_reference_points is not None:
        tensors["other_reference_points"] = (other_reference_points, 5)
    _check_tensors(tensors)

    clips, source_frames, positions, heads, head_dim = value.shape
    shapes = _check_spatial_shapes(spatial_shapes, positions, MAX_LEVELS)
    _, targets, queries, _, levels, points, _ = offsets.shape
    other_frames, other_points = other_logits.shape[4], other_logits.shape[6]
    components = reference_points.shape[-1]
    if components != 2 and components != 4:
        raise ValueError(f"reference_points has {components} components; it needs 2 (x, y) or 4 (cx, cy, w, h)")
    _check_heads(heads, head_dim)
    if not 1 <= points <= 16:
        raise ValueError(f"{points} points per level; 1 to 16 are supported")
    if other_frames and not 1 <= other_points <= 16:
        raise ValueError(f"{other_points} points per level in other frames; 1 to 16 are supported")
    if other_frames > 63:
        raise ValueError(f"{other_frames} other frames; at most 63 are supported")

    query = (clips, targets, queries)
    levels = len(shapes)
    expected = {
        "reference_points": (*query, levels, components),
        "offsets": (*query, heads, levels, points, 2),
        "logits": (*query, heads, levels, points),
        "other_offsets": (*query, heads, other_frames, levels, other_points, 2),
        "other_logits": (*query, heads, other_frames, levels, other_points),
        "other_reference_points": (*query, levels, components),
    }
    _check_shapes(tensors, expected)
    if frame_table is None:
        table = default_frame_table(targets, source_frames, other_frames)
    else:
        table = _check_frame_table(frame_table, targets, source_frames, other_frames)
    return StdaProblem(
        clips=clips,
        source_frames=source_frames,
        positions=positions,
        heads=heads,
        head_dim=head_dim,
        targets=targets,
        queries=queries,
        points=points,
        other_frames=other_frames,
        other_points=other_points,
        components=components,
        spatial_shapes=shapes,
        frame_table=table,
    )


def check_msda(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor | None = None,
) -> None:
    """Check the arguments of `ms_deform_attn`; shapes on a device are not read, so nothing synchronizes.

    Raises:
        TypeError: a dtype the operator does not take.
        ValueError: shapes or devices that do not fit, with the offending numbers.
    """
    tensors = {
        "value": (value, 4),
        "sampling_locations": (sampling_locations, 6),
        "attention_weights": (attention_weights, 5),
    }
    if grad_output is not None:
        tensors["grad_output"] = (grad_output, 3)
    _check_tensors(tensors)
    batch, positions, heads, head_dim = value.shape
    _check_heads(heads, head_dim)
    if isinstance(spatial_shapes, Tensor) != isinstance(level_start_index, Tensor):
        raise TypeError("spatial_shapes and level_start_index must both be tensors or both be ints")
    if isinstance(spatial_shapes, Tensor):
        levels = _check_level_tensors(spatial_shapes, level_start_index, value.device)
    else:
        shapes = _check_spatial_shapes(spatial_shapes, positions, MAX_MSDA_LEVELS)
        levels, starts = len(shapes), list(_integers("level_start_index", level_start_index))
        if tuple(starts) != level_starts(shapes):
            raise ValueError(f"level_start_index is {starts}, the shapes give {list(level_starts(shapes))}")
    _, queries, _, _, points = attention_weights.shape
    expected = {
        "attention_weights": (batch, queries, heads, levels, points),
        "sampling_locations": (batch, queries, heads, levels, points, 2),
        "grad_output": (batch, queries, heads * head_dim),
    }
    _check_shapes(tensors, expected)


def check_levels_inside(shapes: Sequence[Sequence[int]], starts: Sequence[int], positions: int) -> None:
    """Check levels that were read from tensors; they may overlap, stand in any order, and leave positions out.

    Raises:
        ValueError: levels without cells, or that do not lie within the positions of value.
    """
    for (height, width), start in zip(shapes, starts, strict=True):
        if height < 1 or width < 1 or start < 0 or start + height * width > positions:
            raise ValueError(
                f"a level of {height} x {width} cells from position {start} on does not lie within the "
                f"{positions} positions of value"
            )


def _check_level_tensors(spatial_shapes: Tensor, level_start_index: Tensor, device: torch.device) -> int:
    for name, tensor, dims in (("spatial_shapes", spatial_shapes, 2), ("level_start_index", level_start_index, 1)):
        if tensor.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {tensor.dtype}; it needs int64 or int32")
        _check_dims(name, tensor, dims)
        _check_device(name, tensor, device)
    levels = spatial_shapes.shape[0]
    _check_level_count(levels, MAX_MSDA_LEVELS)
    if spatial_shapes.shape[1] != 2:
        raise ValueError(f"spatial_shapes has shape {list(spatial_shapes.shape)}, expected [{levels}, 2]")
    if level_start_index.shape[0] != levels:
        raise ValueError(f"level_start_index has {level_start_index.shape[0]} entries for {levels} levels")
    return levels


def _check_tensors(tensors: dict[str, tuple[Tensor, int]]) -> None:
    device = None
    for name, (tensor, dims) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        if tensor.dtype not in FLOATING_DTYPES:
            raise TypeError(f"{name} has dtype {tensor.dtype}; float32, float16, bfloat16 and float64 are supported")
        _check_dims(name, tensor, dims)
        device = device or tensor.device
        _check_device(name, tensor, device)


def _check_dims(name: str, tensor: Tensor, dims: int) -> None:
    if tensor.dim() != dims:
        raise ValueError(f"{name} has {tensor.dim()} dimensions {list(tensor.shape)}, expected {dims}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is stored as {tensor.layout}; pass {name}.to_dense()")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, value on {device}")


def _check_shapes(tensors: dict[str, tuple[Tensor, int]], expected: dict[str, tuple[int, ...]]) -> None:
    for name, (tensor, _) in tensors.items():
        if name != "value" and tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}")


def _check_heads(heads: int, head_dim: int) -> None:
    if head_dim == 0 or heads == 0:
        raise ValueError(f"value has {heads} heads of width {head_dim}; both must be at least 1")


def _check_level_count(levels: int, limit: int) -> None:
    if not 1 <= levels <= limit:
        raise ValueError(f"{levels} levels; 1 to {limit} are supported")


def _integer_rows(name: str, rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    try:
        rows = tuple(rows)
    except TypeError:
        raise TypeError(f"{name} is a {type(rows).__name__}, expected rows of integers") from None
    return tuple(_integers(name, row) for row in rows)


def _integers(name: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """Integers of any type (NumPy's, tensors without dimensions) as Python's; nothing is rounded."""
    if type(numbers) is tuple and all(type(number) is int for number in numbers):
        return numbers
    try:
        integers = tuple(int(number) for number in numbers)
        same = all(integer == number for integer, number in zip(integers, numbers, strict=True))
    except (TypeError, ValueError):
        same = False
    if not same:
        raise TypeError(f"{name} holds {numbers!r}, expected integers")
    return integers


def _check_spatial_shapes(
    spatial_shapes: Sequence[Sequence[int]], positions: int, limit: int
) -> tuple[tuple[int, int], ...]:
    shapes = _integer_rows("spatial_shapes", spatial_shapes)
    _check_level_count(len(shapes), limit)
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"spatial_shapes is {list(shapes)}, expected (height, width) of each level")
    if any(height < 1 or width < 1 for height, width in shapes):
        raise ValueError(f"spatial_shapes {list(shapes)} holds a level without cells")
    total = sum(math.prod(shape) for shape in shapes)
    if total != positions:
        raise ValueError(f"spatial_shapes {list(shapes)} have {total} cells, value has {positions} positions")
    return shapes


def _check_frame_table(
    frame_table: Sequence[Sequence[int]], targets: int, source_frames: int, other_frames: int
) -> tuple[tuple[int, ...], ...]:
    table = _integer_rows("frame_table", frame_table)
    if len(table) != targets:
        raise ValueError(f"frame_table has {len(table)} rows for {targets} target frames")
    for t, row in enumerate(table):
        if len(row) != 1 + other_frames:
            raise ValueError(f"row {t} of frame_table has {len(row)} frames, expected 1 own + {other_frames} others")
        if any(not 0 <= frame < source_frames for frame in row):
            raise ValueError(f"row {t} of frame_table {list(row)} names a frame outside 0..{source_frames - 1}")
        if len(set(row)) != len(row):
            raise ValueError(f"row {t} of frame_table {list(row)} names a frame twice")
    return table
