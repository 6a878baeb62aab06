"""Inputs of the operators as arguments that every implementation is given."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stnet.kernels import published_layers
from stnet.kernels.problem import StdaProblem
from stnet.kernels.published_layers import POSITIONS, output_gradient

__all__ = ["POSITIONS", "MsdaInputs", "StdaInputs", "msda_inputs", "output_gradient", "stda_inputs"]


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
        """Return the same numbers in float32."""
        return replace(self, **{name: tensor.detach().float() for name, tensor in vars(self).items()})

    def by_heads(self) -> "StdaInputs":
        """Values stored by heads, `[B, F, H, S, D]`, and seen through a permuted view."""
        value = self.value.detach().transpose(2, 3).contiguous().transpose(2, 3)
        return replace(self, value=value.requires_grad_(self.value.requires_grad))

    def without_value_gradient(self) -> "StdaInputs":
        """Return the same, with no gradient asked for of the values."""
        return replace(self, value=self.value.detach())

    def differentiable(self) -> tuple[Tensor, ...]:
        """Return the tensors whose gradients are asked for."""
        return tuple(tensor for tensor in vars(self).values() if tensor.requires_grad)


@dataclass(frozen=True, kw_only=True)
class MsdaInputs:
    """Tensor arguments of `ms_deform_attn`, named and shaped as there."""

    value: Tensor
    locations: Tensor
    weights: Tensor

    def float(self) -> "MsdaInputs":
        """Return the same numbers in float32."""
        return replace(self, **{name: tensor.detach().float() for name, tensor in vars(self).items()})

    def differentiable(self) -> tuple[Tensor, ...]:
        """Return the tensors whose gradients are asked for."""
        return tuple(tensor for tensor in vars(self).values() if tensor.requires_grad)


def stda_inputs(
    problem: StdaProblem, positions: str, dtype: torch.dtype, device: torch.device, seed: int, *, grad: bool = False
) -> StdaInputs:
    """Return inputs as the model gives them: values by positions, gradients asked for of all but reference points."""
    drawn = published_layers.stda_inputs(problem, dtype, device, seed, positions)._asdict()
    references = drawn.pop("reference_points")
    del drawn["other_reference_points"]  # the same
    drawn = {name: tensor.contiguous().requires_grad_(grad) for name, tensor in drawn.items()}
    return StdaInputs(reference_points=references, **drawn)


def msda_inputs(
    problem: StdaProblem, positions: str, dtype: torch.dtype, device: torch.device, seed: int, *, grad: bool = False
) -> MsdaInputs:
    """Return inputs of the classic operator for a problem of one frame without others."""
    sizes = {name: getattr(problem, name) for name in ("clips", "heads", "head_dim", "queries", "points")}
    classic = published_layers.classic(problem.spatial_shapes, **sizes)
    drawn = published_layers.msda_inputs(classic, dtype, device, seed, positions)
    return MsdaInputs(
        value=drawn.value.contiguous().requires_grad_(grad),
        locations=drawn.sampling_locations.contiguous().requires_grad_(grad),
        weights=drawn.attention_weights.contiguous().requires_grad_(grad),
    )
