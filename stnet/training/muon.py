"""Muon: momentum whose matrices are made orthogonal before every update (Jordan et al., 2024).

AdamW scales every number of a weight by itself; Muon gives all directions of a weight matrix the same length, so rare
directions are learned as fast as frequent ones. PyTorch's own `torch.optim.Muon` takes single matrices alone and makes
some twenty launches for each; here convolutions count as matrices, and equal shapes are taken in one batch.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a Newton-Schulz iteration that is steepest at zero


class Muon(torch.optim.Optimizer):
    """Updates weights of two or more dimensions, each seen as one matrix `[out, everything else]`.

    The root mean square of an update is about the learning rate, as of AdamW's first steps, so one rate serves both
    (Liu et al., Muon is scalable for LLM training, 2025, use a fifth of that).

    Args:
        groups: parameter groups; `parts` of a group says how many equal matrices lie stacked in each of its weights.
        lr: learning rate of groups without one.
        weight_decay: decoupled, as AdamW's.

    Raises:
        ValueError: for a parameter with fewer than two dimensions, or one that `parts` does not divide.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float = 1e-3, weight_decay: float = 0.0):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "parts": 1})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim < 2 or weight.shape[0] % group["parts"]:
                    raise ValueError(f"Muon: no {group['parts']} matrices in a weight of shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(tuple(weight.shape), []).append(weight)
            for weights in by_shape.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights]
        momenta = [self._momentum(weight) for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        matrices = torch.stack([update.reshape(group["parts"], -1, update[0].numel()) for update in ahead])
        steps = orthogonal(matrices).to(weights[0].dtype).unbind(0)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        steps = [step.reshape(weight.shape) for step, weight in zip(steps, weights, strict=True)]
        # The root mean square of an orthogonal matrix is one over the root of its longer side.
        torch._foreach_add_(weights, steps, alpha=-group["lr"] * max(matrices.shape[-2:]) ** 0.5)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        return state["momentum"]


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factor of matrices `[..., M, N]`: singular values that matter end up in 0.7 to 1.2.

    Computed in bfloat16 on a GPU, which is enough for a direction.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class JointOptimizer:
    """Several optimizers, each with its own parameters, used as one."""

    def __init__(self, *members: torch.optim.Optimizer):
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Let every member make one update."""
        for member in self.members:
            member.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every member."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
