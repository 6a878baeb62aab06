"""The whole detector: a clip goes in, boxes and class logits of its target frames come out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stnet.model.backbone import build_backbone
from stnet.model.config import ModelConfig
from stnet.model.decoder import Decoder, ExtraQueries, LayerOutput
from stnet.model.encoder import Encoder
from stnet.model.geometry import ClipGeometry, clip_geometry
from stnet.model.operating_points import OperatingPoints
from stnet.model.provenance import Provenance

GROUP_NORM_GROUPS = 32


@dataclass(frozen=True)
class DetectorOutput:
    """Predictions for T target frames of each clip."""

    logits: Tensor  # [B, T, Q, classes]; index 0 is never used
    boxes: Tensor  # [B, T, Q, 4] cx cy w h in [0, 1] of the unpadded image
    layers: list[LayerOutput] = field(default_factory=list)  # of the earlier decoder layers, in training mode


class Detector(nn.Module):
    """STNet (MICCAI 2023): backbone, STDA encoder and decoder, several target frames per encoder pass.

    Args:
        config: the architecture.
        recompute: in training keep only the layers' inputs for the backward pass and recompute the rest there, which
            trades time for memory.
        backend: of the attentions' operator, as `spatial_temporal_deform_attn` takes it.

    Attributes:
        operating_points: calibration and thresholds chosen for its weights, None where none were. `forward` gives
            logits as they are.
        provenance: what its weights were trained on, None where that is unknown.
    """

    def __init__(self, config: ModelConfig, recompute: bool = False, backend: str = "auto"):
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.operating_points: OperatingPoints | None = None
        self.provenance: Provenance | None = None
        dim = config.hidden_dim
        self.backbone = build_backbone(config)
        channels = self.backbone.channels
        projections = [nn.Conv2d(c, dim, 1) for c in channels] + [nn.Conv2d(channels[-1], dim, 3, stride=2, padding=1)]
        self.input_proj = nn.ModuleList(
            nn.Sequential(projection, nn.GroupNorm(GROUP_NORM_GROUPS, dim)) for projection in projections
        )
        self.level_embed = nn.Parameter(torch.randn(config.levels, dim))
        self.encoder = Encoder(config, backend)
        self.decoder = Decoder(config, backend)
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def __repr__(self) -> str:
        """Return what it is; `torch.nn.Module.__repr__(model)` has the tree of its modules."""
        parameters = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        shape = f"{self.config.backbone}, {parameters:.1f} M parameters, clips of {self.config.frames} frames"
        return f"Detector({shape}: {', '.join(self.config.class_names)})"

    def train(self, mode: bool = True) -> "Detector":
        """Switch to training or evaluation; BatchNorm whose weights are frozen keeps its statistics, too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(
        self,
        clips: Tensor,
        padding_mask: Tensor | None = None,
        targets: int | Sequence[int] = 3,
        extra: ExtraQueries | None = None,
    ) -> DetectorOutput:
        """Detect lesions in the target frames of clips.

        Args:
            clips: [B, F, 3, H, W], normalized with the ImageNet mean and standard deviation.
            padding_mask: [B, H, W] bool, True = padded; one mask for all frames of a clip. Best kept on the CPU.
            targets: predict the first n frames of the clip, or those at these clip positions.
            extra: queries beside the learned ones, for training.

        Raises:
            ValueError: shapes or targets that do not fit the model, with the offending numbers.
        """
        if clips.dim() != 5 or clips.shape[2] != 3:
            raise ValueError(f"clips has shape {list(clips.shape)}, expected [clips, frames, 3, height, width]")
        features = self.extract_features(clips.flatten(0, 1))
        features = [level.unflatten(0, clips.shape[:2]) for level in features]
        if padding_mask is not None and padding_mask.shape != (clips.shape[0], *clips.shape[3:]):
            raise ValueError(
                f"padding_mask has shape {list(padding_mask.shape)}, expected "
                f"{[clips.shape[0], *clips.shape[3:]]} for clips of shape {list(clips.shape)}"
            )
        return self.detect(features, padding_mask, targets, extra)

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Feature levels of single frames, which depend on nothing else and can be kept for several clips.

        Args:
            images: [N, 3, H, W], normalized.

        Returns:
            Four levels [N, d, h, w] of strides 8, 16, 32 and 64.
        """
        maps = self.backbone(images)
        return [project(level) for project, level in zip(self.input_proj, [*maps, maps[-1]], strict=True)]

    def detect(
        self,
        features: Sequence[Tensor],
        padding_mask: Tensor | None = None,
        targets: int | Sequence[int] = 3,
        extra: ExtraQueries | None = None,
        geometry: ClipGeometry | None = None,
    ) -> DetectorOutput:
        """Run encoder and decoder on the features of whole clips.

        Args:
            features: four levels `[B, F, d, h, w]`.
            padding_mask: as in `forward`.
            targets: as in `forward`.
            extra: as in `forward`.
            geometry: of these levels and this mask, where the caller keeps it; made of them here if None.
        """
        frames = features[0].shape[1]
        if frames != self.config.frames:
            raise ValueError(
                f"clips have {frames} frames; this model takes {self.config.frames} (its weights depend on it)"
            )
        target_list = self._target_positions(targets)
        shapes = tuple((level.shape[3], level.shape[4]) for level in features)
        tokens = torch.cat([level.flatten(3).transpose(2, 3) for level in features], dim=2)  # [B, F, S, d]
        if geometry is None:
            dim, dtype = self.config.hidden_dim, self.level_embed.dtype
            geometry = clip_geometry(shapes, dim, padding_mask, tokens.device, dtype)
        level_of = torch.cat([e.expand(h * w, -1) for e, (h, w) in zip(self.level_embed, shapes, strict=True)])
        position = (geometry.position_embedding + level_of).unsqueeze(1)
        recompute = self.recompute and self.training
        memory = self.encoder(tokens, position, geometry, recompute)
        outputs = self.decoder(memory, geometry, target_list, extra, all_layers=self.training, recompute=recompute)
        return DetectorOutput(outputs[-1].logits, outputs[-1].boxes, outputs[:-1])

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Write the model and its card to the Hugging Face Hub; see `stnet.model.checkpoint.push_to_hub`."""
        from stnet.model.checkpoint import push_to_hub  # which builds detectors

        return push_to_hub(self, name, **options)

    def _target_positions(self, targets: int | Sequence[int]) -> list[int]:
        frames = self.config.frames
        positions = list(range(targets)) if isinstance(targets, int) else [int(t) for t in targets]
        if not positions or any(not 0 <= t < frames for t in positions) or len(set(positions)) != len(positions):
            raise ValueError(f"targets is {targets}; it must name 1 to {frames} different frames of a clip of {frames}")
        return positions
