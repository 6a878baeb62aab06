"""Cases for the operators, and the backends they are tried on."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from stnet.kernels import ms_deform_attn, spatial_temporal_deform_attn
from stnet.kernels.backends import BACKENDS
from stnet.kernels.plans import Memory
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors, check_msda, check_stda


@pytest.fixture(autouse=True)
def _several_threads():
    """Have jobs of the CPU kernels run beside each other, as they do outside of tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass
class Case:
    """The arguments of one call: differentiable tensors by name, and the rest."""

    operator: object
    tensors: dict[str, torch.Tensor]
    others: dict[str, object]

    def to(self, **conversion) -> "Case":
        return Case(self.operator, {n: x.detach().to(**conversion) for n, x in self.tensors.items()}, self.others)

    def replaced(self, **tensors) -> "Case":
        return Case(self.operator, {**self.tensors, **tensors}, self.others)

    def run(self, backend: str, device: str = "cpu", **options) -> torch.Tensor:
        arguments = {**self.tensors, **self.others}
        if device != "cpu":
            arguments = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
        return self.operator(**arguments, backend=backend, **options)

    @property
    def checked(self) -> tuple[StdaProblem | MsdaProblem, StdaTensors | MsdaTensors]:
        """The problem and its tensors, as the functions of a backend take them."""
        if self.operator is spatial_temporal_deform_attn:
            tensors = StdaTensors(**self.tensors)
            return check_stda(tensors, **self.others), tensors
        problem = check_msda(MsdaTensors(**self.tensors), **self.others)
        levels = {} if problem.spatial_shapes else self.others
        return problem, MsdaTensors(**self.tensors, **levels)

    def gradients(self, backend: str, device: str = "cpu", weight: torch.Tensor | None = None, **options):
        """The output and the gradients by name of (output * weight).sum()."""
        leaves = {name: x.detach().clone().requires_grad_() for name, x in self.tensors.items()}
        output = self.replaced(**leaves).run(backend, device, **options)
        if weight is None:
            weight = torch.linspace(-1.0, 2.0, output.numel()).view(output.shape)
        if output.requires_grad:  # the empty output of the reference does not depend on its inputs
            output.backward(weight.to(output))
        # The reference passes no gradient, rather than zeros, to inputs it never reads.
        grads = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
        return output.detach().cpu(), grads


@dataclass
class Backend:
    """A backend, the device it is tried on, and how often its kernels ran."""

    name: str
    device: str
    calls: dict[str, int] = field(default_factory=dict)

    def run(self, case: Case, **options) -> torch.Tensor:
        with self._expect_calls("forward"):
            return case.run(self.name, self.device, **options).cpu()

    def gradients(self, case: Case, **options):
        with self._expect_calls("forward", "backward"):
            return case.gradients(self.name, self.device, **options)

    def _expect_calls(self, *directions):
        return _ExpectCalls(self, directions)


class _ExpectCalls:
    def __init__(self, backend: Backend, directions: tuple[str, ...]):
        self.backend, self.directions = backend, directions

    def __enter__(self):
        self.backend.calls.clear()

    def __exit__(self, kind, error, trace):
        if kind is None:
            expected = {} if self.backend.name == "reference" else dict.fromkeys(self.directions, 1)
            assert self.backend.calls == expected, f"the kernels of {self.backend.name} did not run once"


@pytest.fixture(autouse=True)
def _maximum_of_nan_and_a_number(monkeypatch):
    """As on GPUs, the number: the interpreter of Triton 3.6 takes the NaN, and then reads what a NaN points to."""
    if find_spec("triton") is not None:
        from triton.runtime.interpreter import InterpreterBuilder

        for name, function in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
            monkeypatch.setattr(InterpreterBuilder, name, lambda self, a, b, f=function: self.binary_op(a, b, f))


@pytest.fixture(params=["reference", *BACKENDS])
def backend(request, monkeypatch) -> Backend:
    """Each backend in turn; running a case on it asserts that its kernels, and no others, did the work."""
    name = request.param
    if name == "cpu" and find_spec("numba") is None:
        pytest.skip("numba is not installed")
    if name == "triton" and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    device = "cuda" if name == "triton" and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
    backend = Backend(name, device)

    def watched(prepared: Prepared, *tensors):
        backend.calls[prepared.direction] = backend.calls.get(prepared.direction, 0) + 1
        return prepared.run(*tensors)

    for chosen in BACKENDS:
        watch_backend(monkeypatch, chosen, watched if chosen == name else _not_expected)
    return backend


def _not_expected(prepared, *tensors):
    raise AssertionError(f"the kernels of another backend ran: {prepared.run}")


class Prepared(NamedTuple):
    """A call that a backend has prepared: forward or backward, from which arguments, and what runs it."""

    direction: str
    arguments: tuple
    run: Callable


