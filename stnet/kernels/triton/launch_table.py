"""The launch table: which tile shapes a kernel is compiled with.

The table (`launch_table.json`, or the file named by the environment variable STNET_LAUNCH_TABLE) is a list of rows. A
row says for which kernel, architectures, dtypes, head widths, numbers of queries and versions of Triton it is, and
names its candidates in order: the first is the default, the others are what the tuner (`python -m stnet.kernels.tune`)
compares it with. The first row that matches wins, so measured rows stand before general ones. Nothing is tuned at run
time.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stnet.choices import KERNELS
from stnet.errors import ConfigError
from stnet.files import write_text
from stnet.kernels.triton.architecture import triton_version

TABLE_VARIABLE = "STNET_LAUNCH_TABLE"
DEFAULT_TABLE = Path(__file__).with_name("launch_table.json")
ARITHMETICS = ("float32", "packed", "matrix")
SUMMED_CELLS = (0, 64, 128, 256, 512)  # of more cells the sums do not fit into registers
FEW_QUERIES = 2048  # up to here a call counts as "few" (the decoder), above as "many" (the encoder)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compile a kernel.

    Attributes:
        block_queries: queries of one program, a power of two; backward kernels may take more (`backward._tile`).
        block_heads: forward, heads of one program, a power of two; where the heads are no multiple, the largest that
            divides both. Rows of values that are read together then differ in their head, and in their memory bank.
        num_warps: warps of one program. With 16-byte loads a warp holds a row of 32 channels in 4 lanes (16-bit types)
            or 8 lanes (float32).
        block_channels: channels taken at a time, a power of two. Forward, a wider head is shared among programs, each
            of which computes positions and softmax anew, which costs less than the registers of a wide tile. Backward,
            a program takes its blocks in turn.
        hold_gradient: backward, the output gradient stays in registers where one block holds a head; else it is read
            anew for every chunk of samples.
        heads_first: backward, programs beside each other take other heads, instead of other queries of a head: they add
            to other memory.
        arithmetic: how the four corners of a sample are interpolated. "float32"; "packed": pairs of 16-bit numbers,
            samples added in float32; "matrix": packed, and the matrix unit adds the samples in float32. The last two
            need an NVIDIA GPU from sm_80 on and 16-bit values that can be read in pairs, and are "float32" elsewhere.
        maxnreg: upper bound of registers per thread, None for the compiler's choice; 255, all there are, keeps it from
            choosing fewer and spilling.
        unroll: frames taken in one step of the loop over the other frames.
        unroll_points: forward of STDA, whether all points of a level are taken in one step, else two (a loop).
        load_ahead: forward of STDA, whether offsets and logits of the next other frame are loaded before the gathers of
            a frame, where a frame has at most two points on a level.
        summed_cells: backward of STDA with 16-bit values, how many cells, counted in blocks of 8 x 8, a level may have
            for its value gradient to be summed by a kernel of its own (`coarse_levels.py`), one of `SUMMED_CELLS`.
        milliseconds: median time measured by the tuner, None where nothing was measured.
    """

    block_queries: int = 32
    block_heads: int = 1
    num_warps: int = 1
    block_channels: int = 32
    arithmetic: str = "float32"
    maxnreg: int | None = None
    hold_gradient: bool = True
    heads_first: bool = False
    unroll: int = 1
    unroll_points: bool = True
    load_ahead: bool = False
    summed_cells: int = 0
    milliseconds: float | None = None

    def __post_init__(self):
        for name in ("block_queries", "block_heads", "num_warps", "block_channels"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1 or number & (number - 1):
                raise ConfigError(f"launch table: {name} is {number!r}; it needs a power of two")
        if self.arithmetic not in ARITHMETICS:
            raise ConfigError(f"launch table: arithmetic is {self.arithmetic!r}; known: {', '.join(ARITHMETICS)}")
        for name in ("hold_gradient", "heads_first", "unroll_points", "load_ahead"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"launch table: {name} is {getattr(self, name)!r}; it needs true or false")
        if self.summed_cells not in SUMMED_CELLS:
            raise ConfigError(f"launch table: summed_cells is {self.summed_cells!r}; it needs one of {SUMMED_CELLS}")
        if not isinstance(self.unroll, int) or self.unroll < 1:
            raise ConfigError(f"launch table: unroll is {self.unroll!r}; it needs a positive integer")
        if self.maxnreg is not None and not 24 <= self.maxnreg <= 255:
            raise ConfigError(f"launch table: maxnreg is {self.maxnreg!r}; it needs 24 to 255 or null")

    def options(self, arch: str) -> dict[str, int]:
        """Compile options of Triton; AMD's backend knows no register bound."""
        bound = {} if self.maxnreg is None or arch.startswith("gfx") else {"maxnreg": self.maxnreg}
        return {"num_warps": self.num_warps, **bound}

    def as_json(self) -> dict[str, Any]:
        """Fields that differ from their defaults, as the launch table stores them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Candidates and the keys they are for; an empty tuple (or None for `many_queries`) fits every key."""

    kernel: str
    candidates: tuple[Candidate, ...]
    architectures: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
    many_queries: bool | None = None
    tritons: tuple[str, ...] = ()  # "3.6" ...

    def __post_init__(self):
        if self.kernel not in KERNELS:
            raise ConfigError(f"launch table: kernel {self.kernel!r}; known: {', '.join(KERNELS)}")
        if not self.candidates:
            raise ConfigError(f"launch table: a row of {self.kernel} has no candidates")

    def matches(self, kernel: str, arch: str, dtype: str, head_dim: int, many: bool, triton: str) -> bool:
        """Tell whether the row is for these keys."""
        return (
            self.kernel == kernel
            and (not self.architectures or arch in self.architectures)
            and (not self.dtypes or dtype in self.dtypes)
            and (not self.head_dims or head_dim in self.head_dims)
            and self.many_queries in (None, many)
            and (not self.tritons or triton in self.tritons)
        )

    def as_json(self) -> dict[str, Any]:
        """Return the keys that are set and the candidates, as the launch table stores them."""
        row = {key: value for key, value in asdict(self).items() if value not in ((), None)}
        return {**row, "candidates": [candidate.as_json() for candidate in self.candidates]}


def read_table(path: Path) -> tuple[Row, ...]:
    """Rows of a launch table file.

    Raises:
        ConfigError: the file cannot be read, is not JSON, or holds an unknown key or value.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Row(
                **{
                    **{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()},
                    "candidates": tuple(Candidate(**candidate) for candidate in row["candidates"]),
                }
            )
            for row in data["rows"]
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the launch table ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a launch table ({error}); python -m stnet.kernels.tune --output FILE writes one"
        ) from error


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as `read_table` reads them, one candidate a line."""
    lines = []
    for row in rows:
        keys = row.as_json()
        shown = ",\n      ".join(json.dumps(candidate) for candidate in keys.pop("candidates"))
        head = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in keys.items())
        lines.append(f'    {{{head}, "candidates": [\n      {shown}\n    ]}}')
    write_text(path, '{\n  "rows": [\n' + ",\n".join(lines) + "\n  ]\n}\n")


