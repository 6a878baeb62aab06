"""Forward pass of both operators by Triton: the functions of the backend, and their launches as data."""

from collections.abc import Callable
from math import gcd

import torch
from torch import Tensor

from stnet.kernels.problem import MSDA_DENSE_DIMS, STDA_DENSE_DIMS, MsdaProblem, MsdaTensors, StdaProblem, StdaTensors
from stnet.kernels.triton.architecture import architecture, has_packed_arithmetic, is_nvidia
from stnet.kernels.triton.device_tables import frame_offsets, level_tables, query_order
from stnet.kernels.triton.forward_msda import msda_forward_kernel
from stnet.kernels.triton.forward_samples import Config
from stnet.kernels.triton.forward_stda import stda_forward_kernel
from stnet.kernels.triton.kernel_call import KernelCall
from stnet.kernels.triton.launch import Launch, distinct
from stnet.kernels.triton.launch_table import Candidate, choose, padded_head_dim
from stnet.kernels.triton.layout import alignment, pack_all, strides


def stda_forward(
    problem: StdaProblem, tensors: StdaTensors[Tensor], *, candidate: Candidate | None = None
) -> Callable[[StdaTensors[Tensor]], tuple[Tensor, Tensor]]:
    """Prepare spatial-temporal deformable attention; see `stnet.kernels.backends`.

    Offsets and logits may be strided over clips, targets, queries and heads; a tensor whose points are not contiguous
    is copied. Where the queries are the positions of a frame (the encoder), they are taken in 2-D tiles. A candidate
    takes the place of the launch table's default.
    """
    p, value = problem, tensors.value
    rows = (p.clips, p.targets, p.queries)

    def allocate(device: torch.device | str) -> tuple[Tensor, Tensor]:
        output = torch.empty((*rows, p.heads * p.head_dim), dtype=dtype, device=device)
        return output, torch.empty((*rows, p.heads), dtype=torch.float32, device=device)

    def make_call(inputs: StdaTensors[Tensor], outputs: tuple[Tensor, Tensor]) -> KernelCall:
        return stda_forward_call(p, inputs, *outputs, chosen, arch)

    dtype, arch = value.dtype, architecture(value.device)
    chosen = candidate or choose("stda_forward", arch, dtype, p.head_dim, p.queries)
    return _prepared(tensors, STDA_DENSE_DIMS, allocate, make_call)


def msda_forward(
    problem: MsdaProblem, tensors: MsdaTensors[Tensor], *, candidate: Candidate | None = None
) -> Callable[[MsdaTensors[Tensor]], Tensor]:
    """Prepare multi-scale deformable attention; see `stnet.kernels.backends`. Arguments as for `stda_forward`."""
    p, value = problem, tensors.value

    def allocate(device: torch.device | str) -> tuple[Tensor]:
        return (torch.empty((p.clips, p.queries, p.heads * p.head_dim), dtype=dtype, device=device),)

    def make_call(inputs: MsdaTensors[Tensor], outputs: tuple[Tensor]) -> KernelCall:
        return msda_forward_call(p, inputs, *outputs, chosen, arch)

    dtype, arch = value.dtype, architecture(value.device)
    chosen = candidate or choose("msda_forward", arch, dtype, p.head_dim, p.queries)
    run = _prepared(tensors, MSDA_DENSE_DIMS, allocate, make_call)
    return lambda tensors: run(tensors)[0]


def _prepared(tensors, dense_dims, allocate: Callable, make_call: Callable) -> Callable:
    """Return what runs a launch on tensors that lie like these; it keeps none of them."""
    packed_tensors = pack_all(tensors, dense_dims)
    copies = any(x is not y for x, y in zip(tensors, packed_tensors, strict=True))
    examples, outputs = distinct(packed_tensors), allocate("meta")
    launch = Launch(make_call(type(tensors)(*examples), outputs), (*examples, *outputs))

    def run(tensors):
        outputs = allocate(tensors[0].device)
        launch(*(pack_all(tensors, dense_dims) if copies else tensors), *outputs)
        return outputs

    return run