def watch_backend(monkeypatch, name: str, watched) -> None:
    """Let `watched(prepared, *tensors)` run what a backend, which loads when it is used, has prepared."""
    real = BACKENDS[name]

    def functions(direction: str) -> SimpleNamespace:
        def of(operator: str):
            def prepare(*arguments):
                run = getattr(getattr(real, direction), f"{operator}_{direction}")(*arguments)
                prepared = Prepared(direction, arguments, run)
                return lambda *tensors: watched(prepared, *tensors)

            return prepare

        return SimpleNamespace(**{f"{operator}_{direction}": of(operator) for operator in ("stda", "msda")})

    watching = {"forward": functions("forward"), "backward": functions("backward")}
    same = {"devices": real.devices, "refusal": real.refusal, "settings": real.settings}
    fake = SimpleNamespace(name=name, plans=Memory(), **same, **watching)
    monkeypatch.setitem(BACKENDS, name, fake)


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """Names of the backends whose functions run, in order."""
    asked = []

    def watching(name: str):
        return lambda prepared, *tensors: asked.append(name) or prepared.run(*tensors)

    for name in BACKENDS:
        watch_backend(monkeypatch, name, watching(name))
    return asked


def make_stda(
    shapes=((4, 6), (2, 3)),
    clips=2,
    frames=3,
    heads=2,
    dim=8,
    targets=2,
    queries=5,
    points=2,
    other_points=1,
    other_frames=None,
    components=2,
    frame_table=None,
    seed=0,
) -> Case:
    """Random arguments in float64.

    Samples lie up to two cells outside and at least 0.05 pixels from integer positions, where the gradient jumps.
    """
    generator = torch.Generator().manual_seed(seed)
    cells, levels = sum(h * w for h, w in shapes), len(shapes)
    others = frames - 1 if other_frames is None else other_frames
    query = (clips, targets, queries)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def uniform(low, high, *size):
        return low + (high - low) * torch.rand(*size, generator=generator, dtype=torch.float64)

    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)

    def references():
        centre = uniform(-0.1, 1.2, *query, levels, 2)
        return centre if components == 2 else torch.cat([centre, uniform(0.1, 0.6, *query, levels, 2)], -1)

    def offsets(reference, groups, count):
        span = (size + 3)[:, None]
        position = (uniform(0, 1, *query, heads, groups, levels, count, 2) * span - 2).floor()
        position = position + uniform(0.05, 0.95, *position.shape)
        reference = reference[:, :, :, None, None, :, None]
        pixels = position + 0.5 - reference[..., :2] * size[:, None]
        return pixels if components == 2 else pixels / (reference[..., 2:] * 0.5 / max(1, count) * size[:, None])

    reference, other_reference = references(), references()
    tensors = {
        "value": normal(clips, frames, cells, heads, dim),
        "reference_points": reference,
        "offsets": offsets(reference, 1, points).squeeze(4),
        "logits": normal(*query, heads, levels, points),
        "other_offsets": offsets(other_reference, others, other_points),
        "other_logits": normal(*query, heads, others, levels, other_points),
        "other_reference_points": other_reference,
    }
    rest = {"spatial_shapes": shapes, "frame_table": frame_table}
    return Case(spatial_temporal_deform_attn, tensors, rest)


def make_msda(shapes=((4, 6), (2, 3)), batch=2, heads=2, dim=8, queries=5, points=2, ints=False, seed=0) -> Case:
    """Random arguments in float64, positions as in `make_stda`."""
    like = make_stda(shapes, batch, 1, heads, dim, 1, queries, points, 1, 0, seed=seed).tensors
    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)
    pixels = like["reference_points"][:, :, :, None, :, None] * size[:, None] + like["offsets"]
    tensors = {
        "value": like["value"].squeeze(1),
        "sampling_locations": (pixels / size[:, None]).squeeze(1),
        "attention_weights": like["logits"].squeeze(1),
    }
    cells = [h * w for h, w in shapes]
    starts = [sum(cells[:level]) for level in range(len(cells))]
    levels = (shapes, starts) if ints else (torch.tensor(shapes), torch.tensor(starts))
    return Case(ms_deform_attn, tensors, dict(zip(("spatial_shapes", "level_start_index"), levels, strict=True)))


@pytest.fixture
def memory(monkeypatch) -> Memory:
    """Empty memories of plans: nothing is run as an earlier test decided. The one of the Triton backend is returned."""
    for backend in BACKENDS.values():
        monkeypatch.setattr(backend.plans, "_entries", {})
        monkeypatch.setattr(backend.plans, "get", backend.plans._entries.get)
    return BACKENDS["triton"].plans


@pytest.fixture
def stda_case():
    return make_stda


@pytest.fixture
def msda_case():
    return make_msda


def relative_error(computed: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error, against 1 where the expected numbers are all zero."""
    expected = expected.detach().double().cpu()
    scale = expected.norm() if expected.norm() > 0 else 1.0
    return float((computed.detach().double().cpu() - expected).norm() / scale)


@pytest.fixture(name="watch_backend")
def watch_backend_fixture():
    return watch_backend


@pytest.fixture
def error():
    return relative_error
