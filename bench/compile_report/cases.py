"""What is compiled: the launch table's candidates on the published layers' shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stnet.choices import ARCHITECTURES, KERNELS
from stnet.kernels import published_layers
from stnet.kernels.problem import StdaProblem
from stnet.kernels.triton.launch_table import Candidate, candidates

TARGETS = ARCHITECTURES
DTYPES = ("float16", "bfloat16", "float32")

LAYERS = {
    "encoder": published_layers.encoder(),
    "decoder": published_layers.decoder(),
    "classic": published_layers.encoder(source_frames=1, other_points=1),
}
"""The published layers on one clip of 512 x 512, and the classic operator on one such frame."""


def layers_of(kernel: str) -> tuple[str, ...]:
    """Names of the layers a kernel serves."""
    return ("classic",) if kernel.startswith("msda") else ("encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the report. `default`: whether the candidate is the one that launches use."""

    kernel: str
    layer: str
    dtype: str
    head_dim: int
    candidate: Candidate
    default: bool
    target: str

    @property
    def problem(self) -> StdaProblem:
        """Sizes of the layer."""
        return LAYERS[self.layer]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a cell's channels of one head."""
        return self.head_dim * self.torch_dtype.itemsize

    @property
    def channels(self) -> int:
        """Channels of a head that one program reads."""
        return min(self.head_dim, self.candidate.block_channels)

    @property
    def full_tile_samples(self) -> int:
        """(query, head, sample) triples of the layer, queries rounded up to whole tiles."""
        p, block = self.problem, self.candidate.block_queries
        return p.clips * p.targets * p.heads * p.samples * (-(-p.queries // block) * block)


def describe(candidate: Candidate) -> str:
    """Return a candidate in one word: `q32-w1-packed`, then what differs from the defaults."""
    parts = [f"q{candidate.block_queries}", f"w{candidate.num_warps}", candidate.arithmetic]
    known = {"block_queries", "num_warps", "arithmetic", "milliseconds"}
    return "-".join([*parts, *(f"{key}{value}" for key, value in candidate.as_json().items() if key not in known)])


def cases(
    *,
    targets: Sequence[str],
    kernels: Sequence[str] = KERNELS,
    layers: Sequence[str] = tuple(LAYERS),
    dtypes: Sequence[str] = DTYPES,
    head_dims: Sequence[int] = (32,),
    defaults_only: bool = False,
) -> list[Case]:
    """Return the launch table's candidates for these keys, in a stable order.

    Raises stnet.errors.ConfigError where the launch table cannot be read.
    """
    found = []
    for kernel in kernels:
        for layer in (name for name in layers_of(kernel) if name in layers):
            for dtype in dtypes:
                for head_dim in head_dims:
                    for target in targets:
                        found.extend(_of_key(kernel, layer, dtype, head_dim, target, defaults_only))
    return found


def _of_key(kernel: str, layer: str, dtype: str, head_dim: int, target: str, defaults_only: bool) -> list[Case]:
    listed = candidates(kernel, target, getattr(torch, dtype), head_dim, LAYERS[layer].queries)
    return [
        Case(
            kernel=kernel,
            layer=layer,
            dtype=dtype,
            head_dim=head_dim,
            candidate=candidate,
            default=index == 0,
            target=target,
        )
        for index, candidate in enumerate(listed[:1] if defaults_only else listed)
    ]
