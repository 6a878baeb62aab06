"""Random calls of both operators, outputs and all gradients against float64.

    python -m tests.fuzz.operators --seed 0 --calls 1000 --backend cpu

Sizes, dtypes, strides, frame tables, positions (outside, far away, not finite), excluded logits and the set of wanted
gradients vary, and so does what the process happens to be set to: default dtype, default device, numpy's error state,
number of threads. Samples keep away from whole pixels, where the gradient of a position jumps.
"""

import argparse
import os
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

from stnet.kernels import backends, ms_deform_attn, spatial_temporal_deform_attn

BACKENDS = (backends.REFERENCE, *backends.BACKENDS)
# Of the norm: rounding of inputs is shared with the float64 call, so this is what sums and the output's dtype cost.
LIMITS = {torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}
FROM_WHOLE_PIXELS = 0.02
AMBIENT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
AMBIENT_DEVICES = ("cpu", "meta")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: differentiable tensors in float64 that hold numbers of their dtypes, and the rest of the arguments."""

    operator: Any
    tensors: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    wanted: tuple[str, ...]
    layouts: dict[str, str]
    others: dict[str, Any]

    def run(self, backend: str, dtypes: dict[str, torch.dtype]) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and the gradients that are wanted."""
        leaves = {name: x.to(dtypes[name]).requires_grad_(name in self.wanted) for name, x in self.tensors.items()}
        laid = {name: _laid_out(leaf, self.layouts[name]) for name, leaf in leaves.items()}
        output = self.operator(**laid, **self.others, backend=backend)
        if not self.wanted or not output.requires_grad:
            return output, {}
        weight = torch.linspace(-1, 2, output.numel(), dtype=torch.float64, device="cpu").view(output.shape)
        sources = [leaves[name] for name in self.wanted]
        gradients = torch.autograd.grad(output, sources, weight.to(output.dtype), allow_unused=True)
        return output, dict(zip(self.wanted, gradients, strict=True))

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{name} {list(x.shape)} {str(self.dtypes[name]).removeprefix('torch.')} {self.layouts[name]}"
            for name, x in self.tensors.items()
        )
        return f"{self.operator.__name__}({shapes}, {self.others}), gradients of {', '.join(self.wanted) or 'nothing'}"


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in other strides."""
    if layout == "permuted" and x.dim() > 2:
        order = [1, 0, *range(2, x.dim())]
        return x.permute(order).contiguous().permute(order)
    if layout == "sliced":
        return torch.cat((x, x), dim=-1)[..., : x.shape[-1]]
    if layout == "offset":
        return torch.cat((x.new_zeros(3), x.reshape(-1)))[3:].view(x.shape)
    return x


def draw(rng: random.Random) -> Call:
    """One random call."""
    generator = np.random.default_rng(rng.randrange(2**32))
    return (_draw_stda if rng.random() < 0.6 else _draw_msda)(rng, generator)


def _draw_levels(rng: random.Random, most: int) -> tuple[tuple[int, int], ...]:
    return tuple((rng.randint(1, 7), rng.randint(1, 7)) for _ in range(rng.randint(1, most)))


def _draw_dtypes(rng: random.Random, names: tuple[str, ...]) -> dict[str, torch.dtype]:
    """Mostly one dtype for all with positions in float32, now and then any mix."""
    if rng.random() < 0.2:
        return {name: rng.choice(tuple(LIMITS)) for name in names}
    dtype = rng.choice(tuple(LIMITS))
    return {name: torch.float32 if "reference" in name or "locations" in name else dtype for name in names}


def _draw_layouts(rng: random.Random, names: tuple[str, ...]) -> dict[str, str]:
    return {name: rng.choice(("plain", "plain", "permuted", "sliced", "offset")) for name in names}


def _draw_wanted(rng: random.Random, names: tuple[str, ...]) -> tuple[str, ...]:
    if rng.random() < 0.5:
        return names
    return tuple(name for name in names if rng.random() < 0.5)


def _positions(generator: np.random.Generator, shape: tuple[int, ...], size: np.ndarray) -> np.ndarray:
    """Positions in pixels, `[..., 2]`, from two cells before the level to two behind it; `size` broadcasts."""
    whole = np.floor(generator.uniform(-2, 2 + size, shape))
    return whole + generator.uniform(0.1, 0.9, shape)


def _spoil(generator: np.random.Generator, offsets: np.ndarray) -> None:
    """Send some samples far away or nowhere."""
    for value in (np.nan, np.inf, -np.inf, 1e30, -3e4):
        offsets[generator.random(offsets.shape) < 0.01] = value


def _rounded(x: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype).double()


def _safe(offsets: Tensor, pixels: Tensor) -> Tensor:
    """Offsets, those that round to a whole pixel sent outside instead."""
    near = (pixels - pixels.round()).abs() < FROM_WHOLE_PIXELS
    return torch.where(near, torch.full_like(offsets, 3e4), offsets)


def _draw_stda(rng: random.Random, generator: np.random.Generator) -> Call:
    shapes = _draw_levels(rng, 4)
    clips, frames, heads, queries = rng.randint(0, 2), rng.randint(1, 4), rng.randint(1, 3), rng.randint(0, 9)
    dim = rng.choice((1, 2, 3, 5, 8, 12, 16, 30, 32, 64, 96))
    targets, others = rng.randint(1, 3), rng.randint(0, frames - 1)
    table = tuple(tuple(rng.sample(range(frames), 1 + others)) for _ in range(targets))
    points, other_points, components = rng.randint(1, 4), rng.randint(1, 3), rng.choice((2, 4))
    levels, cells = len(shapes), sum(h * w for h, w in shapes)
    names = ("value", "reference_points", "offsets", "logits", "other_offsets", "other_logits")
    if rng.random() < 0.3:
        names += ("other_reference_points",)
    dtypes, layouts = _draw_dtypes(rng, names), _draw_layouts(rng, names)
    tensors = {"value": _rounded(generator.normal(size=(clips, frames, cells, heads, dim)), dtypes["value"])}
    rows = (clips, targets, queries)
    for name in names:
        if "reference" in name:
            centre = generator.uniform(-0.1, 1.1, (*rows, levels, components))
            centre[..., 2:] = generator.uniform(0.1, 0.9, centre[..., 2:].shape)
            tensors[name] = _rounded(centre, dtypes[name])
    size = np.array([(w, h) for h, w in shapes], dtype=float)
    for prefix, number, middle in (("", points, ()), ("other_", other_points, (others,))):
        reference = tensors[f"{prefix}reference_points" if f"{prefix}reference_points" in tensors else names[1]]
        shape = (*rows, heads, *middle, levels, number, 2)
        wanted = _positions(generator, shape, size[:, None])
        base = reference.numpy().reshape(*rows, 1, *(1 for _ in middle), levels, 1, components)
        scale = base[..., 2:] * 0.5 / number * size[:, None] if components == 4 else np.ones(2)
        offsets = (wanted + 0.5 - base[..., :2] * size[:, None]) / scale
        _spoil(generator, offsets)
        rounded = _rounded(offsets, dtypes[f"{prefix}offsets"])
        pixels = torch.from_numpy(base[..., :2] * size[:, None]) + rounded * torch.from_numpy(scale) - 0.5
        tensors[f"{prefix}offsets"] = _safe(rounded, pixels)
        logits = generator.normal(size=shape[:-1]) * 2
        logits[generator.random(logits.shape) < 0.05] = -np.inf
        tensors[f"{prefix}logits"] = _rounded(logits, dtypes[f"{prefix}logits"])
    return Call(
        operator=spatial_temporal_deform_attn,
        tensors={name: tensors[name] for name in names},
        dtypes=dtypes,
        wanted=_draw_wanted(rng, names),
        layouts=layouts,
        others={"spatial_shapes": shapes, "frame_table": table, "deterministic": rng.choice((True, False, None))},
    )


def _draw_msda(rng: random.Random, generator: np.random.Generator) -> Call:
    shapes = _draw_levels(rng, 6)
    batch, heads, queries, points = rng.randint(0, 2), rng.randint(1, 4), rng.randint(0, 9), rng.randint(1, 5)
    dim = rng.choice((1, 2, 4, 7, 8, 16, 32, 64, 128))
    levels, cells = len(shapes), sum(h * w for h, w in shapes)
    names = ("value", "sampling_locations", "attention_weights")
    dtypes = _draw_dtypes(rng, names)
    size = np.array([(w, h) for h, w in shapes], dtype=float)[:, None]
    shape = (batch, queries, heads, levels, points, 2)
    locations = (_positions(generator, shape, size) + 0.5) / size
    _spoil(generator, locations)
    rounded = _rounded(locations, dtypes["sampling_locations"])
    starts = np.cumsum([0, *(h * w for h, w in shapes)])[:-1].tolist()
    spatial_shapes, level_start_index = shapes, starts
    if rng.random() < 0.5:
        spatial_shapes, level_start_index = torch.tensor(shapes, device="cpu"), torch.tensor(starts, device="cpu")
    return Call(
        operator=ms_deform_attn,
        tensors={
            "value": _rounded(generator.normal(size=(batch, cells, heads, dim)), dtypes["value"]),
            "sampling_locations": _safe(rounded, rounded * torch.from_numpy(size) - 0.5),
            "attention_weights": _rounded(generator.uniform(size=shape[:-1]), dtypes["attention_weights"]),
        },
        dtypes=dtypes,
        wanted=_draw_wanted(rng, names),
        layouts=_draw_layouts(rng, names),
        others={"spatial_shapes": spatial_shapes, "level_start_index": level_start_index},
    )


@contextmanager
def ambient(rng: random.Random, backend: str) -> Iterator[str]:
    """Set what a process may happen to be set to; the text says what."""
    # Triton's interpreter computes by numpy itself.
    errors = "ignore" if backend == "triton" else rng.choice(("raise", "ignore"))
    dtype, device, threads = rng.choice(AMBIENT_DTYPES), rng.choice(AMBIENT_DEVICES), torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    torch.set_num_threads(rng.randint(1, threads))
    try:
        with np.errstate(all=errors):
            yield f"default dtype {dtype}, default device {device}, {torch.get_num_threads()} threads"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)


def trial(seed: int, number: int, backend: str) -> str | None:
    """One call; return what is wrong with it, or None."""
    rng = random.Random(f"{seed} {number}")
    call = draw(rng)
    expected, gradients = call.run("reference", dict.fromkeys(call.tensors, torch.float64))
    with ambient(rng, backend) as circumstances:
        try:
            output, found = call.run(backend, call.dtypes)
        except Exception:  # whatever comes out of a valid call is a failure
            return f"call {number}: {call}, {circumstances}: {traceback.format_exc(limit=-3)}"
    # What is summed in 16 bits anywhere limits all.
    limit = max(LIMITS[dtype] for dtype in call.dtypes.values())
    wrong = _difference(output, expected, limit)
    if wrong:
        return f"call {number}: {call}, {circumstances}: output {wrong}"
    for name in call.wanted:
        wrong = _difference(found.get(name), gradients.get(name), 3 * limit)
        if wrong:
            return f"call {number}: {call}, {circumstances}: gradient of {name} {wrong}"
    return None


def _difference(found: Tensor | None, expected: Tensor | None, limit: float) -> str | None:
    if expected is None or expected.numel() == 0:
        return None if found is None or not found.numel() or not found.any() else f"is {found.norm():.3g} instead of 0"
    found = torch.zeros_like(expected) if found is None else found.detach().double()
    expected = expected.detach()
    if found.shape != expected.shape:
        return f"has shape {list(found.shape)} instead of {list(expected.shape)}"
    if not found.isfinite().all():
        return f"holds {int((~found.isfinite()).sum())} numbers that are not finite"
    # Terms of order 1 may cancel: the gradient of a softmax over one logit is 0.
    error = (found - expected).norm() / expected.norm().clamp_min(0.05 * expected.numel() ** 0.5)
    return None if error <= limit else f"is off by {error:.2g} of its norm (limit {limit:.2g})"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--calls", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first call, to repeat one")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="default: %(default)s")
    options = parser.parse_args(arguments)
    failures = 0
    for number in range(options.first, options.first + options.calls):
        wrong = trial(options.seed, number, options.backend)
        if wrong:
            failures += 1
            print(wrong, flush=True)
    print(f"{options.backend}, seed {options.seed}: {options.calls} calls, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
