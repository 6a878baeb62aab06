"""AdamW with the learning rate groups of the recipe, and the schedule of its learning rates."""

import math

import torch
from torch import nn

from stnet.training.config import TrainConfig

# Matched as substrings, so the temporal offsets are slow as well.
SLOW_NAMES = ("sampling_offsets", "reference_points")
COSINE_FLOOR = 0.01


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in three groups: backbone, slow ones and the rest."""
    groups: dict[str, list[nn.Parameter]] = {"main": [], "backbone": [], "slow": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[group_of(name)].append(parameter)
    rates = {
        "main": config.learning_rate,
        "backbone": config.backbone_learning_rate,
        "slow": config.learning_rate * config.offsets_factor,
    }
    listed = [
        {"name": name, "params": parameters, "lr": rates[name], "peak_lr": rates[name]}
        for name, parameters in groups.items()
        if parameters
    ]
    fused = all(parameter.is_cuda for group in listed for parameter in group["params"])
    return torch.optim.AdamW(listed, weight_decay=config.weight_decay, fused=fused)


def group_of(name: str) -> str:
    """Learning rate group of a parameter of a TrainedModel, by its name."""
    if name.startswith("detector.backbone."):
        return "backbone"
    return "slow" if any(part in name for part in SLOW_NAMES) else "main"


def rate_factor(step: int, progress: float, config: TrainConfig) -> float:
    """Share of the peak learning rate used in step `step` (from 0), at `progress` (0 to 1) of the training."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "step":
        return warmup * (1.0 if progress < config.drop_at else 0.1)
    return warmup * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group to its peak rate times the factor; the schedule keeps no state of its own."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
