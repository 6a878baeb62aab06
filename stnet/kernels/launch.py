"""How the Triton kernels are launched: the table of tile shapes, small tables on the device, and one call as data.

The launch table (`launch_table.json`, or the file named by the environment variable STNET_LAUNCH_TABLE) is a list of
rows. A row says for which kernel, architectures, dtypes, head widths, numbers of queries and versions of Triton it is,
and names its candidates in order: the first is the default, the others are what the tuner (`python -m
stnet.kernels.tune`) compares it with. The first row that matches wins, so measured rows stand before general ones.
Nothing is tuned at run time.

A kernel module describes each launch as a `KernelCall`: `launch` runs it, `ast_source` is the same call for
`triton.compile`, ahead of time and without a GPU. `ast_sources` makes the calls of a whole problem from `meta` tensors:

    for candidate in candidates("stda_forward", "sm_90", torch.float16, 32, queries=5440):
        for source, options in ast_sources("stda_forward", candidate, torch.float16, 32, problem, arch="sm_90"):
            triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
"""

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stnet.errors import ConfigError
from stnet.kernels.problem import StdaProblem, level_starts

TABLE_VARIABLE = "STNET_LAUNCH_TABLE"
DEFAULT_TABLE = Path(__file__).with_name("launch_table.json")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
ARITHMETICS = ("float32", "packed", "matrix")
FEW_QUERIES = 2048  # up to here a call counts as "few" (the decoder), above as "many" (the encoder)

# Which module makes the calls of a kernel: it has `example_calls(kernel, candidate, dtype, problem, arch)`.
KERNEL_MODULES = {
    "stda_forward": "stnet.kernels.triton_forward",
    "msda_forward": "stnet.kernels.triton_forward",
    "stda_backward": "stnet.kernels.triton_backward",
    "msda_backward": "stnet.kernels.triton_backward",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compile a kernel.

    Attributes:
        block_queries: queries of one program, a power of two; backward kernels may take more (`triton_backward._tile`).
        num_warps: warps of one program. With 16-byte loads a warp holds a row of 32 channels in 4 lanes (16-bit types)
            or 8 lanes (float32).
        block_channels: channels taken at a time, a power of two. Forward, a wider head is shared among programs, each
            of which computes positions and softmax anew, which costs less than the registers of a wide tile. Backward,
            a program takes its blocks in turn.
        hold_gradient: backward, the output gradient stays in registers where one block holds a head; else it is read
            anew for every chunk of samples.
        arithmetic: how the four corners of a sample are interpolated. "float32"; "packed": pairs of 16-bit numbers,
            samples added in float32; "matrix": packed, and the matrix unit adds the samples in float32. The last two
            need an NVIDIA GPU from sm_80 on and 16-bit values that can be read in pairs, and are "float32" elsewhere.
        maxnreg: upper bound of registers per thread, None for the compiler's choice; 255, all there are, keeps it from
            choosing fewer and spilling.
        unroll: frames taken in one step of the loop over the other frames.
        milliseconds: median time measured by the tuner, None where nothing was measured.
    """

    block_queries: int = 32
    num_warps: int = 1
    block_channels: int = 32
    arithmetic: str = "float32"
    maxnreg: int | None = None
    hold_gradient: bool = True
    unroll: int = 1
    milliseconds: float | None = None

    def __post_init__(self):
        for name in ("block_queries", "num_warps", "block_channels"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1 or number & (number - 1):
                raise ConfigError(f"launch table: {name} is {number!r}; it needs a power of two")
        if self.arithmetic not in ARITHMETICS:
            raise ConfigError(f"launch table: arithmetic is {self.arithmetic!r}; known: {', '.join(ARITHMETICS)}")
        if not isinstance(self.hold_gradient, bool):
            raise ConfigError(f"launch table: hold_gradient is {self.hold_gradient!r}; it needs true or false")
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
        if self.kernel not in KERNEL_MODULES:
            raise ConfigError(f"launch table: kernel {self.kernel!r}; known: {', '.join(KERNEL_MODULES)}")
        if not self.candidates:
            raise ConfigError(f"launch table: a row of {self.kernel} has no candidates")

    def matches(self, kernel: str, arch: str, dtype: str, head_dim: int, many: bool, triton: str) -> bool:
        return (
            self.kernel == kernel
            and (not self.architectures or arch in self.architectures)
            and (not self.dtypes or dtype in self.dtypes)
            and (not self.head_dims or head_dim in self.head_dims)
            and self.many_queries in (None, many)
            and (not self.tritons or triton in self.tritons)
        )

    def as_json(self) -> dict[str, Any]:
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
            f"{path}: not a launch table ({error}); python -m stnet.kernels.tune --out FILE writes one"
        ) from error


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as `read_table` reads them, one candidate a line."""
    lines = []
    for row in rows:
        keys = row.as_json()
        shown = ",\n      ".join(json.dumps(candidate) for candidate in keys.pop("candidates"))
        head = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in keys.items())
        lines.append(f'    {{{head}, "candidates": [\n      {shown}\n    ]}}')
    path.write_text('{\n  "rows": [\n' + ",\n".join(lines) + "\n  ]\n}\n", encoding="utf-8")


