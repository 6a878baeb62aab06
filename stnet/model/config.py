"""The one description of a model: everything its weights depend on, and the image size they were made for."""

import dataclasses
import json
from dataclasses import dataclass

from stnet.errors import ConfigError
from stnet.json_settings import changed_settings, settings_from_json

BACKBONES = ("resnet10", "resnet18", "resnet34", "resnet50", "lite0", "lite1", "lite2")
BACKBONE_NORMS = ("frozen_batch", "batch", "group")
BACKBONE_INPUTS = ("imagenet", "half_range")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a `Detector`. The defaults are the published STNet (MICCAI 2023).

    Raises:
        ConfigError: a value that no model can be built from, with the field and the value.
    """

    backbone: str = "resnet50"
    backbone_width: int = 64  # of a ResNet's stem; layer1 to layer4 have 1, 2, 4, 8 times as many (x4 for resnet50)
    backbone_norm: str = "frozen_batch"  # frozen_batch (nothing before stride 8 is trained) | batch | group
    backbone_input: str = (
        "imagenet"  # what its weights know: ImageNet's mean and deviation | half_range: (x - 127) / 128
    )
    hidden_dim: int = 256
    heads: int = 8
    feedforward_dim: int = 1024
    dropout: float = 0.1
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 300  # object queries per target frame
    frames: int = 6  # frames of a clip; every frame attends to the frames - 1 others
    encoder_points: int = 4  # samples per level and head in the own frame
    encoder_other_points: int = 2  # samples per level and head in each other frame
    decoder_points: int = 4
    decoder_other_points: int = 4
    box_refine: bool = True  # each decoder layer refines the boxes of the one before
    class_names: tuple[str, ...] = ("benign", "malignant")  # category ids 1, 2, ...
    image_size: int = 512  # short side of the frames at test time, in pixels
    max_image_size: int = 1333  # longest side at test time, in pixels
    duplicate_iou: float = 1.0  # a detection that overlaps a better one by more is dropped; 1: none is, as published

    def __repr__(self) -> str:
        return changed_settings(self)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"model configuration: {field.name} is {value!r}; it must be a whole number above 0")
        if self.backbone not in BACKBONES:
            raise ConfigError(f"model configuration: backbone {self.backbone!r} is not one of {', '.join(BACKBONES)}")
        if self.backbone_norm not in BACKBONE_NORMS:
            raise ConfigError(
                f"model configuration: backbone_norm {self.backbone_norm!r} is not one of {', '.join(BACKBONE_NORMS)}"
            )
        if self.backbone_input not in BACKBONE_INPUTS:
            raise ConfigError(
                f"model configuration: backbone_input {self.backbone_input!r} is none of {', '.join(BACKBONE_INPUTS)}"
            )
        if self.backbone_input != "imagenet" and self.backbone.startswith("resnet"):
            raise ConfigError(f"model configuration: backbone {self.backbone} takes backbone_input 'imagenet' alone")
        if self.hidden_dim % self.heads or self.hidden_dim % 32:
            raise ConfigError(
                f"model configuration: hidden_dim {self.hidden_dim} must be a multiple of 32 and of {self.heads} heads"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model configuration: dropout is {self.dropout!r}; it must lie in [0, 1)")
        if not 0.0 < self.duplicate_iou <= 1.0:
            raise ConfigError(
                f"model configuration: duplicate_iou is {self.duplicate_iou!r}; it must be above 0 and at most 1"
            )
        if self.frames > 64:
            raise ConfigError(f"model configuration: frames is {self.frames}; at most 64 are supported")
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ConfigError(
                f"model configuration: class_names {list(self.class_names)} must be distinct, at least one"
            )

    @property
    def classes(self) -> int:
        """Number of class logits: the categories and index 0, which is never used."""
        return len(self.class_names) + 1

    @property
    def levels(self) -> int:
        """Feature levels, of strides 8, 16, 32 and 64."""
        return 4

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """Return one of PRESETS.

        `paper`: the published model. `lite0`: fits a processor, starts from ImageNet weights. `tiny`: trains from
        scratch on a CPU in minutes.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown model preset {name!r}; there are {', '.join(PRESETS)}")
        return PRESETS[name]

    def to_json(self) -> str:
        """Return a JSON object of all fields."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Return the configuration written by `to_json`; missing keys take their defaults.

        Raises:
            ConfigError: no JSON object, an unknown key, or a value of the wrong type.
        """
        return settings_from_json(cls, text, "model configuration")


PRESETS = {
    "paper": ModelConfig(),
    "lite0": ModelConfig(
        backbone="lite0",
        backbone_input="half_range",
        hidden_dim=128,
        heads=8,
        feedforward_dim=512,
        dropout=0.0,
        encoder_layers=2,
        decoder_layers=3,
        queries=30,
        frames=3,
        encoder_points=4,
        encoder_other_points=2,
        decoder_points=4,
        decoder_other_points=2,
        image_size=224,
        max_image_size=320,
        duplicate_iou=0.5,
    ),
    "tiny": ModelConfig(
        backbone="resnet10",
        backbone_width=24,
        backbone_norm="group",
        hidden_dim=64,
        heads=4,
        feedforward_dim=256,
        dropout=0.0,
        encoder_layers=2,
        decoder_layers=3,
        queries=30,
        frames=4,
        encoder_points=2,
        encoder_other_points=2,
        decoder_points=4,
        decoder_other_points=2,
        image_size=128,
        max_image_size=320,
        duplicate_iou=0.5,
    ),
}
