"""Weights a training starts from, and parts that are not trained."""

from dataclasses import dataclass

from torch import Tensor, nn

from stnet.errors import ConfigError
from stnet.model.checkpoint import Checkpoint, read_checkpoint, resolve
from stnet.model.detector import Detector
from stnet.model.pretrained import load_backbone

IMAGENET = "imagenet"
CLASS_HEADS = "decoder.class_heads."
PARTS = {
    "backbone": ("backbone.",),
    "encoder": ("encoder.", "input_proj.", "level_embed"),
    "decoder": ("decoder.",),
    "heads": (CLASS_HEADS, "decoder.box_heads."),
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was taken from a checkpoint: `taken` parameters, and the names of those that did not fit or were absent."""

    taken: int
    different: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def brings(self, part: str) -> bool:
        """Return whether all of `part` was taken."""
        return not any(name.startswith(PARTS[part]) for name in (*self.different, *self.missing))

    def summary(self) -> str:
        """Return what was taken and what was not, in lines."""
        lines = [f"{self.taken} tensors taken"]
        for what, names in (
            ("kept their random start, shapes or classes differ", self.different),
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
    """Take from a checkpoint what fits the model: of its class heads the rows of the same classes, or nothing.

    Args:
        model: changed in place.
        path: own `.safetensors` or a shipped name, or a published STNet or Deformable DETR `.pth`.

    Raises:
        CheckpointError: for a file that cannot be read safely.
        ConfigError: where nothing fits.
    """
    checkpoint = read_checkpoint(resolve(path))
    theirs, own = _in_order_of_classes(checkpoint, model.config.class_names), model.state_dict()
    other_classes = set(checkpoint.config.class_names) != set(model.config.class_names)
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in own and value.shape == own[name].shape and not (other_classes and name.startswith(CLASS_HEADS))
    }
    if not fitting:
        raise ConfigError(f"start_from {path}: none of its {len(theirs)} tensors fits this model")
    model.load_state_dict(fitting, strict=False)
    return Start(
        taken=len(fitting),
        different=tuple(name for name in theirs if name in own and name not in fitting),
        missing=tuple(name for name in own if name not in theirs),
        unused=tuple(name for name in theirs if name not in own),
    )


def _in_order_of_classes(checkpoint: Checkpoint, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the checkpoint's weights with the same classes in another order, where they are the same."""
    before = checkpoint.config.class_names
    if before == names or set(before) != set(names):
        return checkpoint.state
    order = [0, *(1 + before.index(name) for name in names)]  # logit 0 is never used
    return {name: x[order] if name.startswith(CLASS_HEADS) else x for name, x in checkpoint.state.items()}


def load_backbone_weights(model: Detector, source: str) -> None:
    """Load weights: "imagenet" for the default weights of the model's backbone, a name, or a file.

    Raises:
        CheckpointError: where they cannot be had, or do not fit.
    """
    load_backbone(model.backbone, model.config.backbone if source == IMAGENET else source)


def freeze(model: nn.Module, parts: tuple[str, ...]) -> int:
    """Keep parts from training; return the number of parameters that still train.

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
