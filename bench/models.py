"""Detectors and clips that layers, inference and training are measured on."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import baselines
from bench.published import as_published
from bench.shapes import Sizes, level_shapes
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.model.encoder import all_frame_table
from stnet.model.geometry import ClipGeometry, clip_geometry

STNET = "stnet"
PUBLISHED_GRID_SAMPLE = "published over grid_sample"
MODELS = (PUBLISHED_GRID_SAMPLE, STNET, "published over Deformable DETR CUDA", "published over mmcv")
BASELINE = MODELS[0]
SPREAD_OF_WEIGHTS = 0.02  # offsets of about two cells around the star, as training ends up with


@functools.lru_cache(maxsize=2)
def detector(config: ModelConfig) -> Detector:
    """A float32 detector on the CPU with random weights whose sampling offsets depend on the query."""
    torch.manual_seed(0)
    model = Detector(config).eval()
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(parameter, std=SPREAD_OF_WEIGHTS)
    return model


def variant(name: str, config: ModelConfig) -> Detector:
    """`detector` as one of MODELS; the same function of its input. Raises `baselines.MissingError`."""
    if name == STNET:
        return detector(config)
    return as_published(detector(config), baselines.classic(name.removeprefix(baselines.PUBLISHED)))


def clips(config: ModelConfig, image: tuple[int, int], batch: int, seed: int) -> Tensor:
    """Normalized clips [B, F, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.frames, 3, *image, generator=generator)


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """A layer of the detector as a function of one tensor, the features or query contents it transforms."""

    layer: nn.Module
    arguments: Sequence

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x, *self.arguments)


def encoder_layer(model: Detector, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> LayerCall:
    """The first encoder layer; x is [B, F, S, d]."""
    geometry = _geometry(model, sizes, device, dtype)
    return LayerCall(
        layer=_moved(model.encoder.layers[0], device, dtype),
        arguments=(geometry.position_embedding.unsqueeze(1), geometry),
    )


def decoder_layer(model: Detector, sizes: Sizes, batch: int, device: torch.device, dtype: torch.dtype) -> LayerCall:
    """The first decoder layer with values already projected; x is [B, T, Q, d]."""
    config, geometry = model.config, _geometry(model, sizes, device, dtype)
    generator = torch.Generator().manual_seed(1)
    layer = _moved(model.decoder.layers[0], device, dtype)
    rows = (batch, targets := min(3, config.frames), config.queries)
    references = torch.rand(*rows, 1, 4, generator=generator).expand(-1, -1, -1, config.levels, -1) * 0.5 + 0.1
    position = torch.randn(*rows, config.hidden_dim, generator=generator).to(device, dtype)
    cells = sum(h * w for h, w in geometry.spatial_shapes)
    memory = torch.randn(batch, config.frames, cells, config.hidden_dim, generator=generator).to(device, dtype)
    with torch.no_grad():
        value = layer.attention.project_values(memory)
    table = all_frame_table(config.frames, list(range(targets)))
    return LayerCall(layer=layer, arguments=(position, references.to(device), value, geometry.spatial_shapes, table))


def _moved(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(layer).to(device, dtype)


def _geometry(model: Detector, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> ClipGeometry:
    return clip_geometry(level_shapes(*sizes.image), model.config.hidden_dim, None, device, dtype)


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The configuration in which two training steps on the same clips compute the same."""
    return dataclasses.replace(config, dropout=0.0)