_forced: dict[str, Candidate] = {}


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
        kernel: a key of `KERNEL_MODULES`.
        arch: "sm_90", "gfx942" ..., see `ARCHITECTURES`; others get the rows that hold for every architecture.
        head_dim: channels of a head; the table is looked up at the next power of two.
        queries: queries of one target frame.

    Raises:
        ConfigError: the table cannot be read or has no row for these keys.
    """
    path = Path(os.environ.get(TABLE_VARIABLE) or DEFAULT_TABLE)
    return _candidates(path, kernel, arch, dtype, head_dim, queries > FEW_QUERIES, triton_version())


def choose(kernel: str, arch: str, dtype: torch.dtype, head_dim: int, queries: int) -> Candidate:
    """The default candidate; arguments and errors as for `candidates`."""
    return _forced.get(kernel) or candidates(kernel, arch, dtype, head_dim, queries)[0]


@contextmanager
def forced(kernel: str, candidate: Candidate) -> Iterator[None]:
    """Inside, `choose` returns this candidate for this kernel, for the tuner. In one thread only."""
    _forced[kernel] = candidate
    try:
        yield
    finally:
        del _forced[kernel]


def padded_head_dim(head_dim: int) -> int:
    """The power of two, at least 8, that holds a head's channels."""
    return max(8, 1 << (head_dim - 1).bit_length())


@cache
def triton_version() -> str:
    """Major and minor version of the installed Triton, "" without one. The machine code of a kernel depends on it."""
    try:
        import triton
    except ImportError:
        return ""
    return ".".join(triton.__version__.split(".")[:2])


@lru_cache
def architecture(device: torch.device) -> str:
    """Architecture of a GPU as the launch table names it; "cpu" under Triton's interpreter."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def is_nvidia(arch: str) -> bool:
    """Whether kernels for an architecture may hold inline PTX."""
    return arch.startswith("sm_")


def warp_lanes(arch: str) -> int:
    """Lanes of a warp."""
    return 64 if arch.startswith("gfx") else 32


def has_packed_arithmetic(arch: str) -> bool:
    """Whether an architecture has the instructions of the "packed" and "matrix" arithmetics: NVIDIA from sm_80 on."""
    return is_nvidia(arch) and int(arch.removeprefix("sm_")) >= 80


def has_vector_reductions(arch: str) -> bool:
    """Whether one reduction adds up to four float32 in global memory: NVIDIA from sm_90 on."""
    return is_nvidia(arch) and int(arch.removeprefix("sm_")) >= 90


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One launch of a `triton.jit` function, as data.

    Attributes:
        grid: programs along x, y, z.
        arguments: run-time arguments by name, tensors and ints, in the order of the function's parameters.
        constants: its `tl.constexpr` parameters by name.
        options: `num_warps` and other compile options.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Mapping[str, int]

    def launch(self) -> None:
        """Launch on the device of the first tensor, whichever device is current."""
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        with _on(device):
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def ast_source(self):
        """`triton.compiler.ASTSource` of this call; a pointer counts as 16-byte aligned, as PyTorch allocates."""
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        signature = {
            name: "constexpr" if name in self.constants else _type_name(self.arguments[name]) for name in names
        }
        constants = {(names.index(name),): value for name, value in self.constants.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
        return ASTSource(self.kernel, signature, constants, aligned)


def _on(device: torch.device):
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def _type_name(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def ast_sources(
    kernel: str,
    candidate: Candidate,
    dtype: torch.dtype,
    head_dim: int,
    problem: StdaProblem,
    arch: str,
) -> list[tuple[Any, dict[str, int]]]:
    """(ASTSource, options) of every launch a kernel makes for a problem, for `triton.compile`.

    Needs no GPU, but a process without TRITON_INTERPRET. Works like a call with contiguous tensors (values stored by
    heads, [B, F, H, S, D]) of `dtype`, reference points of float32, and all gradients wanted.

    Args:
        head_dim: channels of a head, replacing `problem.head_dim`.
        arch: decides about inline PTX and other choices of the launch; give `triton.compile` the same target.
    """
    return [
        (call.ast_source(), dict(call.options)) for call in calls(kernel, candidate, dtype, head_dim, problem, arch)
    ]


def calls(
    kernel: str,
    candidate: Candidate,
    dtype: torch.dtype,
    head_dim: int,
    problem: StdaProblem,
    arch: str,
) -> list[KernelCall]:
    """The `KernelCall`s behind `ast_sources`, on `meta` tensors: their grids, run-time arguments and constants."""
    module = importlib.import_module(KERNEL_MODULES[kernel])
    return module.example_calls(kernel, candidate, dtype, head_dim, problem, arch)


# Device tables are kept for good: a captured CUDA graph holds their addresses. They are small.
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


def alignment(tensor: Tensor, dims: Sequence[int], limit: int = 16) -> int:
    """Bytes, a power of two up to `limit`, to which every slice along `dims` of a tensor is aligned."""
    size = tensor.element_size()
    bits = limit if tensor.is_meta else tensor.data_ptr() | limit
    for dim in dims:
        if tensor.shape[dim] > 1:
            bits |= tensor.stride(dim) * size
    return bits & -bits


def packed(tensor: Tensor, dims: int) -> Tensor:
    """The tensor, copied if its last `dims` dimensions are not contiguous among themselves."""
    expected = 1
    for dim in range(tensor.dim() - 1, tensor.dim() - 1 - dims, -1):
        if tensor.shape[dim] > 1 and tensor.stride(dim) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[dim]
    return tensor


def strides(name: str, tensor: Tensor, dims: tuple[int, ...], letters: str) -> dict[str, int]:
    """Strides of `dims` in elements, as the kernels name them: `{name}_{letter}`."""
    return {f"{name}_{letter}": tensor.stride(dim) for letter, dim in zip(letters, dims, strict=True)}
