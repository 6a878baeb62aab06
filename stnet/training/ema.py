"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Keeps a copy of a model whose weights follow it slowly.

    Early on the average is short (decay (1 + step) / (10 + step)), so that it forgets the random start.

    Args:
        model: the model to follow, not wrapped for several processes.
        decay: of the long run, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights after optimizer step `step` (from 0); counters are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in averaged.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floating], [current[name] for name in floating], 1 - decay)
        for name in averaged.keys() - set(floating):
            averaged[name].copy_(current[name])
