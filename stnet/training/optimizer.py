"""The recipe's optimizer with its learning rate groups, and the schedule of its learning rates."""

import math
from typing import Any

import torch
from torch import nn

from stnet.training.config import TrainConfig
from stnet.training.muon import JointOptimizer, Muon

# Matched as substrings, so the temporal offsets are slow as well.
SLOW_NAMES = ("sampling_offsets", "reference_points")
# Rows of embeddings and of class heads stand for themselves.
NO_MATRICES = ("embed", "class_heads")
STACKED_NAME = "in_proj_weight"  # query, key and value projection, one above the other
COSINE_FLOOR = 0.01


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer | JointOptimizer:
    """Return the recipe's optimizer of the trainable parameters, in groups by rate: backbone, slow and the rest.

    Under "muon" AdamW keeps what is no matrix, the slow ones, embeddings and class heads.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {
        name: weight for name, weight in trained.items() if config.optimizer == "muon" and _is_matrix(name, weight)
    }
    others = {name: parameter for name, parameter in trained.items() if name not in matrices}
    fused = all(parameter.is_cuda for parameter in others.values())
    adamw = torch.optim.AdamW(_groups(others, config), weight_decay=config.weight_decay, fused=fused)
    if not matrices:
        return adamw
    stacked = {name: weight for name, weight in matrices.items() if STACKED_NAME in name}
    single = {name: weight for name, weight in matrices.items() if name not in stacked}
    groups = [*_groups(single, config), *({**group, "parts": 3} for group in _groups(stacked, config))]
    return JointOptimizer(adamw, Muon(groups, weight_decay=config.weight_decay))


def _groups(parameters: dict[str, nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    rates = {
        "main": config.learning_rate,
        "backbone": config.backbone_learning_rate,
        "slow": config.learning_rate * config.offsets_factor,
    }
    members = {group: [p for name, p in parameters.items() if group_of(name) == group] for group in rates}
    return [
        {"name": group, "params": members[group], "lr": rate, "peak_lr": rate}
        for group, rate in rates.items()
        if members[group]
    ]


def _is_matrix(name: str, weight: nn.Parameter) -> bool:
    return weight.ndim >= 2 and group_of(name) != "slow" and not any(part in name for part in NO_MATRICES)


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
