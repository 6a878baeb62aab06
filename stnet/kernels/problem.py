"""The tensors and sizes of one call of the operators, checked before anything is launched.

Letters used for shapes throughout `stnet.kernels`:

    B clips, F source frames, S positions of a frame (all levels), H heads, D channels of a head,
    T target frames, Q queries of a target frame, L levels, P points per level in the own frame,
    W other frames, Pt points per level in each other frame, R components of a reference point (2 or 4).

Below the public functions a call is a *problem* (its sizes, ints) and its *tensors* (a named tuple). The gradients of
the tensors, and which of them are needed, are named tuples of the same type.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

MAX_LEVELS = 8
MAX_MSDA_LEVELS = 64
MAX_HEAD_DIM = 256  # of the fused backends
FLOATING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

T = TypeVar("T")


class StdaTensors(NamedTuple, Generic[T]):
    """One item for each tensor of `spatial_temporal_deform_attn`: the tensor, its gradient, or a bool."""

    value: T  # [B, F, S, H, D]
    reference_points: T  # [B, T, Q, L, R]
    offsets: T  # [B, T, Q, H, L, P, 2]
    logits: T  # [B, T, Q, H, L, P]
    other_offsets: T  # [B, T, Q, H, W, L, Pt, 2]
    other_logits: T  # [B, T, Q, H, W, L, Pt]
    other_reference_points: T  # [B, T, Q, L, R]

    @property
    def own(self) -> tuple[T, T, T]:
        """What places and weighs the samples in the own frame: reference points, offsets, logits."""
        return self.reference_points, self.offsets, self.logits

    @property
    def others(self) -> tuple[T, T, T]:
        """And in the other frames."""
        return self.other_reference_points, self.other_offsets, self.other_logits


class MsdaTensors(NamedTuple, Generic[T]):
    """One item for each tensor of `ms_deform_attn`; levels, without a gradient, may be the problem's instead."""

    value: T  # [B, S, H, D]
    sampling_locations: T  # [B, Q, H, L, P, 2] in [0, 1]
    attention_weights: T  # [B, Q, H, L, P]
    spatial_shapes: T | None = None  # int64 or int32 [L, 2]
    level_start_index: T | None = None  # int64 or int32 [L]


# Last dimensions that the kernels want contiguous among themselves: a query and head's samples. Values may lie anyhow.
STDA_DENSE_DIMS = StdaTensors(
    value=0, reference_points=1, offsets=3, logits=2, other_offsets=4, other_logits=3, other_reference_points=1
)
MSDA_DENSE_DIMS = MsdaTensors(value=0, sampling_locations=3, attention_weights=2, spatial_shapes=2, level_start_index=1)


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

    @classmethod
    def of(
        cls,
        tensors: StdaTensors[Tensor],
        spatial_shapes: tuple[tuple[int, int], ...],
        frame_table: tuple[tuple[int, ...], ...],
    ) -> "StdaProblem":
        """Return the sizes of tensors that fit each other."""
        clips, source_frames, positions, heads, head_dim = tensors.value.shape
        _, targets, queries, _, _, points, _ = tensors.offsets.shape
        other_frames, _, other_points = tensors.other_logits.shape[4:]
        return cls(
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
            components=tensors.reference_points.shape[4],
            spatial_shapes=spatial_shapes,
            frame_table=frame_table,
        )

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.spatial_shapes)

    @property
    def level_starts(self) -> tuple[int, ...]:
        """First position of each level within a frame."""
        return level_starts(self.spatial_shapes)

    @property
    def samples(self) -> int:
        """Samples of one query and head: L * (P + W * Pt)."""
        return self.levels * (self.points + self.other_frames * self.other_points)

    @property
    def tensor_shapes(self) -> StdaTensors[tuple[int, ...]]:
        """The shapes that the tensors have."""
        query = (self.clips, self.targets, self.queries)
        own = (*query, self.heads, self.levels, self.points)
        others = (*query, self.heads, self.other_frames, self.levels, self.other_points)
        references = (*query, self.levels, self.components)
        return StdaTensors(
            value=(self.clips, self.source_frames, self.positions, self.heads, self.head_dim),
            reference_points=references,
            offsets=(*own, 2),
            logits=own,
            other_offsets=(*others, 2),
            other_logits=others,
            other_reference_points=references,
        )


