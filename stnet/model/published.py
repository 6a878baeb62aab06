"""The published checkpoints (MICCAI 2023, and Deformable DETR's layout): their names of parameters, their settings."""

import argparse
import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stnet.console import printable
from stnet.errors import CheckpointError, ConfigError
from stnet.model.config import ModelConfig

# Published name -> own name, tried in order on every key.
RENAMES = (
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^transformer\.level_embed$", "level_embed"),
    (r"^transformer\.reference_points\.", "decoder.reference_points."),
    (r"^query_embed\.", "decoder.query_embed."),
    (r"^class_embed\.", "decoder.class_heads."),
    (r"^bbox_embed\.", "decoder.box_heads."),
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.norm1\.", r"\1.norm."),
    (r"^(encoder\.layers\.\d+)\.norm2\.", r"\1.feedforward.norm."),
    (r"^(decoder\.layers\.\d+)\.self_attn\.", r"\1.self_attention."),
    (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.attention."),
    (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.norm."),
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.norm3\.", r"\1.feedforward.norm."),
    (r"^((?:en|de)coder\.layers\.\d+)\.linear([12])\.", r"\1.feedforward.linear\2."),
)
REPEATED = "transformer.decoder.bbox_embed."
"""Where files with box refinement list the box heads once more."""


def rename_published(key: str) -> str:
    """Return the name in `Detector` of a parameter of the published model (or of Deformable DETR)."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def refines_boxes(state: Mapping[str, Tensor]) -> bool:
    """Return whether the parameters are those of a model with box refinement."""
    return any(key.startswith(REPEATED) for key in state)


def renamed(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return published parameters under the names of `Detector`.

    Raises:
        CheckpointError: a parameter is repeated with other numbers.
    """
    refine, result = refines_boxes(state), {}
    for key, value in state.items():
        original = key.removeprefix("transformer.decoder.") if key.startswith(REPEATED) else key
        if not refine:  # all layers share one head, listed once for each
            original = re.sub(r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0.", original)
        name = rename_published(original)
        if name in result and not torch.equal(result[name], value):
            raise CheckpointError(
                f"{path}: {printable(key)} repeats {printable(original)} with other numbers; the file is inconsistent"
            )
        result[name] = value
    return result


def published_config(arguments: Any, state: Mapping[str, Tensor], refine: bool, path: Path) -> ModelConfig:
    """Return the configuration of a published checkpoint.

    Args:
        arguments: the `argparse.Namespace` of its training, where the file has one.
        state: its parameters, under the names of `Detector`.
        refine: whether it refines boxes.
        path: the file.

    Raises:
        CheckpointError: a setting that no model can have.
    """
    settings: dict[str, Any] = {"box_refine": refine}
    frames = getattr(arguments, "num_frames", None) if isinstance(arguments, argparse.Namespace) else None
    queries = state.get("decoder.query_embed.weight")
    if queries is not None and queries.dim() == 2:
        settings["queries"] = max(1, queries.shape[0])
    try:
        if frames is not None:
            settings["frames"] = operator.index(frames)
        return replace(ModelConfig.preset("paper"), **settings)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: args.num_frames is {frames!r}; expected 1 to 64 frames a clip") from error
