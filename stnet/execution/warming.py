"""A model followed through its operators' launches on a GPU that is not there, so that Triton compiles them."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from stnet.errors import ConfigError
from stnet.execution.engine import EngineOptions, rewritten
from stnet.kernels.published_layers import level_shapes
from stnet.kernels.triton.without_device import compiling_for
from stnet.model.checkpoint import load
from stnet.model.config import PRESETS, ModelConfig
from stnet.model.detector import Detector

_PRODUCTS = ("linear", "addmm", "mm", "bmm", "baddbmm", "linear_backward", "native_layer_norm")


class _WithoutProducts(TorchDispatchMode):
    """Leave the results of matrix products empty: what is launched depends on their shapes alone."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace != "aten" or function._schema.name.removeprefix("aten::") not in _PRODUCTS:
            return function(*arguments, **(options or {}))
        shapes = tree_map_only(Tensor, lambda x: x.to("meta"), (arguments, options or {}))
        return tree_map_only(Tensor, _empty, function(*shapes[0], **shapes[1]))


def _empty(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")


def warm(options: argparse.Namespace) -> tuple[int, int]:
    """Compile what the options of `stnet warm` ask for; return how many kernels were compiled, and how many were there.

    Raises:
        ConfigError: no such model, or more targets than its clips have frames.
    """
    config = PRESETS[options.model] if options.model in PRESETS else load(options.model).config
    size = options.size or (config.image_size, config.image_size)
    if max(options.targets) > config.frames:
        raise ConfigError(f"--targets: {max(options.targets)}; clips of this model have {config.frames} frames")
    dtype = getattr(torch, options.dtype)
    before = set(_kernels(options.cache))
    with compiling_for(options.gpu), _WithoutProducts(), _counting() as taken:
        for clips in options.clips:
            for targets in options.targets:
                _infer(config, dtype, _levels(config, clips, size, dtype), targets)
                if options.training:
                    _train(config, dtype, _levels(config, clips, size, torch.float32), targets)
    compiled = len(set(_kernels(options.cache)) - before)
    return compiled, len(taken) - compiled


def _infer(config: ModelConfig, dtype: torch.dtype, levels: list[Tensor], targets: int) -> None:
    model = rewritten(Detector(config, backend="triton"), EngineOptions(), torch.device("cpu"), dtype)
    with torch.inference_mode():
        model.detect(levels, None, targets)


def _train(config: ModelConfig, dtype: torch.dtype, levels: list[Tensor], targets: int) -> None:
    model = Detector(config, backend="triton").train()
    lower = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with lower:
        output = model.detect([level.requires_grad_() for level in levels], None, targets)
    layers = [output, *output.layers]
    sum(layer.logits.sum() + layer.boxes.sum() for layer in layers).backward()


def _levels(config: ModelConfig, clips: int, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Empty level maps `[B, F, d, h, w]` of frames of a size."""
    sizes = level_shapes(*size)
    return [torch.zeros(clips, config.frames, config.hidden_dim, *shape, dtype=dtype) for shape in sizes]


def _kernels(cache: Path) -> Iterator[Path]:
    """Machine code in a cache."""
    return (path for pattern in ("*/*.cubin", "*/*.hsaco") for path in cache.glob(pattern))


@contextmanager
def _counting() -> Iterator[set[str]]:
    """Collect the hashes of the kernels that are compiled or found."""
    from triton import knobs

    taken: set[str] = set()

    def note(*, src, metadata, metadata_group, times, cache_hit) -> None:
        taken.add(metadata["hash"])

    before = knobs.compilation.listener
    knobs.compilation.listener = note
    try:
        yield taken
    finally:
        knobs.compilation.listener = before