@dataclass(frozen=True, kw_only=True)
class MsdaProblem:
    """The sizes of a `ms_deform_attn` call, all Python ints.

    Attributes:
        spatial_shapes: (h, w) of each level, the levels one after another; None where they are tensors on the device.
    """

    clips: int
    positions: int
    heads: int
    head_dim: int
    queries: int
    levels: int
    points: int
    spatial_shapes: tuple[tuple[int, int], ...] | None

    @classmethod
    def of(
        cls, tensors: MsdaTensors[Tensor], spatial_shapes: tuple[tuple[int, int], ...] | None = None
    ) -> "MsdaProblem":
        """Return the sizes of tensors that fit each other."""
        clips, positions, heads, head_dim = tensors.value.shape
        _, queries, _, levels, points = tensors.attention_weights.shape
        return cls(
            clips=clips,
            positions=positions,
            heads=heads,
            head_dim=head_dim,
            queries=queries,
            levels=levels,
            points=points,
            spatial_shapes=spatial_shapes,
        )

    @property
    def tensor_shapes(self) -> MsdaTensors[tuple[int, ...]]:
        """The shapes that the tensors have."""
        samples = (self.clips, self.queries, self.heads, self.levels, self.points)
        return MsdaTensors(
            value=(self.clips, self.positions, self.heads, self.head_dim),
            sampling_locations=(*samples, 2),
            attention_weights=samples,
            spatial_shapes=(self.levels, 2),
            level_start_index=(self.levels,),
        )


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
    tensors: StdaTensors[Tensor],
    spatial_shapes: Sequence[Sequence[int]],
    frame_table: Sequence[Sequence[int]] | None = None,
) -> StdaProblem:
    """Check the arguments of `spatial_temporal_deform_attn` and name their sizes.

    Raises:
        TypeError: a dtype the operator does not take.
        ValueError: shapes, devices or frame indices that do not fit, with the offending numbers.
    """
    _check_tensors(tensors, _STDA_DIMS)
    shapes = _check_spatial_shapes(spatial_shapes, tensors.value.shape[2], MAX_LEVELS)
    sizes = StdaProblem.of(tensors, shapes, ())
    if sizes.components != 2 and sizes.components != 4:
        raise ValueError(f"reference_points has {sizes.components} components; it needs 2 (x, y) or 4 (cx, cy, w, h)")
    _check_heads(sizes)
    if not 1 <= sizes.points <= 16:
        raise ValueError(f"{sizes.points} points per level; 1 to 16 are supported")
    if sizes.other_frames and not 1 <= sizes.other_points <= 16:
        raise ValueError(f"{sizes.other_points} points per level in other frames; 1 to 16 are supported")
    if sizes.other_frames > 63:
        raise ValueError(f"{sizes.other_frames} other frames; at most 63 are supported")
    _check_shapes(tensors, sizes.tensor_shapes)
    frames = (sizes.targets, sizes.source_frames, sizes.other_frames)
    table = default_frame_table(*frames) if frame_table is None else _check_frame_table(frame_table, *frames)
    return StdaProblem.of(tensors, shapes, table)


