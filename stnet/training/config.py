"""The training recipe: one frozen data class, its presets and its JSON form.

Defaults live here alone; the command line derives its options, types and help texts from these fields.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stnet.choices import CLASS_LOSSES, DEFENCE_GROUPS
from stnet.errors import ConfigError
from stnet.json_settings import changed_settings, settings_from_json
from stnet.model.config import ModelConfig

AUGMENTATIONS = ("none", "paper", "improved", "stills")
PRECISIONS = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("step", "cosine")
BEST_METRICS = ("ap", "ap50", "ap75", "agnostic_ap", "agnostic_ap50", "agnostic_ap75")
FREEZABLE = ("backbone", "encoder", "decoder", "heads")


def setting(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """Return a field with its help text and, where only some values are possible, those."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. The defaults are the published recipe (preset `paper`)."""

    model: ModelConfig = field(default_factory=ModelConfig)

    epochs: int = setting(50, "passes over the training clips")
    minutes: float = setting(0.0, "end after this long, the learning rate falling with time; 0: never")
    patience: int = setting(0, "end after so many evaluations without a better one; 0: never")
    batch_size: int = setting(1, "clips per optimizer step, over all processes and accumulation steps")
    accumulate: int = setting(1, "forward and backward passes a step is split into, to save memory")
    clips_per_epoch: int = setting(0, "clips drawn per epoch; 0: one around every annotated frame")
    targets: int = setting(3, "frames of a clip that are supervised: up to 3 local ones, then global ones")
    augmentation: str = setting("paper", "augmentation of training clips; stills: moves them", AUGMENTATIONS)
    without_defences: tuple[str, ...] = setting(
        (), "what augmentation stills leaves out, to measure what it brings", DEFENCE_GROUPS
    )
    seed: int = setting(0, "seed of initialization, order, clip sampling and augmentation")

    optimizer: str = setting("adamw", "muon: weight matrices by Muon, the rest by AdamW", OPTIMIZERS)
    learning_rate: float = setting(5e-5, "learning rate of all but the backbone")
    backbone_learning_rate: float = setting(2e-5, "learning rate of the backbone")
    offsets_factor: float = setting(0.1, "learning rate factor of sampling offsets and reference points")
    weight_decay: float = setting(1e-4, "decoupled weight decay")
    clip_norm: float = setting(0.1, "gradients are scaled down to this norm; 0: never")
    schedule: str = setting("step", "step: tenfold drop; cosine: half a period to one hundredth", SCHEDULES)
    drop_at: float = setting(0.8, "where the step schedule drops, as a share of the training")
    warmup_steps: int = setting(0, "steps over which the learning rate rises linearly from zero")
    ema_decay: float = setting(0.0, "exponential moving average of the weights; 0: none")

    auxiliary_losses: bool = setting(True, "supervise every decoder layer, not only the last")
    auxiliary_repeats: int = setting(1, "queries per lesion in the layers before the last")
    denoising: int = setting(0, "noised copies of every lesion that the decoder must restore; 0: none")
    class_loss: str = setting("focal", "quality: the score to learn is the overlap", CLASS_LOSSES)

    backbone_weights: str = setting(
        "imagenet", "weights for the backbone: 'imagenet', lite0 to lite2, a torchvision name or a file"
    )
    start_from: str = setting(
        "", "checkpoint to start from, a file or a shipped name; what fits is taken, the rest is listed"
    )
    freeze: tuple[str, ...] = setting((), "parts that keep their weights", FREEZABLE)

    precision: str = setting("float32", "arithmetic of the forward pass (autocast)", PRECISIONS)
    checkpoint_activations: bool = setting(False, "recompute encoder layers in backward to save memory")

    evaluate_every: int = setting(1, "epochs between evaluations; the last epoch is always evaluated")
    best_metric: str = setting("ap", "decides which checkpoint is the best", BEST_METRICS)
    score_threshold: float = setting(0.5, "operating point of recall and false positives per frame")
    video_threshold: float = setting(0.5, "operating point of sensitivity and specificity of whole videos")

    def __repr__(self) -> str:
        return changed_settings(self)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulate", "evaluate_every", "auxiliary_repeats"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "clips_per_epoch",
            "warmup_steps",
            "denoising",
            "minutes",
            "patience",
            "weight_decay",
            "clip_norm",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("learning_rate", "backbone_learning_rate", "offsets_factor"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "at least 0 and below 2^63")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")
        _require(0 < self.drop_at <= 1, "drop_at", self.drop_at, "above 0 and at most 1")
        for name in ("score_threshold", "video_threshold"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        _require(
            1 <= self.targets <= self.model.frames,
            "targets",
            self.targets,
            f"from 1 to the {self.model.frames} frames of a clip",
        )
        _require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"a divisor of the batch size {self.batch_size}",
        )
        for known in dataclasses.fields(self):
            choices = known.metadata.get("choices")
            value = getattr(self, known.name)
            for item in value if isinstance(value, tuple) else (value,):
                _require(not choices or item in choices, known.name, item, f"one of {', '.join(choices or ())}")

    @classmethod
    def preset(cls, name: str) -> "TrainConfig":
        """One of PRESETS.

        Raises:
            ConfigError: for any other name.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset {name!r} is none of {', '.join(PRESETS)}")
        return PRESETS[name]()

    def replace(self, **changes: Any) -> "TrainConfig":
        """Return a copy with some settings changed; checked like any other."""
        return dataclasses.replace(self, **changes)

    def without_folders(self) -> "TrainConfig":
        """Return the recipe as weights tell it to others: files by their names, without where they lie."""
        return self.replace(start_from=Path(self.start_from).name, backbone_weights=Path(self.backbone_weights).name)

    def to_json(self) -> str:
        """Return a JSON object of all settings."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, source: str = "training configuration") -> "TrainConfig":
        """Return what `to_json` wrote; absent settings keep their defaults.

        Raises:
            ConfigError: for text that is no JSON object, unknown settings and values of the wrong type.
        """
        return settings_from_json(cls, text, source)


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")


def _improved() -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(duplicate_iou=0.5),  # several queries learn to find each lesion
        batch_size=8,
        augmentation="improved",
        optimizer="muon",
        learning_rate=2e-4,
        backbone_learning_rate=4e-5,
        schedule="cosine",
        warmup_steps=1000,
        ema_decay=0.9997,
        auxiliary_repeats=4,
        class_loss="quality",
        precision="bfloat16",
    )


def _tiny() -> TrainConfig:
    return TrainConfig(
        model=ModelConfig.preset("tiny"),
        epochs=12,
        batch_size=4,
        clips_per_epoch=2000,
        targets=4,
        optimizer="muon",
        learning_rate=5e-4,
        backbone_learning_rate=5e-4,
        schedule="cosine",
        warmup_steps=100,
        ema_decay=0.998,
        auxiliary_repeats=4,
        class_loss="quality",
        backbone_weights="",
        best_metric="agnostic_ap50",
    )


def _lite0() -> TrainConfig:
    return TrainConfig(
        model=ModelConfig.preset("lite0"),
        epochs=12,
        batch_size=8,
        accumulate=2,
        clips_per_epoch=4000,
        augmentation="stills",
        optimizer="muon",
        learning_rate=5e-4,
        backbone_learning_rate=2e-4,
        schedule="cosine",
        warmup_steps=200,
        ema_decay=0.999,
        auxiliary_repeats=4,
        class_loss="quality",
        best_metric="agnostic_ap",
    )


PRESETS = {"paper": TrainConfig, "improved": _improved, "lite0": _lite0, "tiny": _tiny}
