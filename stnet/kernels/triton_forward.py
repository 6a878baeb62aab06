"""Forward pass of both operators by Triton: what the registration calls, and the launches as data."""

import torch
from torch import Tensor

from stnet.kernels.forward_msda import msda_forward_kernel
from stnet.kernels.forward_stda import stda_forward_kernel
from stnet.kernels.launch import (
    Candidate,
    KernelCall,
    alignment,
    architecture,
    choose,
    frame_offsets,
    has_packed_arithmetic,
    is_nvidia,
    level_tables,
    packed,
    padded_head_dim,
    query_order,
    strides,
)
from stnet.kernels.problem import StdaProblem


def stda_forward(
    value: Tensor,  # [B, F, S, H, D], any strides
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,  # [B, T, Q, L, R]
    offsets: Tensor,  # [B, T, Q, H, L, P, 2]
    logits: Tensor,  # [B, T, Q, H, L, P]
    other_offsets: Tensor,  # [B, T, Q, H, W, L, Pt, 2]
    other_logits: Tensor,  # [B, T, Q, H, W, L, Pt]
    frame_table: tuple[tuple[int, ...], ...],
    other_reference_points: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Spatial-temporal deformable attention for arguments that `check_stda` accepted.

    Offsets and logits may be strided over clips, targets, queries and heads; a tensor whose points are not contiguous
    is copied. Where the queries are the positions of a frame (the encoder), they are taken in 2-D tiles.

    Returns:
        output [B, T, Q, H * D] in the dtype of value, and lse float32 [B, T, Q, H]: the natural logarithm of the sum of
        the exponentials of all logits of a query and head, -inf where all are -inf.
    """
    clips, targets, queries, heads = logits.shape[:4]
    head_dim = value.shape[4]
    output = torch.empty((clips, targets, queries, heads * head_dim), dtype=value.dtype, device=value.device)
    lse = torch.empty((clips, targets, queries, heads), dtype=torch.float32, device=value.device)
    if lse.numel() == 0:
        return output, lse
    arch = architecture(value.device)
    candidate = choose("stda_forward", arch, value.dtype, head_dim, queries)
    stda_forward_call(
        value, spatial_shapes, reference_points, offsets, logits, other_offsets, other_logits, frame_table,
        reference_points if other_reference_points is None else other_reference_points,
        output, lse, candidate, arch,
    ).launch()  # fmt: skip
    return output, lse


def msda_forward(
    value: Tensor,  # [N, S, H, D], any strides
    spatial_shapes: Tensor,  # int32 or int64 [L, 2] on the device of value
    level_start_index: Tensor,  # int32 or int64 [L]
    sampling_locations: Tensor,  # [N, Q, H, L, P, 2] in [0, 1]
    attention_weights: Tensor,  # [N, Q, H, L, P]
) -> Tensor:
    """Multi-scale deformable attention for arguments that `check_msda` accepted: [N, Q, H * D]."""
    batch, queries, heads = attention_weights.shape[:3]
    output = torch.empty((batch, queries, heads * value.shape[3]), dtype=value.dtype, device=value.device)
    if output.numel() == 0:
        return output
    arch = architecture(value.device)
    candidate = choose("msda_forward", arch, value.dtype, value.shape[3], queries)
    msda_forward_call(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, output, candidate, arch
    ).launch()
    return output


def stda_forward_call(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    other_offsets: Tensor,
    other_logits: Tensor,
    frame_table: tuple[tuple[int, ...], ...],
    other_reference_points: Tensor,
    output: Tensor,
    lse: Tensor,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """The launch behind `stda_forward`, writing to `output` and `lse` with a given candidate."""
    device = value.device
    offsets, other_offsets = packed(offsets, 3), packed(other_offsets, 4)
    logits, other_logits = packed(logits, 2), packed(other_logits, 3)
    reference_points, other_reference_points = packed(reference_points, 1), packed(other_reference_points, 1)
    clips, targets, queries, heads, levels, points = logits.shape
    other_frames, other_points = other_logits.shape[4], other_logits.shape[6]
    shapes, starts = level_tables(spatial_shapes, device)
    ordered = queries == value.shape[2] and queries > candidate.block_queries
    arguments = {
        "value": value,
        "reference": reference_points,
        "other_reference": other_reference_points,
        "offsets": offsets,
        "logits": logits,
        "other_offsets": other_offsets,
        "other_logits": other_logits,
        "shapes": shapes,
        "starts": starts,
        "frames": frame_offsets(frame_table, value.stride(1), device),
        "order": query_order(spatial_shapes, candidate.block_queries, device) if ordered else starts,
        "output": output,
        "lse": lse,
        "queries": queries,
        "targets": targets,
        "other_frames": other_frames if other_points else 0,
        **strides("value", value, (0, 3, 4), "bhd"),
        **strides("reference", reference_points, (0, 1, 2, 3), "btql"),
        **strides("other_reference", other_reference_points, (0, 1, 2, 3), "btql"),
        **strides("offsets", offsets, (0, 1, 2, 3), "btqh"),
        **strides("logits", logits, (0, 1, 2, 3), "btqh"),
        **strides("other_offsets", other_offsets, (0, 1, 2, 3), "btqh"),
        **strides("other_logits", other_logits, (0, 1, 2, 3), "btqh"),
    }
    query_tensors = (offsets, logits, other_offsets, other_logits)
    constants = {
        "LEVELS": levels,
        "POINTS": points,
        "OTHER_POINTS": max(1, other_points),
        "COMPONENTS": reference_points.shape[4],
        **_value_constants(value, (0, 1, 2, 3), 2, candidate, arch),
        "ALIGN": min(alignment(tensor, (0, 1, 2, 3)) for tensor in query_tensors),
        "UNROLL": candidate.unroll,
        "THIN": min(map(min, spatial_shapes)) == 1,
        "ORDERED": ordered,
    }
    grid = (-(-queries // candidate.block_queries) * targets * clips, heads * _channel_blocks(constants), 1)
    return KernelCall(
        kernel=stda_forward_kernel, grid=grid, arguments=arguments, constants=constants, options=candidate.options(arch)
    )


def msda_forward_call(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    output: Tensor,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """The launch behind `msda_forward`, writing to `output` with a given candidate."""
    locations, weights = packed(sampling_locations, 3), packed(attention_weights, 2)
    batch, queries, heads, levels, points = weights.shape
    arguments = {
        "value": value,
        "shapes": spatial_shapes.contiguous(),
        "starts": level_start_index.contiguous(),
        "locations": locations,
        "weights": weights,
        "output": output,
        "queries": queries,
        "levels": levels,
        **strides("value", value, (0, 2, 3), "bhd"),
        **strides("locations", locations, (0, 1, 2), "bqh"),
        **strides("weights", weights, (0, 1, 2), "bqh"),
    }
    constants = {
        "POINTS": points,
        **_value_constants(value, (0, 1, 2), 1, candidate, arch),
        "ALIGN": min(alignment(tensor, (0, 1, 2)) for tensor in (locations, weights)),
    }
    grid = (-(-queries // candidate.block_queries) * batch, heads * _channel_blocks(constants), 1)
    return KernelCall(
        kernel=msda_forward_kernel, grid=grid, arguments=arguments, constants=constants, options=candidate.options(arch)
    )


def _value_constants(
    value: Tensor, dims: tuple[int, ...], cell_dim: int, candidate: Candidate, arch: str
) -> dict[str, object]:
    """Constants that say how values are stored and read; `dims` are all dimensions but the channels."""
    head_dim, element = value.shape[-1], value.element_size()
    contiguous = value.stride(-1) == 1
    vector = min(alignment(value, dims) // element, head_dim & -head_dim) if contiguous else 1
    packs = has_packed_arithmetic(arch) and element == 2 and vector >= 2
    return {
        "ROW": value.stride(cell_dim),
        "WIDE": value.shape[cell_dim] * value.stride(cell_dim) * element >= 2**32,
        "CHANNEL": int(contiguous),
        "VECTOR": vector,
        "STORE": min(16 // element, head_dim & -head_dim),
        "D": head_dim,
        "C": min(padded_head_dim(head_dim), candidate.block_channels),
        "BLOCK": candidate.block_queries,
        "ARITHMETIC": candidate.arithmetic if packs else "float32",
        "PTX": is_nvidia(arch),
    }


def _channel_blocks(constants: dict[str, object]) -> int:
    return -(-constants["D"] // constants["C"])


def example_calls(
    kernel: str, candidate: Candidate, dtype: torch.dtype, head_dim: int, problem: StdaProblem, arch: str
) -> list[KernelCall]:
    """Launches for contiguous `meta` tensors of a problem's sizes; see `stnet.kernels.launch.ast_sources`."""
    p = problem
    device = torch.device("meta")

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    query = (p.clips, p.targets, p.queries)
    if kernel == "msda_forward":
        rows = (p.clips, p.queries, p.heads)
        shapes, starts = level_tables(p.spatial_shapes, device)
        call = msda_forward_call(
            empty(p.clips, p.heads, p.positions, head_dim).transpose(1, 2),
            shapes,
            starts,
            empty(*rows, p.levels, p.points, 2, dtype=torch.float32),
            empty(*rows, p.levels, p.points),
            empty(p.clips, p.queries, p.heads * head_dim),
            candidate,
            arch,
        )
        return [call]
    reference = empty(*query, p.levels, p.components, dtype=torch.float32)
    call = stda_forward_call(
        empty(p.clips, p.source_frames, p.heads, p.positions, head_dim).transpose(2, 3),
        p.spatial_shapes,
        reference,
        empty(*query, p.heads, p.levels, p.points, 2),
        empty(*query, p.heads, p.levels, p.points),
        empty(*query, p.heads, p.other_frames, p.levels, p.other_points, 2),
        empty(*query, p.heads, p.other_frames, p.levels, p.other_points),
        p.frame_table,
        reference,
        empty(*query, p.heads * head_dim),
        empty(*query, p.heads, dtype=torch.float32),
        candidate,
        arch,
    )
    return [call]