def stda_forward_call(
    problem: StdaProblem,
    tensors: StdaTensors[Tensor],
    output: Tensor,
    lse: Tensor,
    candidate: Candidate,
    arch: str,
) -> KernelCall:
    """The launch behind `stda_forward` of packed tensors, writing to `output` and `lse` with a given candidate."""
    p, value = problem, tensors.value
    shapes, starts = level_tables(p.spatial_shapes, value.device)
    ordered = p.queries == p.positions and p.queries > candidate.block_queries
    arguments = {
        **tensors._asdict(),
        "shapes": shapes,
        "starts": starts,
        "frames": frame_offsets(p.frame_table, value.stride(1), value.device),
        "order": query_order(p.spatial_shapes, candidate.block_queries, value.device) if ordered else starts,
        "output": output,
        "lse": lse,
        "queries": p.queries,
        "targets": p.targets,
        "other_frames": p.other_frames if p.other_points else 0,
        **strides("value", value, (0, 3, 4), "bhd"),
        **query_strides(tensors),
    }
    config = _config(value, min(map(min, p.spatial_shapes)) == 1, candidate, arch)
    constants = {
        "config": config,
        **sample_counts(p),
        "ALIGN": min(alignment(x, (0, 1, 2, 3)) for x in (*tensors.own[1:], *tensors.others[1:])),
        "BLOCK_QUERIES": candidate.block_queries,
        "UNROLL": candidate.unroll,
        "ORDERED": ordered,
    }
    grid = _grid(p.targets * p.clips, p.queries, p.heads, config, candidate)
    return KernelCall.of(stda_forward_kernel, grid, arguments, constants, candidate.options(arch))


def sample_counts(problem: StdaProblem) -> dict[str, int]:
    """Return the constants that tell the samples of a query, as the kernels of spatial-temporal attention name them."""
    return {
        "LEVELS": problem.levels,
        "POINTS": problem.points,
        "OTHER_POINTS": max(1, problem.other_points),
        "COMPONENTS": problem.components,
    }


def query_strides(tensors: StdaTensors[Tensor]) -> dict[str, int]:
    """Return the strides of all tensors but value, as the kernels name them."""
    found = {}
    for name, tensor in zip(tensors._fields[1:], tensors[1:], strict=True):
        found |= strides(name, tensor, (0, 1, 2, 3), "btql" if name.endswith("reference_points") else "btqh")
    return found


def msda_forward_call(
    problem: MsdaProblem, tensors: MsdaTensors[Tensor], output: Tensor, candidate: Candidate, arch: str
) -> KernelCall:
    """The launch behind `msda_forward` of packed tensors, writing to `output` with a given candidate."""
    p, value = problem, tensors.value
    locations, weights = tensors.sampling_locations, tensors.attention_weights
    shapes, starts = levels_of(problem, tensors)
    arguments = {
        "value": value,
        "shapes": shapes,
        "starts": starts,
        "locations": locations,
        "weights": weights,
        "output": output,
        "queries": p.queries,
        "levels": p.levels,
        **strides("value", value, (0, 2, 3), "bhd"),
        **strides("locations", locations, (0, 1, 2), "bqh"),
        **strides("weights", weights, (0, 1, 2), "bqh"),
    }
    config = _config(value, True, candidate, arch)
    constants = {
        "config": config,
        "POINTS": p.points,
        "ALIGN": min(alignment(tensor, (0, 1, 2)) for tensor in (locations, weights)),
        "BLOCK_QUERIES": candidate.block_queries,
    }
    grid = _grid(p.clips, p.queries, p.heads, config, candidate)
    return KernelCall.of(msda_forward_kernel, grid, arguments, constants, candidate.options(arch))


def levels_of(problem: MsdaProblem, tensors: MsdaTensors[Tensor]) -> tuple[Tensor, Tensor]:
    """Shapes and starts of the levels on the device."""
    if problem.spatial_shapes is not None:
        return level_tables(problem.spatial_shapes, tensors.value.device)
    return tensors.spatial_shapes, tensors.level_start_index


def _config(value: Tensor, thin: bool, candidate: Candidate, arch: str) -> Config:
    """How values [..., S, H, D] are stored and read."""
    block_heads = gcd(value.shape[-2], candidate.block_heads)
    head_dim, element = value.shape[-1], value.element_size()
    contiguous = value.stride(-1) == 1
    vector = min(alignment(value, range(value.dim() - 1)) // element, head_dim & -head_dim) if contiguous else 1
    packs = has_packed_arithmetic(arch) and element == 2 and vector >= 2
    return Config(
        D=head_dim,
        BLOCK_CHANNELS=min(padded_head_dim(head_dim), candidate.block_channels),
        BLOCK_HEADS=block_heads,
        CELL_STRIDE=value.stride(-3),
        UNIT_CHANNEL_STRIDE=contiguous,
        VECTOR=vector,
        STORE=min(16 // element, head_dim & -head_dim),
        ARITHMETIC=candidate.arithmetic if packs else "float32",
        UNROLL_POINTS=candidate.unroll_points,
        LOAD_AHEAD=candidate.load_ahead,
        THIN=thin,
        WIDE=(value.shape[-3] * value.stride(-3) + (block_heads - 1) * abs(value.stride(-2))) * element >= 2**32,
        PTX=is_nvidia(arch),
    )


def _grid(rows: int, queries: int, heads: int, config: Config, candidate: Candidate) -> tuple[int, int, int]:
    blocks = -(-queries // candidate.block_queries)
    return blocks * rows, heads // config.BLOCK_HEADS * -(-config.D // config.BLOCK_CHANNELS), 1
