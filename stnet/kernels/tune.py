"""Measure the launch table's candidates on the present GPU and write a table with the fastest first.

    python -m stnet.kernels.tune --out launch_table.json
    STNET_LAUNCH_TABLE=launch_table.json python train.py ...

Every candidate of the current table is first compared with the reference on a small problem, then timed on the layers
of the published detector: CUDA events around a CUDA graph of calls on several sets of inputs, so that neither the host
nor an unusually warm cache is measured. Slower candidates stay in the table with their figures; one whose results are
wrong is reported and left out.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stnet.errors import ConfigError, StnetError
from stnet.kernels.launch import (
    DEFAULT_TABLE,
    FEW_QUERIES,
    KERNEL_MODULES,
    Row,
    architecture,
    candidates,
    forced,
    padded_head_dim,
    read_table,
    write_table,
)
from stnet.kernels.problem import StdaProblem, default_frame_table, level_starts
from stnet.kernels.reference import msda_reference, stda_reference

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Relative L2 error of the forward pass on the tuner's own small problem; gradients may have ten times as much.
_LIMITS = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
_INPUT_SETS = 4

Timer = Callable[[Sequence[Callable[[], object]], float], float]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Random arguments of one call, for both operators; `msda_*` are the classic operator's."""

    problem: StdaProblem
    value: Tensor  # [B, F, S, H, D], stored by heads
    reference: Tensor  # [B, T, Q, L, R]
    offsets: Tensor
    logits: Tensor
    other_offsets: Tensor
    other_logits: Tensor
    grad_output: Tensor  # [B, T, Q, H * D]

    @property
    def stda(self) -> tuple:
        """Positional arguments of `stda_forward`."""
        p = self.problem
        queries = (self.offsets, self.logits, self.other_offsets, self.other_logits)
        return self.value, p.spatial_shapes, self.reference, *queries, p.frame_table, None

    @property
    def msda(self) -> tuple:
        """Positional arguments of `msda_forward`: the first frame and target, offsets turned into locations."""
        shapes = torch.tensor(self.problem.spatial_shapes, device=self.value.device)
        starts = torch.tensor(level_starts(self.problem.spatial_shapes), device=self.value.device)
        reference = self.reference[:, 0, :, None, :, None, :2]
        locations = reference + self.offsets[:, 0].float() / shapes.flip(1)[:, None]
        weights = self.logits[:, 0].flatten(3).softmax(-1).view_as(self.logits[:, 0])
        return self.value[:, 0], shapes, starts, locations, weights


def layer(*, queries: int | None, head_dim: int, small: bool) -> StdaProblem:
    """Sizes of a detector layer: the encoder (queries None) or the decoder, at 512 x 512 or small enough to verify."""
    shapes = ((7, 9), (4, 5), (2, 3), (1, 2)) if small else ((64, 64), (32, 32), (16, 16), (8, 8))
    positions = sum(height * width for height, width in shapes)
    encoder = queries is None
    targets, frames = (2, 3) if small else (6 if encoder else 3, 6)
    return StdaProblem(
        clips=1,
        source_frames=frames,
        positions=positions,
        heads=2 if small else 8,
        head_dim=head_dim,
        targets=targets,
        queries=positions if encoder else queries,
        points=4,
        other_frames=frames - 1,
        other_points=2 if encoder else 4,
        components=2 if encoder else 4,
        spatial_shapes=shapes,
        frame_table=default_frame_table(targets, frames, frames - 1),
    )


