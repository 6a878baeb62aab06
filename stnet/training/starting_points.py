"""Weights a training starts from, and parts that are not trained."""

from dataclasses import dataclass

from torch import nn

from stnet.errors import ConfigError
from stnet.model.checkpoint import read_checkpoint, resolve
from stnet.model.detector import Detector
from stnet.model.pretrained import load_backbone

IMAGENET = "imagenet"
PARTS = {
    "backbone": ("backbone.",),
    "encoder": ("encoder.", "input_proj.", "level_embed"),
    "decoder": ("decoder.",),
    "heads": ("decoder.class_heads.", "decoder.box_heads."),
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was taken from a checkpoint: `taken` parameters, and the names of those that did not fit or were absent."""

    taken: int
    different: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def brings(self, part: str) -> bool:
        """Whether all of `part` was taken."""
        return not any(name.startswith(PARTS[part]) for name in (*self.different, *self.missing))

    def summary(self) -> str:
        """Return what was taken and what was not, in lines."""
        lines = [f"{self.taken} tensors taken"]
        for what, names in (
            ("kept their random start, shapes differ", self.different),
            ("kept their random start, absent from the file", self.missing),
            ("of the file not used", self.unused),
        ):
            if names:
                lines.append(f"  {len(names)} {what}: {', '.join(names)}")
        return "\n".join(lines)


def first_weights(model: Detector, checkpoint: str, backbone_weights: str) -> Start | None:
    """Give a new model its backbone's weights and, over them, what fits of a checkpoint; "" for either: none.

    A checkpoint that brings the whole backbone leaves nothing for its weights, whose package need not be there then.

    Raises:
        CheckpointError: for weights that cannot be had, or read safely.
        ConfigError: where nothing of the checkpoint fits.
    """
    start = start_from(model, checkpoint) if checkpoint else None
    if not backbone_weights or (start and start.brings("backbone")):
        return start
    load_backbone_weights(model, backbone_weights)
    return start_from(model, checkpoint) if checkpoint else None


def start_from(model: Detector, path: str) -> Start:
    """Take from a checkpoint what fits the model.

    Args:
        model: changed in place.
        path: own `.safetensors` or a shipped name, or a published STNet or Deformable DETR `.pth`.

    Raises:
        CheckpointError: for a file that cannot be read safely.
        ConfigError: where nothing fits.
    """
    theirs = read_checkpoint(resolve(path)).state
    own = model.state_dict()
    fitting = {name: value for name, value in theirs.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        raise ConfigError(f"start_from {path}: none of its {len(theirs)} tensors fits this model")
    model.load_state_dict(fitting, strict=False)
    return Start(
        taken=len(fitting),
        different=tuple(name for name in theirs if name in own and name not in fitting),
        missing=tuple(name for name in own if name not in theirs),
        unused=tuple(name for name in theirs if name not in own),
    )


def load_backbone_weights(model: Detector, source: str) -> None:
    """Load weights: "imagenet" for the default weights of the model's backbone, a name, or a file.

    Raises:
        CheckpointError: where they cannot be had, or do not fit.
    """
    load_backbone(model.backbone, model.config.backbone if source == IMAGENET else source)


def freeze(model: nn.Module, parts: tuple[str, ...]) -> int:
    """Keep parts from training; returns the number of parameters that still train.

    Raises:
        ConfigError: where nothing is left to train.
    """
    prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
    for name, parameter in model.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad_(False)
    left = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not left:
        raise ConfigError(f"freeze {', '.join(parts)}: nothing is left to train")
    return left