@lru_cache
def _rows(path: Path) -> tuple[Row, ...]:
    return read_table(path)


@lru_cache(maxsize=4096)
def _candidates(
    path: Path, kernel: str, arch: str, dtype: torch.dtype, head_dim: int, many: bool, triton: str
) -> tuple[Candidate, ...]:
    name, width = str(dtype).removeprefix("torch."), padded_head_dim(head_dim)
    for row in _rows(path):
        if row.matches(kernel, arch, name, width, many, triton):
            return row.candidates
    raise ConfigError(f"{path}: no row for {kernel}, {arch}, {name}, head width {width}")


def candidates(kernel: str, arch: str, dtype: torch.dtype, head_dim: int, queries: int) -> tuple[Candidate, ...]:
    """Candidates of a kernel, the default first.

    Args:
        kernel: one of `KERNELS`.
        arch: "sm_90", "gfx942" ..., one of `ARCHITECTURES`; others get the rows that hold for every architecture.
        dtype: of the values.
        head_dim: channels of a head; the table is looked up at the next power of two.
        queries: queries of one target frame.

    Raises:
        ConfigError: the table cannot be read or has no row for these keys.
    """
    path = Path(os.environ.get(TABLE_VARIABLE) or DEFAULT_TABLE)
    return _candidates(path, kernel, arch, dtype, head_dim, queries > FEW_QUERIES, triton_version())


def choose(kernel: str, arch: str, dtype: torch.dtype, head_dim: int, queries: int) -> Candidate:
    """The default candidate; arguments and errors as for `candidates`."""
    return candidates(kernel, arch, dtype, head_dim, queries)[0]


def padded_head_dim(head_dim: int) -> int:
    """The power of two, at least 8, that holds a head's channels."""
    return max(8, 1 << (head_dim - 1).bit_length())
