"""The levels whose value gradient is summed by a kernel of their own, and the launches of that kernel as data."""

import math

import torch
from torch import Tensor

from stnet.kernels.problem import StdaProblem, StdaTensors
from stnet.kernels.triton.architecture import has_packed_arithmetic, has_vector_reductions, is_nvidia, warp_lanes
from stnet.kernels.triton.backward_coarse import CELLS, SIDE, Config, stda_coarse_kernel
from stnet.kernels.triton.device_tables import frame_columns, level_tables
from stnet.kernels.triton.forward import query_strides, sample_counts
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch_table import Candidate, padded_head_dim
from stnet.kernels.triton.layout import alignment, strides

_CHANNELS = 16, 32  # fewest and most of a program; with more, sums and weights would not fit into registers
_SHARES = 32  # of the queries of a target, at most: each adds its sums to memory once
_WARPS = 4  # of a program, more where a level has more blocks
_FLOAT16_SHIFT = 14  # the weights of a query add up to at most 1, and 2^15 fits


def coarse_levels(
    problem: StdaProblem, grad_output: Tensor, grad_value: Tensor | None, candidate: Candidate, arch: str
) -> tuple[int, ...]:
    """Return the levels whose value gradient is summed apart: those that the candidate says are small enough.

    None are where the gradient is not wanted, or is collected in fixed point: sums of floating-point numbers would
    depend on the order of queries. None are for float32, whose products take several instructions (three times those of
    16 bits, and more registers than there are), and before sm_80, which lacks a conversion.
    """
    floating = grad_value is not None and grad_value.dtype == torch.float32
    if not floating or grad_output.dtype not in (torch.float16, torch.bfloat16):
        return ()
    if is_nvidia(arch) and not has_packed_arithmetic(arch):
        return ()
    cells = [CELLS.value * _blocks(shape) for shape in problem.spatial_shapes]
    return tuple(level for level, count in enumerate(cells) if count <= candidate.summed_cells)


def _blocks(shape: tuple[int, int]) -> int:
    """Blocks of 8 x 8 cells that cover a level, raised to a power of two."""
    height, width = shape
    count = math.ceil(height / SIDE.value) * math.ceil(width / SIDE.value)
    return 1 << (count - 1).bit_length()


def stda_coarse_call(
    problem: StdaProblem,
    tensors: StdaTensors[Tensor],
    grad_output: Tensor,
    lse: Tensor,
    grad_value: Tensor,
    level: int,
    arch: str,
) -> KernelCall:
    """Return the launch that adds one level's gradient to `grad_value`, from packed tensors."""
    p, size = problem, grad_output.element_size()
    blocks = _blocks(p.spatial_shapes[level])
    warps = max(_WARPS, blocks)
    block_queries = warps * warp_lanes(arch) // blocks
    share = block_queries * math.ceil(p.queries / (block_queries * _SHARES))
    row = p.head_dim * size  # outputs are contiguous
    channels = min(max(padded_head_dim(p.head_dim), _CHANNELS[0]), _CHANNELS[1])
    shapes, starts = level_tables(p.spatial_shapes, grad_output.device)
    arguments = {
        **tensors._asdict(),
        "grad_output": grad_output,
        "lse": lse,
        "shapes": shapes,
        "starts": starts,
        "columns": frame_columns(p.frame_table, p.source_frames, grad_output.device),
        "grad_value": grad_value,
        "level": level,
        "queries": p.queries,
        "share": share,
        "targets": p.targets,
        "heads": p.heads,
        "source_frames": p.source_frames,
        **strides("grad_output", grad_output, (0, 1, 2), "btq"),
        **query_strides(tensors),
        **strides("grad_value", grad_value, (0, 1), "bf"),
    }
    config = Config(
        D=p.head_dim,
        BLOCK_CHANNELS=channels,
        BLOCKS=blocks,
        BLOCK_QUERIES=block_queries,
        ALIGN=min(alignment(grad_output, range(grad_output.dim() - 1)), row & -row),
        CELL_STRIDE=p.heads * p.head_dim,
        REDUCED=4 if has_vector_reductions(arch) else 1,
        SHIFT=_FLOAT16_SHIFT if grad_output.dtype == torch.float16 else 0,
        PTX=is_nvidia(arch),
    )
    constants = {"config": config, **sample_counts(p)}
    grid = (math.ceil(p.queries / share) * p.source_frames * p.clips, p.heads, math.ceil(p.head_dim / channels))
    return KernelCall.of(stda_coarse_kernel, grid, arguments, constants, {"num_warps": warps})
