"""The layers of the published detectors: their sizes, and inputs as a trained network has.

What is compiled, tuned and measured: the encoder and decoder layers of STNet, and the classic operator on the levels of
one frame, as an encoder layer of Deformable DETR has it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors, default_frame_table

HEADS, HEAD_DIM, POINTS = 8, 32, 4
FRAMES = 6  # of a clip
DECODED_FRAMES = 3  # targets of the decoder
ENCODER_OTHER_POINTS, DECODER_OTHER_POINTS = 2, 4
QUERIES = 300  # of the decoder, for each target
IMAGE = (512, 512)

POSITIONS = ("near", "uniform")
"""near: a few cells from the reference point, as trained layers sample; uniform: anywhere, worst for caches."""

_SPREAD = 2.0  # standard deviation of near offsets, in cells
_JITTER = 0.003  # width of the noise on encoder reference points, in units of the frame
_BOX_SIDE = 0.2  # mean width and height of a decoder query's reference box


def level_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return (h, w) of the levels of strides 8, 16, 32 and 64 of an image."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64))


def encoder(shapes: Sequence[tuple[int, int]] = level_shapes(*IMAGE), **sizes) -> StdaProblem:
    """Return the problem of an encoder layer, whose queries are the positions of all frames; `sizes` replace others."""
    frames = sizes.get("source_frames", FRAMES)
    own = {"targets": frames, "queries": _positions(shapes), "other_points": ENCODER_OTHER_POINTS, "components": 2}
    return _stda(shapes, own | sizes)


def decoder(shapes: Sequence[tuple[int, int]] = level_shapes(*IMAGE), **sizes) -> StdaProblem:
    """Return the problem of a decoder layer, whose queries have reference boxes; `sizes` replace others."""
    own = {"targets": DECODED_FRAMES, "queries": QUERIES, "other_points": DECODER_OTHER_POINTS, "components": 4}
    return _stda(shapes, own | sizes)


def classic(shapes: Sequence[tuple[int, int]] = level_shapes(*IMAGE), **sizes) -> MsdaProblem:
    """Return the problem of the classic operator in an encoder layer; `sizes` replace others."""
    positions = _positions(shapes)
    own = {"clips": 1, "heads": HEADS, "head_dim": HEAD_DIM, "queries": positions, "points": POINTS}
    return MsdaProblem(**own | sizes, positions=positions, levels=len(shapes), spatial_shapes=tuple(shapes))


def _stda(shapes: Sequence[tuple[int, int]], sizes: dict[str, int]) -> StdaProblem:
    common = {"clips": 1, "source_frames": FRAMES, "heads": HEADS, "head_dim": HEAD_DIM, "points": POINTS}
    sizes = common | sizes
    frames = sizes["source_frames"]
    return StdaProblem(
        **sizes,
        positions=_positions(shapes),
        other_frames=frames - 1,
        spatial_shapes=tuple(shapes),
        frame_table=default_frame_table(sizes["targets"], frames, frames - 1),
    )


def _positions(shapes: Sequence[tuple[int, int]]) -> int:
    return sum(height * width for height, width in shapes)


def stda_inputs(
    problem: StdaProblem, dtype: torch.dtype, device: torch.device | str, seed: int, positions: str = "near"
) -> StdaTensors[Tensor]:
    """Return inputs in the mix the model uses: everything in `dtype` but float32 reference points, values by heads."""
    draw, shapes = _Drawer(dtype, device, seed), problem.tensor_shapes
    references = _references(problem, draw)
    return StdaTensors(
        value=draw.by_heads(shapes.value),
        reference_points=references.expand(shapes.reference_points).contiguous(),
        offsets=_offsets(problem.spatial_shapes, positions, references, draw, shapes.offsets),
        logits=draw.normal(shapes.logits),
        other_offsets=_offsets(problem.spatial_shapes, positions, references, draw, shapes.other_offsets),
        other_logits=draw.normal(shapes.other_logits),
        other_reference_points=references.expand(shapes.reference_points).contiguous(),
    )


def msda_inputs(
    problem: MsdaProblem, dtype: torch.dtype, device: torch.device | str, seed: int, positions: str = "near"
) -> MsdaTensors[Tensor]:
    """Return values and weights in `dtype`, locations in float32: in 16 bits they would be off by up to a cell."""
    draw, shapes = _Drawer(dtype, device, seed), problem.tensor_shapes
    references = _references(problem, draw)[:, 0]
    offsets = _offsets(problem.spatial_shapes, positions, references, draw, shapes.sampling_locations).float()
    weights = draw.normal(shapes.attention_weights).flatten(3).softmax(-1).view(shapes.attention_weights)
    return MsdaTensors(
        value=draw.by_heads(shapes.value),
        sampling_locations=references[:, :, None, :, None] + offsets / _sizes(problem.spatial_shapes, device),
        attention_weights=weights,
    )


def output_gradient(output: Tensor) -> Tensor:
    """Return the same random numbers for every output of one shape and device, in its dtype.

    Random, because behind a LayerNorm the gradients of simple sums cancel to nothing but rounding errors.
    """
    return _Drawer(output.dtype, output.device, 0).normal(output.shape)


class _Drawer:
    def __init__(self, dtype: torch.dtype, device: torch.device | str, seed: int):
        self.dtype, self.device = dtype, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.options = {"generator": self.generator, "device": self.device, "dtype": torch.float32}

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, **self.options).to(self.dtype)

    def by_heads(self, shape: Sequence[int]) -> Tensor:
        """Values [..., S, H, D] stored as [..., H, S, D]."""
        *rest, positions, heads, head_dim = shape
        return self.normal((*rest, heads, positions, head_dim)).transpose(-3, -2)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(shape, **self.options)


def _references(problem: StdaProblem | MsdaProblem, draw: _Drawer) -> Tensor:
    """float32 [1, 1, Q, L, R]: cell centres where every position is a query, else random points or boxes."""
    if problem.queries == problem.positions:
        points = torch.cat([_centres(*shape, draw.device) for shape in problem.spatial_shapes])
        # Off the centres: 16-bit offsets would else put many samples on cell borders, where gradients jump.
        points = points + _JITTER * (draw.uniform(points.shape) - 0.5)
    else:
        points = draw.uniform((problem.queries, 2))
    if getattr(problem, "components", 2) == 4:
        points = torch.cat([points, _BOX_SIDE * (0.5 + draw.uniform((problem.queries, 2)))], dim=-1)
    return points[None, None, :, None].expand(-1, -1, -1, problem.levels, -1)


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return torch.cartesian_prod(y, x).flip(1)


def _offsets(
    spatial_shapes: Sequence[tuple[int, int]],
    positions: str,
    references: Tensor,  # [1, (1,) Q, L, R]
    draw: _Drawer,
    shape: tuple[int, ...],  # [B, (T,) Q, H, (W,) L, P, 2]
) -> Tensor:
    """Offsets in cells, or with 4-component references in multiples of (w, h) / (2 P)."""
    if positions == "near":
        return draw.normal(shape).mul_(_SPREAD)
    *query, levels, components = references.shape
    references = references.view(*query, *[1] * (len(shape) - len(query) - 3), levels, 1, components)
    distance = draw.uniform(shape) - references[..., :2]
    if components == 2:
        return (distance * _sizes(spatial_shapes, draw.device)).to(draw.dtype)
    return (distance / (0.5 * references[..., 2:]) * shape[-2]).to(draw.dtype)


def _sizes(spatial_shapes: Sequence[tuple[int, int]], device: torch.device | str) -> Tensor:
    """float32 [L, 1, 2] (w, h)."""
    return torch.tensor([(w, h) for h, w in spatial_shapes], dtype=torch.float32, device=device)[:, None]
