"""Small tables that kernels read, kept on the device for good: a captured CUDA graph holds their addresses.

They are made in a thread of their own. `torch.compile(mode="reduce-overhead")` runs a function once with the memory of
its graphs to come, which is the memory of that thread alone, and takes what is still there afterwards for its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from stnet.kernels.problem import level_starts

T = TypeVar("T")


def outside_of_graphs(make: Callable[[], T], device: torch.device) -> T:
    """Return what `make()` puts on a device, in memory that belongs to no CUDA graph, and written when this returns."""
    if device.type != "cuda":
        return make()

    def run() -> T:
        with torch.cuda.device(device):  # a thread starts on device 0
            made = make()
            torch.cuda.current_stream(device).synchronize()
            return made

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


@cache
def level_tables(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Heights and widths int32 [L, 2] and first positions int32 [L] of the levels, kept on the device."""

    def make() -> tuple[Tensor, Tensor]:
        shapes = torch.tensor(spatial_shapes, dtype=torch.int32, device=device)
        return shapes, torch.tensor(level_starts(spatial_shapes), dtype=torch.int32, device=device)

    return outside_of_graphs(make, device)


@cache
def frame_offsets(frame_table: tuple[tuple[int, ...], ...], frame_stride: int, device: torch.device) -> Tensor:
    """int64 [T, 1 + W]: where each frame of the table begins, in elements from frame 0, kept on the device."""
    rows = [[frame * frame_stride for frame in row] for row in frame_table]
    return outside_of_graphs(lambda: torch.tensor(rows, dtype=torch.int64, device=device).view(len(rows), -1), device)


@cache
def frame_columns(frame_table: tuple[tuple[int, ...], ...], source_frames: int, device: torch.device) -> Tensor:
    """int32 [F, T]: which column of a target's row names each source frame, -1 where none does; kept on the device."""
    columns = [[row.index(frame) if frame in row else -1 for row in frame_table] for frame in range(source_frames)]
    return outside_of_graphs(lambda: torch.tensor(columns, dtype=torch.int32, device=device), device)


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
    table = torch.cat(order).to(torch.int32)
    return outside_of_graphs(lambda: table.to(device), device)