def make_inputs(p: StdaProblem, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Samples within a few pixels of their reference points, as a trained network's are."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float32, device=device) * scale).to(dtype)

    query = (p.clips, p.targets, p.queries)
    rows = (*query, p.heads)
    reference = torch.rand((*query, 1, p.components), generator=generator, dtype=torch.float32, device=device)
    if p.queries == p.positions:
        reference[..., :2] = torch.cat([_centres(h, w, device) for h, w in p.spatial_shapes])[:, None]
    return Inputs(
        problem=p,
        value=normal(p.clips, p.source_frames, p.heads, p.positions, p.head_dim).transpose(2, 3),
        reference=reference.expand(-1, -1, -1, p.levels, -1),
        offsets=normal(*rows, p.levels, p.points, 2, scale=2.0),
        logits=normal(*rows, p.levels, p.points),
        other_offsets=normal(*rows, p.other_frames, p.levels, p.other_points, 2, scale=2.0),
        other_logits=normal(*rows, p.other_frames, p.levels, p.other_points),
        grad_output=normal(*query, p.heads * p.head_dim),
    )


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return torch.cartesian_prod(y, x).flip(1)


def operation(kernel: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """A call of one kernel's launcher: its output or its gradients, of all inputs."""
    from stnet.kernels import triton_backward, triton_forward

    if kernel == "stda_forward":
        arguments = inputs.stda
        return lambda: triton_forward.stda_forward(*arguments)[:1]
    if kernel == "msda_forward":
        arguments = inputs.msda
        return lambda: (triton_forward.msda_forward(*arguments),)
    if kernel == "stda_backward":
        arguments = inputs.stda
        results = triton_forward.stda_forward(*arguments)
        needs = (True,) * 6 + (False,)
        return lambda: triton_backward.stda_backward(inputs.grad_output, *arguments, *results, needs, False)[:6]
    arguments = inputs.msda
    gradient = inputs.grad_output[:, 0]
    return lambda: triton_backward.msda_backward(gradient, *arguments, (True,) * 3, False)


def expected(kernel: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """What `operation` should return, computed by the reference in float64."""
    p, direction = inputs.problem, kernel.partition("_")[2]
    if kernel.startswith("stda"):
        floating = [x for x in inputs.stda if isinstance(x, Tensor)]
        leaves = [x.double().requires_grad_() for x in floating]
        output = stda_reference(p, *leaves, leaves[1])
        gradient = inputs.grad_output
    else:
        value, _, _, locations, weights = inputs.msda
        leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
        output = msda_reference(leaves[0], p.spatial_shapes, p.level_starts, *leaves[1:])
        gradient = inputs.grad_output[:, 0]
    if direction == "forward":
        return (output.detach(),)
    return torch.autograd.grad(output, leaves, gradient.double())


def largest_error(kernel: str, inputs: Inputs) -> float:
    """Largest relative L2 error among the results of the candidate in force, as a share of what is allowed."""
    limit = _LIMITS[inputs.value.dtype] * (10 if kernel.endswith("backward") else 1)
    pairs = zip(operation(kernel, inputs)(), expected(kernel, inputs), strict=True)
    errors = [((x.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item() for x, truth in pairs]
    return max(error if error == error else float("inf") for error in errors) / limit


def time_on_gpu(calls: Sequence[Callable[[], object]], seconds: float) -> float:
    """Median milliseconds of one call, all calls replayed in turn as one CUDA graph for about `seconds`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / len(calls)

    once = max(replay() for _ in range(3))
    repeats = max(5, min(1000, round(seconds * 1e3 / (once * len(calls)))))
    return sorted(replay() for _ in range(repeats))[repeats // 2]


def tune_key(
    kernel: str,
    dtype: torch.dtype,
    head_dim: int,
    many: bool,
    device: torch.device,
    seconds: float,
    timer: Timer = time_on_gpu,
    report: Callable[[str], None] = print,
) -> Row:
    """The measured row of one key, correct candidates only, the fastest first.

    Args:
        many: the encoder's number of queries, else the decoder's.
        seconds: how long each candidate is timed.
        timer: median milliseconds of the given calls.

    Raises:
        ConfigError: no candidate gave correct results.
    """
    arch, name = architecture(device), str(dtype).removeprefix("torch.")
    queries = None if many else 300
    check = make_inputs(layer(queries=queries and 20, head_dim=head_dim, small=True), dtype, device, seed=0)
    full = layer(queries=queries, head_dim=head_dim, small=False)
    sets = [make_inputs(full, dtype, device, seed) for seed in range(_INPUT_SETS)]
    measured = []
    for candidate in candidates(kernel, arch, dtype, head_dim, FEW_QUERIES + many):
        label = f"{kernel} {name} D={head_dim} {'many' if many else 'few'} {candidate.as_json()}"
        try:
            with forced(kernel, candidate):
                share = largest_error(kernel, check)
                if share > 1:
                    report(f"{label}: WRONG, {share:.1f} times the allowed error")
                    continue
                milliseconds = timer([operation(kernel, inputs) for inputs in sets], seconds)
        except Exception as error:  # whatever a compiler raises: the other candidates may still do
            report(f"{label}: FAILED, {type(error).__name__}: {error}")
            continue
        report(f"{label}: {milliseconds:.4f} ms")
        measured.append(replace(candidate, milliseconds=round(milliseconds, 5)))
    if not measured:
        raise ConfigError(f"no candidate of {kernel} for {arch}, {name}, head width {head_dim} is correct")
    return Row(
        kernel=kernel,
        architectures=(arch,),
        dtypes=(name,),
        head_dims=(padded_head_dim(head_dim),),
        many_queries=many,
        candidates=tuple(sorted(measured, key=lambda candidate: candidate.milliseconds)),
    )


def merge(measured: Sequence[Row], table: Sequence[Row]) -> list[Row]:
    """Measured rows before those of a table, which lose rows for the same keys."""

    def key(row: Row) -> tuple:
        return row.kernel, row.architectures, row.dtypes, row.head_dims, row.many_queries

    replaced = {key(row) for row in measured}
    return [*measured, *(row for row in table if key(row) not in replaced)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if not torch.cuda.is_available():
            raise ConfigError("the tuner measures on a GPU, and PyTorch finds none here (torch.cuda.is_available())")
        device = torch.device("cuda", torch.cuda.current_device())
        print(f"{torch.cuda.get_device_name(device)}, {architecture(device)}", flush=True)
        measured = [
            tune_key(kernel, _DTYPES[dtype], head_dim, many, device, options.seconds)
            for kernel in options.kernels
            for dtype in options.dtypes
            for head_dim in options.head_dims
            for many in (True, False)
        ]
        write_table(options.out, merge(measured, read_table(DEFAULT_TABLE)))
    except (StnetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}; use it with STNET_LAUNCH_TABLE={options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stnet.kernels.tune", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("launch_table.json"), help="file to write (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each candidate is timed (%(default)s)")
    parser.add_argument("--kernels", nargs="+", choices=KERNEL_MODULES, default=list(KERNEL_MODULES))
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=list(_DTYPES))
    parser.add_argument(
        "--head-dims", nargs="+", type=int, default=[32], metavar="D", help="channels of a head (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
