"""Small tables that kernels read, kept on the device for good: a captured CUDA graph holds their addresses."""

from functools import cache

import torch
from torch import Tensor

from stnet.kernels.problem import level_starts


@cache
def level_tables(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Heights and widths int32 [L, 2] and first positions int32 [L] of the levels, kept on the device."""
    shapes = torch.tensor(spatial_shapes, dtype=torch.int32, device=device)
    return shapes, torch.tensor(level_starts(spatial_shapes), dtype=torch.int32, device=device)


@cache
def frame_offsets(frame_table: tuple[tuple[int, ...], ...], frame_stride: int, device: torch.device) -> Tensor:
    """int64 [T, 1 + W]: where each frame of the table begins, in elements from frame 0, kept on the device."""
    rows = [[frame * frame_stride for frame in row] for row in frame_table]
    return torch.tensor(rows, dtype=torch.int64, device=device).view(len(rows), -1)


@cache
def query_order(spatial_shapes: tuple[tuple[int, int], ...], block_queries: int, device: torch.device) -> Tensor:
    """int32 [S], a permutation that visits the positions of each level in small 2-D tiles, kept on the device.

    Encoder queries are positions, and sample near themselves: 32 neighbours of a tile share more cache lines than 32 of
    a row. Tiles have `block_queries` positions, twice as wide as high where that is no square.
    """
    height = 1 << ((block_queries.bit_length() - 1) // 2)
    width = block_queries // height
    order, host = [], torch.device("cpu")  # not the default device
    for start, (rows, columns) in zip(level_starts(spatial_shapes), spatial_shapes, strict=True):
        y, x = torch.meshgrid(torch.arange(rows, device=host), torch.arange(columns, device=host), indexing="ij")
        tile = (y // height) * -(-columns // width) + x // width
        key = (tile * height + y % height) * width + x % width
        order.append(start + key.flatten().argsort())
    return torch.cat(order).to(torch.int32).to(device)