def check_msda(
    tensors: MsdaTensors[Tensor],
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int] | None,
    grad_output: Tensor | None = None,
) -> MsdaProblem:
    """Check the arguments of `ms_deform_attn`; shapes on a device are not read, so nothing synchronizes.

    The tensors come without levels, which are given apart; the gradient of the output where there is one.

    Raises:
        TypeError: a dtype the operator does not take.
        ValueError: shapes or devices that do not fit, with the offending numbers.
    """
    _check_tensors(tensors, _MSDA_DIMS)
    if grad_output is not None:
        _check_tensor("grad_output", grad_output, 3, tensors.value.device)
    if level_start_index is not None and isinstance(spatial_shapes, Tensor) != isinstance(level_start_index, Tensor):
        raise TypeError("spatial_shapes and level_start_index must both be tensors or both be ints")
    if isinstance(spatial_shapes, Tensor):
        shapes, levels = None, _check_level_tensors(spatial_shapes, level_start_index, tensors.value.device)
    else:
        shapes = _check_spatial_shapes(spatial_shapes, tensors.value.shape[1], MAX_MSDA_LEVELS)
        levels, known = len(shapes), level_starts(shapes)
        starts = known if level_start_index is None else _integers("level_start_index", level_start_index)
        if tuple(starts) != known:
            raise ValueError(f"level_start_index is {list(starts)}, the shapes give {list(known)}")
    problem = MsdaProblem.of(tensors, shapes)
    _check_heads(problem)
    if problem.levels != levels:
        problem = replace(problem, levels=levels)  # the tensors are wrong, and told so
    _check_shapes(tensors, problem.tensor_shapes)
    if grad_output is not None:
        _check_shape("grad_output", grad_output, (problem.clips, problem.queries, problem.heads * problem.head_dim))
    return problem


def read_levels(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> tuple[list[tuple[int, int]], list[int]]:
    """Shapes and starts of levels given by tensors; they may overlap, stand in any order, and leave positions out.

    Raises:
        ValueError: levels without cells, or that do not lie within the positions of value.
    """
    shapes, starts = tensors.spatial_shapes.tolist(), tensors.level_start_index.tolist()
    for (height, width), start in zip(shapes, starts, strict=True):
        if height < 1 or width < 1 or start < 0 or start + height * width > problem.positions:
            raise ValueError(
                f"a level of {height} x {width} cells from position {start} on does not lie within the "
                f"{problem.positions} positions of value"
            )
    return shapes, starts


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


_STDA_DIMS = StdaTensors(
    value=5, reference_points=5, offsets=7, logits=6, other_offsets=8, other_logits=7, other_reference_points=5
)
_MSDA_DIMS = MsdaTensors(value=4, sampling_locations=6, attention_weights=5)


def _check_tensors(tensors: StdaTensors | MsdaTensors, dims: StdaTensors | MsdaTensors) -> None:
    for name, tensor, count in zip(tensors._fields, tensors, dims, strict=True):
        if count is not None:
            _check_tensor(name, tensor, count, tensors.value.device if name != "value" else None)


def _check_tensor(name: str, tensor: Tensor, dims: int, device: torch.device | None) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a tensor")
    if tensor.dtype not in FLOATING_DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}; float32, float16, bfloat16 and float64 are supported")
    _check_dims(name, tensor, dims)
    if device is not None:
        _check_device(name, tensor, device)


def _check_dims(name: str, tensor: Tensor, dims: int) -> None:
    if tensor.dim() != dims:
        raise ValueError(f"{name} has {tensor.dim()} dimensions {list(tensor.shape)}, expected {dims}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is stored as {tensor.layout}; pass {name}.to_dense()")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, value on {device}")


def _check_shapes(tensors: StdaTensors | MsdaTensors, expected: StdaTensors | MsdaTensors) -> None:
    for name, tensor, shape in zip(tensors._fields, tensors, expected, strict=True):
        if tensor is not None:
            _check_shape(name, tensor, shape)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(expected)}")


def _check_heads(problem: StdaProblem | MsdaProblem) -> None:
    if problem.head_dim == 0 or problem.heads == 0:
        raise ValueError(f"value has {problem.heads} heads of width {problem.head_dim}; both must be at least 1")


def _check_level_count(levels: int, limit: int) -> None:
    if not 1 <= levels <= limit:
        raise ValueError(f"{levels} levels; 1 to {limit} are supported")


def _integer_rows(name: str, rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    try:
        rows = tuple(rows)
    except TypeError:
        raise TypeError(f"{name} is a {type(rows).__name__}, expected rows of integers") from None
    return tuple(_integers(name, row) for row in rows)


_INTEGERS = (int, torch.SymInt)


def _integers(name: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """Integers of any type (NumPy's, tensors without dimensions) as Python's; nothing is rounded.

    Symbols stay what they are: the sizes of a program that is exported for frames of any size.
    """
    if type(numbers) is tuple and all(type(number) in _INTEGERS for number in numbers):
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
