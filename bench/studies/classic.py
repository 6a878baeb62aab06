"""The classic operator on a CPU at the sizes of known detectors, ours beside what else runs there.

    python -m bench.studies.classic --output bench/results/cpu_classic.json

Rounds alternate between the implementations, so that what else the machine does meets all of them; the fastest round
counts. Those that are not installed are left out and named: `pip install torch-ms-deform-attn` compiles the C++
operator. ONNX Runtime runs the reference, exported at this very size, and has no gradients.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.timing import baselines
from stnet import environment
from stnet.command_line import run
from stnet.files import write_json
from stnet.kernels import ms_deform_attn

HEADS, CHANNELS, POINTS = 8, 32, 4
OTHERS = ("torch-ms-deform-attn", "transformers")
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Levels of an image, and object queries; None: every position is a query."""

    height: int
    width: int
    strides: tuple[int, ...]
    queries: int | None = None

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of the levels."""
        return tuple((-(-self.height // stride), -(-self.width // stride)) for stride in self.strides)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, locations around the queries, and weights that sum to one."""
        if self.queries is None:
            centres = torch.cat([_centres(*shape) for shape in self.shapes])
            spread = 0.02
        else:
            centres, spread = torch.rand(self.queries, 2), 0.1
        samples = (1, len(centres), HEADS, len(self.shapes), POINTS)
        value = torch.randn(1, sum(h * w for h, w in self.shapes), HEADS, CHANNELS)
        locations = centres[:, None, None, None] + spread * torch.randn(*samples, 2)
        return value, locations, torch.randn(samples).flatten(3).softmax(-1).view(samples)


CASES = {
    "Deformable DETR 800 x 1333, encoder": Case(height=800, width=1333, strides=(8, 16, 32, 64)),
    "Deformable DETR 800 x 1333, decoder": Case(height=800, width=1333, strides=(8, 16, 32, 64), queries=300),
    "RT-DETR 640 x 640, decoder": Case(height=640, width=640, strides=(8, 16, 32), queries=300),
}


def _centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def implementations(case: Case) -> tuple[dict[str, Attend], dict[str, str]]:
    """Return what can be measured here, and why the rest cannot."""
    found: dict[str, Attend] = {"stnet": lambda v, x, w: ms_deform_attn(v, case.shapes, None, x, w)}
    missing = {}
    for name in OTHERS:
        try:
            operator = baselines.classic(name)
        except baselines.MissingError as error:
            missing[name] = str(error)
        else:
            found[name] = lambda v, x, w, operator=operator: operator(v, case.shapes, x, w)
    try:
        found["ONNX Runtime"] = onnx_runtime(case)
    except ImportError as error:
        missing["ONNX Runtime"] = str(error)
    return found, missing


class _Reference(nn.Module):
    def __init__(self, case: Case):
        super().__init__()
        self.shapes = case.shapes

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, self.shapes, None, locations, weights, backend="reference")


def onnx_runtime(case: Case) -> Attend:
    """Return the reference in ONNX Runtime.

    Raises:
        ImportError: it is not installed.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.onnx"
        inputs = case.inputs()
        torch.onnx.export(_Reference(case), inputs, dynamo=True, opset_version=20, optimize=False).save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def attend(*tensors: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return attend


def measure(case: Case, rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Milliseconds of each implementation's fastest round, forward and with gradients, and what is missing."""
    torch.manual_seed(0)
    inputs = case.inputs()
    found, missing = implementations(case)
    expected = _forward(found["stnet"], inputs)
    gradient = torch.randn_like(expected)
    best = {name: {"error": (_forward(run, inputs) - expected).abs().max().item()} for name, run in found.items()}
    for _ in range(rounds):
        for name, attend in found.items():
            _keep_fastest(best[name], "forward", lambda attend=attend: _forward(attend, inputs))
            if name != "ONNX Runtime":
                both = lambda attend=attend: _with_gradients(attend, inputs, gradient)  # noqa: E731
                _keep_fastest(best[name], "with gradients", both)
    return best, missing


@torch.no_grad()
def _forward(attend: Attend, inputs: tuple[Tensor, ...]) -> Tensor:
    return attend(*inputs)


def _with_gradients(attend: Attend, inputs: tuple[Tensor, ...], gradient: Tensor) -> None:
    attend(*(x.detach().requires_grad_() for x in inputs)).backward(gradient)


def _keep_fastest(times: dict[str, float], name: str, function: Callable[[], object]) -> None:
    function()  # threads that another implementation left spinning come to rest
    start = time.perf_counter()
    function()
    times[name] = min(times.get(name, float("inf")), 1e3 * (time.perf_counter() - start))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.classic", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="result file to write")
    parser.add_argument("--rounds", type=int, default=15, help="of which the fastest counts (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    return run(lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    cases, left_out = {}, {}
    for title, case in CASES.items():
        cases[title], missing = measure(case, options.rounds)
        left_out |= missing
        ours = cases[title]["stnet"]
        for name, times in cases[title].items():
            ratios = {key: times[key] / ours[key] for key in ("forward", "with gradients") if key in times}
            print(title, name, {key: f"{times[key]:.2f} ms, {ratio:.2f}x" for key, ratio in ratios.items()}, sep="; ")
    document = {"machine": environment.describe(), "unit": "ms", "rounds": options.rounds, "cases": cases}
    write_json(options.output, document | {"missing": left_out})


if __name__ == "__main__":
    sys.exit(main())
