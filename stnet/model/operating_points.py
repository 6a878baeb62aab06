"""Where a detector is meant to be used: calibration of its scores and score thresholds, chosen on validation data.

They belong to the weights, so they travel in the metadata of the checkpoint, as JSON under `OPERATING_POINTS_KEY`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stnet.choices import OPERATING_POINTS
from stnet.errors import ConfigError
from stnet.json_settings import settings_from_json

OPERATING_POINTS_KEY = "stnet_operating_points"


@dataclass(frozen=True, kw_only=True)
class OperatingPoints:
    """Calibration and thresholds of one set of weights.

    A calibrated score is the chance that the detection is a lesion of its class, overlapped by half or more:
    `sigmoid(slope * logit(score) + offset)` (Platt scaling), with the slope and the offset of the detection's class.

    Attributes:
        class_names: classes that the next two belong to, in the order of the labels 1, 2, ...
        slopes, offsets: one of each per class; slopes above 0, so the order within a class stays.
        sensitive, balanced, specific: thresholds of the calibrated score, in [0, 1], ascending.
        chosen_on: the data they were chosen on, for people.
    """

    class_names: tuple[str, ...]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    sensitive: float
    balanced: float
    specific: float
    chosen_on: str

    def __post_init__(self):
        for name in ("slopes", "offsets"):
            values = getattr(self, name)
            if len(values) != len(self.class_names) or not all(map(math.isfinite, values)):
                raise ConfigError(f"operating points: {name} {values} for classes {', '.join(self.class_names)}")
        if not all(slope > 0 for slope in self.slopes):
            raise ConfigError(f"operating points: slopes {self.slopes} must be above 0")
        if not 0 <= self.sensitive <= self.balanced <= self.specific <= 1:
            thresholds = ", ".join(f"{name} {getattr(self, name)}" for name in OPERATING_POINTS)
            raise ConfigError(f"operating points: {thresholds} must ascend within 0 to 1")

    def threshold(self, name: str) -> float:
        """Return the threshold of one of `OPERATING_POINTS`.

        Raises:
            ConfigError: for another name.
        """
        if name not in OPERATING_POINTS:
            raise ConfigError(f"operating point {name!r} is none of {', '.join(OPERATING_POINTS)}")
        return getattr(self, name)

    def calibrated(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Calibrate scores in [0, 1] of detections with labels from 1, both `[...]`; 0 and 1 stay what they are."""
        slopes = scores.new_tensor(self.slopes)[labels - 1]
        offsets = scores.new_tensor(self.offsets)[labels - 1]
        return torch.sigmoid(slopes * torch.logit(scores) + offsets)

    def calibrated_logits(self, logits: Tensor) -> Tensor:
        """Return calibrated scores of logits `[..., classes]`, whose last dimension are the classes in order."""
        return torch.sigmoid(logits.new_tensor(self.slopes) * logits + logits.new_tensor(self.offsets))

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, what: str) -> "OperatingPoints":
        """Read what `to_json` wrote; `what` names its source in messages.

        Raises:
            ConfigError: for anything else.
        """
        return settings_from_json(cls, text, what)
