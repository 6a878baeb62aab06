"""Detectors and clips that layers, inference and training are measured on."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.timing import baselines
from bench.timing.published import as_published
from bench.timing.shapes import SHUFFLED_TARGETS, level_shapes
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.model.encoder import all_frame_table
from stnet.model.geometry import clip_geometry

STNET = "stnet"
PUBLISHED_GRID_SAMPLE = "published over grid_sample"
MODELS = (
    PUBLISHED_GRID_SAMPLE,
    STNET,
    "published over Deformable DETR CUDA",
    "published over torch-ms-deform-attn",
    "published over mmcv",
)
BASELINE = MODELS[0]
SPREAD_OF_WEIGHTS = 0.02  # offsets of about two cells around the star, as training ends up with


@functools.lru_cache(maxsize=2)
def detector(config: ModelConfig) -> Detector:
    """Return a float32 detector on the CPU with random weights whose sampling offsets depend on the query."""
    torch.manual_seed(0)
    model = Detector(config).eval()
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(parameter, std=SPREAD_OF_WEIGHTS)
    return model


def variant(name: str, config: ModelConfig) -> Detector:
    """Return `detector` as one of MODELS; the same function of its input.

    Raises:
        MissingError: the operator's package is not installed.
    """
    if name == STNET:
        return detector(config)
    return as_published(detector(config), baselines.classic(name.removeprefix(baselines.PUBLISHED)))


def copy_of(model: Detector) -> Detector:
    """One to train, so that the shared ones stay as they are."""
    return copy.deepcopy(model)


def clips(config: ModelConfig, image: tuple[int, int], batch: int, seed: int) -> Tensor:
    """Return normalized clips [B, F, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.frames, 3, *image, generator=generator)


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """A layer as a function `call` of the tensors that change from run to run, shaped `shapes`."""

    layer: nn.Module
    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


def encoder_layer(
    model: Detector, image: tuple[int, int], batch: int, device: torch.device, dtype: torch.dtype
) -> LayerCall:
    """Return the first encoder layer as a function of the features [B, F, S, d]."""
    config, layer = model.config, copy.deepcopy(model.encoder.layers[0]).to(device, dtype)
    geometry = clip_geometry(level_shapes(*image), config.hidden_dim, None, device, dtype)
    position = geometry.position_embedding.unsqueeze(1)
    return LayerCall(
        layer=layer,
        call=lambda features: layer(features, position, geometry),
        shapes=((batch, config.frames, position.shape[2], config.hidden_dim),),
    )


def decoder_layer(
    model: Detector, image: tuple[int, int], batch: int, device: torch.device, dtype: torch.dtype
) -> LayerCall:
    """Return the first decoder layer as a function of query contents [B, T, Q, d] and values [B, F, S, H, D]."""
    config, layer = model.config, copy.deepcopy(model.decoder.layers[0]).to(device, dtype)
    shapes = level_shapes(*image)
    rows = (batch, SHUFFLED_TARGETS, config.queries)
    generator = torch.Generator().manual_seed(1)
    references = (0.1 + 0.5 * torch.rand(*rows, 1, 4, generator=generator)).expand(-1, -1, -1, config.levels, -1)
    references = references.to(device)
    position = torch.randn(*rows, config.hidden_dim, generator=generator).to(device, dtype)
    table = all_frame_table(config.frames, list(range(SHUFFLED_TARGETS)))
    head_dim, cells = config.hidden_dim // config.heads, sum(h * w for h, w in shapes)
    return LayerCall(
        layer=layer,
        call=lambda content, value: layer(content, position, references, value, shapes, table),
        shapes=((*rows, config.hidden_dim), (batch, config.frames, cells, config.heads, head_dim)),
    )


LAYERS = {"encoder": encoder_layer, "decoder": decoder_layer}


def without_dropout(config: ModelConfig) -> ModelConfig:
    """Return the configuration in which two training steps on the same clips compute the same."""
    return dataclasses.replace(config, dropout=0.0)
