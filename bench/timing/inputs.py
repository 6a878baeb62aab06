"""Random inputs of the operators, at positions as in a fresh model's worst case or as in a trained one."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stnet.kernels.problem import StdaProblem

POSITIONS = ("near", "uniform")
"""near: a few cells from the reference point, as trained layers sample; uniform: anywhere, worst for caches."""

SPREAD = 2.0  # standard deviation of near offsets, in cells
JITTER = 0.003  # width of the noise on encoder reference points, in units of the frame
BOX_SIDE = 0.2  # mean width and height of a decoder query's reference box


@dataclass(frozen=True, kw_only=True)
class StdaInputs:
    """Tensor arguments of `spatial_temporal_deform_attn`, named and shaped as there."""

    value: Tensor
    reference_points: Tensor
    offsets: Tensor
    logits: Tensor
    other_offsets: Tensor
    other_logits: Tensor

    def float(self) -> "StdaInputs":
        """The same numbers in float32."""
        return replace(self, **{name: tensor.detach().float() for name, tensor in vars(self).items()})

    def by_heads(self) -> "StdaInputs":
        """Values stored by heads, `[B, F, H, S, D]`, and seen through a permuted view."""
        value = self.value.detach().transpose(2, 3).contiguous().transpose(2, 3)
        return replace(self, value=value.requires_grad_(self.value.requires_grad))

    def differentiable(self) -> tuple[Tensor, ...]:
        """The tensors whose gradients are asked for."""
        return tuple(tensor for tensor in vars(self).values() if tensor.requires_grad)


@dataclass(frozen=True, kw_only=True)
class MsdaInputs:
    """Tensor arguments of `ms_deform_attn`, named and shaped as there."""

    value: Tensor
    locations: Tensor
    weights: Tensor

    def float(self) -> "MsdaInputs":
        """The same numbers in float32."""
        return replace(self, **{name: tensor.detach().float() for name, tensor in vars(self).items()})

    def differentiable(self) -> tuple[Tensor, ...]:
        """The tensors whose gradients are asked for."""
        return tuple(tensor for tensor in vars(self).values() if tensor.requires_grad)


def stda_inputs(
    problem: StdaProblem, positions: str, dtype: torch.dtype, device: torch.device, seed: int, *, grad: bool = False
) -> StdaInputs:
    """Inputs in the mix the model uses: everything in `dtype` but float32 reference points."""
    draw = _Drawer(dtype, device, seed)
    p, queries = problem, (problem.clips, problem.targets, problem.queries)
    references = _references(p, draw).expand(p.clips, p.targets, -1, -1, -1).contiguous()
    own, others = (p.heads, p.levels, p.points), (p.heads, p.other_frames, p.levels, p.other_points)
    tensors = {
        "value": draw.normal(p.clips, p.source_frames, p.positions, p.heads, p.head_dim),
        "offsets": _offsets(p, positions, references, draw, (*queries, *own)),
        "logits": draw.normal(*queries, *own),
        "other_offsets": _offsets(p, positions, references, draw, (*queries, *others)),
        "other_logits": draw.normal(*queries, *others),
    }
    return StdaInputs(reference_points=references, **{name: x.requires_grad_(grad) for name, x in tensors.items()})


def msda_inputs(
    problem: StdaProblem, positions: str, dtype: torch.dtype, device: torch.device, seed: int, *, grad: bool = False
) -> MsdaInputs:
    """Values and weights in `dtype`, locations in float32 (in 16 bits they would be off by up to a cell)."""
    draw = _Drawer(dtype, device, seed)
    p = problem
    shape = (p.clips, 1, p.queries, p.heads, p.levels, p.points)
    references = _references(p, draw).expand(p.clips, 1, -1, -1, -1)
    offsets = _offsets(p, positions, references, draw, shape).float()
    locations = references[:, :, :, None, :, None] + offsets / _level_sizes(p, draw)
    weights = draw.normal(*shape[:-2], p.levels * p.points).softmax(-1).view(shape)
    return MsdaInputs(
        value=draw.normal(p.clips, p.positions, p.heads, p.head_dim).requires_grad_(grad),
        locations=locations[:, 0].contiguous().requires_grad_(grad),
        weights=weights[:, 0].contiguous().requires_grad_(grad),
    )


def output_gradient(output: Tensor) -> Tensor:
    """The same random numbers for every output of one shape and device, in its dtype.

    Random, because behind a LayerNorm the gradients of simple sums cancel to nothing but rounding errors.
    """
    generator = torch.Generator(output.device).manual_seed(0)
    return torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)


class _Drawer:
    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int):
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)


def _references(problem: StdaProblem, draw: _Drawer) -> Tensor:
    """float32 [1, 1, Q, L, R]: cell centres where every position is a query, else random points or boxes."""
    if problem.queries == problem.positions:
        centres = [
            torch.stack(torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1)
            for h, w in problem.spatial_shapes
        ]
        points = torch.cat([c.flatten(0, 1) for c in centres]).to(draw.device)
        # Off the centres: 16-bit offsets would else put many samples on cell borders, where gradients jump.
        points = points + JITTER * (draw.uniform(*points.shape) - 0.5)
    else:
        points = draw.uniform(problem.queries, 2)
    if problem.components == 4:
        points = torch.cat([points, BOX_SIDE * (0.5 + draw.uniform(problem.queries, 2))], dim=-1)
    return points[None, None, :, None].expand(-1, -1, -1, problem.levels, -1)


def _offsets(problem: StdaProblem, positions: str, references: Tensor, draw: _Drawer, shape: tuple[int, ...]) -> Tensor:
    """Offsets [*shape, 2], in cells, or with 4-component references in multiples of (w, h) / (2 n)."""
    if positions == "near":
        return draw.normal(*shape, 2).mul_(SPREAD)
    centre = references[..., :2].view(*references.shape[:3], *([1] * (len(shape) - 5)), problem.levels, 1, 2)
    distance = draw.uniform(*shape, 2) - centre
    if problem.components == 2:
        return (distance * _level_sizes(problem, draw)).to(draw.dtype)
    box = references[..., 2:].view(centre.shape)
    return (distance / (0.5 * box) * shape[-1]).to(draw.dtype)


def _level_sizes(problem: StdaProblem, draw: _Drawer) -> Tensor:
    """float32 [L, 1, 2] (w, h)."""
    return torch.tensor([(w, h) for h, w in problem.spatial_shapes], dtype=torch.float32, device=draw.device)[:, None]
