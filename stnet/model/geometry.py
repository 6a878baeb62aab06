"""Where the positions of a clip's levels lie: position embedding, reference points and valid ratios.

All of it depends on the level shapes and the padding alone. It is computed in float32 on the CPU whatever the model's
dtype and device, because in fully padded rows the phase of the embedding is so large (about -3e6) that its sine turns
on the last bit. Only the sines of the phases that occur are computed there, a few hundred per clip, and spread out on
the device: making it costs little, so that few shapes are kept (training at many sizes sees hundreds). No transfer
waits for what the device has yet to do.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 10000.0
KEPT_SHAPES = 8  # of clips without padding; one of 600 x 800 takes 8 MB of the device in float32


@dataclass(frozen=True)
class ClipGeometry:
    """B is 1 for clips without padding: the same for every clip of a batch."""

    spatial_shapes: tuple[tuple[int, int], ...]  # (h, w) of each of the L levels
    position_embedding: Tensor  # [B, S, d]
    reference_points: Tensor  # [B, S, L, 2] (x, y) in units of the padded frame; beyond 1 in padding
    valid_ratios: Tensor  # [B, L, 2] unpadded share of a level's width and height


def clip_geometry(
    spatial_shapes: Sequence[tuple[int, int]],
    hidden_dim: int,
    padding_mask: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> ClipGeometry:
    """Return the geometry of clips with levels of these shapes.

    Args:
        spatial_shapes: (h, w) of each level.
        hidden_dim: channels of the position embedding.
        padding_mask: [B, H, W] bool at image size, True = padded; None = no padding. A mask on the CPU costs no
            synchronization with the GPU.
        device: of the result.
        dtype: of the position embedding; reference points and ratios are float32, or float64 in a float64 model.
    """
    shapes = tuple(spatial_shapes)
    if padding_mask is None:
        if torch.compiler.is_exporting():  # sizes may be symbols, which cannot be kept
            return _computed_without_padding(shapes, hidden_dim, device, dtype)
        geometry, share = _geometry_without_padding(shapes, hidden_dim, device, dtype)
        share()
        return geometry
    masks = [_resize_mask(padding_mask.cpu(), shape) for shape in shapes]
    embeddings = [_spread_sine_embedding(mask, hidden_dim, device, dtype) for mask in masks]
    return _geometry(shapes, masks, torch.cat(embeddings, dim=1), device)


@functools.lru_cache(maxsize=KEPT_SHAPES)
@torch.inference_mode(False)  # kept for training too, which cannot use tensors made in inference mode
def _geometry_without_padding(
    shapes: tuple[tuple[int, int], ...], hidden_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[ClipGeometry, Callable[[], None]]:
    """Return the geometry, and what is to be called before it is used."""
    geometry = _computed_without_padding(shapes, hidden_dim, device, dtype)
    return geometry, _shared_by_streams(geometry, device)


def _shared_by_streams(geometry: ClipGeometry, device: torch.device) -> Callable[[], None]:
    """Return what lets the current stream of a GPU use a geometry that is made on this one.

    No transfer waits, and what is kept serves every thread, whose work may be on a stream of its own. That has to wait
    for the transfers, and the memory, should the geometry be dropped, for that work.
    """
    if device.type != "cuda" or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return lambda: None
    home, arrived = torch.cuda.current_stream(device), torch.cuda.Event()
    arrived.record(home)

    def share() -> None:
        stream = torch.cuda.current_stream(device)
        # A graph that is being captured may not wait for work outside of it; its warm-up has.
        if stream == home or torch.cuda.is_current_stream_capturing():
            return
        stream.wait_event(arrived)
        for tensor in (geometry.position_embedding, geometry.reference_points, geometry.valid_ratios):
            tensor.record_stream(stream)

    return share


def _computed_without_padding(
    shapes: tuple[tuple[int, int], ...], hidden_dim: int, device: torch.device, dtype: torch.dtype
) -> ClipGeometry:
    """Return what masks without padding would give, bit for bit, in few operations: exporters take long for each."""
    embeddings, centres = [], []
    for height, width in shapes:
        y, x = (torch.arange(cells, dtype=torch.float32)[:, None] + 0.5 for cells in (height, width))
        lines, columns = y[-1:] + 0.5, x[-1:] + 0.5  # their numbers
        phases = (y / (lines + 1e-6) * (2 * math.pi), x / (columns + 1e-6) * (2 * math.pi))
        waves = [_uploaded(_waves(phase[:, 0], hidden_dim).to(dtype), device) for phase in phases]
        embeddings.append(torch.cat(_over_map(*waves), dim=-1).flatten(0, 1))
        centre_y, centre_x = _over_map(y / lines, x / columns)
        centres.append(torch.cat([centre_x, centre_y], dim=-1).flatten(0, 1))
    coordinate_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    references = torch.cat(centres).to(coordinate_dtype)[None, :, None].expand(-1, -1, len(shapes), -1)
    return ClipGeometry(
        spatial_shapes=shapes,
        position_embedding=torch.cat(embeddings).unsqueeze(0),
        reference_points=_uploaded(references.contiguous(), device),
        valid_ratios=_uploaded(torch.ones(1, len(shapes), 2, dtype=coordinate_dtype), device),
    )


def _over_map(of_lines: Tensor, of_columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of a map's lines `[h, a]` and columns `[w, b]` at every cell: `[h, w, a]` and `[h, w, b]`."""
    return of_lines[:, None].expand(-1, of_columns.shape[0], -1), of_columns.expand(of_lines.shape[0], -1, -1)


def _geometry(
    shapes: tuple[tuple[int, int], ...], masks: list[Tensor], embedding: Tensor, device: torch.device
) -> ClipGeometry:
    ratios = torch.stack([_valid_ratio(mask) for mask in masks], dim=1)
    references = torch.cat([_cell_centres(shape, ratios[:, level]) for level, shape in enumerate(shapes)], dim=1)
    references = references[:, :, None] * ratios[:, None]
    coordinate_dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    return ClipGeometry(
        spatial_shapes=shapes,
        position_embedding=embedding,
        reference_points=_uploaded(references.to(coordinate_dtype), device),
        valid_ratios=_uploaded(ratios.to(coordinate_dtype), device),
    )


def _uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device, without waiting for the work that is queued there: from pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sine_embedding(mask: Tensor, hidden_dim: int) -> Tensor:
    """Sine position embedding of DETR, normalized to the unpadded area with half-pixel centres.

    Args:
        mask: [B, h, w] bool, True = padded.
        hidden_dim: channels of the embedding.

    Returns:
        float32 [B, h * w, hidden_dim]: one half for y, then one for x; even channels sine, odd cosine.
    """
    return torch.cat([_waves(_phase(mask, axis), hidden_dim) for axis in (1, 2)], dim=-1).flatten(1, 2)


def _spread_sine_embedding(mask: Tensor, hidden_dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`sine_embedding`, bit for bit, on `device`: each phase that occurs is computed once, on the CPU."""
    halves = []
    for axis in (1, 2):
        phases, places = _phase(mask, axis).unique(return_inverse=True)
        halves.append(_uploaded(_waves(phases, hidden_dim).to(dtype), device)[_uploaded(places, device)])
    return torch.cat(halves, dim=-1).flatten(1, 2)


def _phase(mask: Tensor, axis: int) -> Tensor:
    """[B, h, w] position along an axis, from 0 to 2 pi over the unpadded cells."""
    count = (~mask).cumsum(axis, dtype=torch.float32)
    last = count.narrow(axis, count.shape[axis] - 1, 1)
    return (count - 0.5) / (last + 1e-6) * (2 * math.pi)


def _waves(phase: Tensor, hidden_dim: int) -> Tensor:
    """[..., hidden_dim / 2] sines and cosines of phases `[...]`."""
    channels = hidden_dim // 2
    table = TEMPERATURE ** (2 * torch.arange(channels // 2, dtype=torch.float32) / channels)
    angle = phase[..., None] / table
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def _resize_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """Nearest neighbour: position i of a level takes pixel floor(i * full / level)."""
    resized = torch.nn.functional.interpolate(mask[:, None].float(), size=shape, mode="nearest")
    return resized[:, 0].bool()


def _valid_ratio(mask: Tensor) -> Tensor:
    """[B, 2]: unpadded share of the first row (x) and of the first column (y)."""
    return torch.stack([(~mask[:, 0, :]).float().mean(dim=1), (~mask[:, :, 0]).float().mean(dim=1)], dim=-1)


def _cell_centres(shape: tuple[int, int], ratio: Tensor) -> Tensor:
    """[B, h * w, 2] centres of a level's cells as shares of the unpadded area."""
    height, width = shape
    y = (torch.arange(height, dtype=torch.float32) + 0.5)[None] / (ratio[:, 1:] * height)
    x = (torch.arange(width, dtype=torch.float32) + 0.5)[None] / (ratio[:, :1] * width)
    return torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1).flatten(1, 2)
