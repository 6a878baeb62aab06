"""The whole model on a CPU: the engine beside ONNX Runtime and OpenVINO on our export, and beside an earlier commit.

    python -m bench.studies.processor --output bench/results/cpu_model.json --before ../old --onnx model.onnx

Each clip goes through the backbone with all its frames, and three of them are predicted. Rounds alternate between the
implementations, so that what else the machine does meets all of them; the fastest round counts. `--before` names a
checkout of an earlier commit, which runs in a process of its own (`bench/studies/earlier.py`) with the same weights.
Runtimes that are not installed are left out and named.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from stnet import environment
from stnet.command_line import run
from stnet.errors import ConfigError, DataError
from stnet.execution.engine import Engine, EngineOptions
from stnet.export import ClipProgram, ClipSizes, export_onnx
from stnet.files import write_json
from stnet.model.config import PRESETS, ModelConfig
from stnet.model.detector import Detector

TARGETS = 3
Model = Callable[[Tensor], tuple[Tensor, Tensor]]
WORKER = Path(__file__).with_name("earlier.py")


def engine_of(model: Detector) -> Model:
    """Return the engine as `infer.py` makes it."""
    engine = Engine(model, EngineOptions(device="cpu"), TARGETS)

    def detect(clips: Tensor) -> tuple[Tensor, Tensor]:
        images = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return engine.detect([level.unflatten(0, clips.shape[:2]) for level in engine.extract(images)])

    return detect


def onnx_runtime(path: Path) -> Model:
    """Return an exported model in ONNX Runtime.

    Raises:
        ImportError: it is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the cores of the others
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda clips: tuple(map(torch.from_numpy, session.run(None, {name: clips.numpy()})))


def openvino(path: Path) -> Model:
    """Return an exported model in OpenVINO, in float32.

    Raises:
        ImportError: it is not installed.
    """
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda clips: tuple(torch.from_numpy(compiled(clips.numpy())[i].copy()) for i in range(2))


SAME_MODEL = 1e-2
"""Differences above are no rounding: the file was made of another model."""

RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": openvino}


class Earlier:
    """The engine of another checkout, in a process of its own that rests between its turns."""

    def __init__(self, checkout: Path, weights: Path, preset: str):
        if not (checkout / "stnet" / "__init__.py").is_file():
            raise DataError(f"--before {checkout}: no checkout of this project")
        command = [sys.executable, str(WORKER), str(weights), preset, str(torch.get_num_threads())]
        variables = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        self._process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> tuple[float, str]:
        """Return the seconds of its engine for the clips, and the file of its outputs."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise DataError("--before: its process ended; its message stands above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(options: argparse.Namespace, config: ModelConfig, folder: Path) -> tuple[dict, dict[str, str]]:
    """Seconds and differences of every implementation, and why others are missing."""
    torch.manual_seed(0)
    model = Detector(config).eval()
    _scramble(model)
    clips = torch.randn(1, config.frames, 3, options.height, options.width)
    torch.save({"model": model.state_dict(), "clips": clips, "targets": TARGETS}, folder / "weights.pth")
    found: dict[str, Model] = {"stnet": engine_of(model)}
    missing: dict[str, str] = {}
    if options.onnx is None:
        missing = dict.fromkeys(RUNTIMES, "--onnx was not given")
    else:
        missing |= _add_runtimes(found, model, options)
    with torch.inference_mode():
        expected = model(clips, targets=TARGETS)
    for name in RUNTIMES.keys() & found.keys():
        worst = max(_differences(found[name](clips), expected).values())
        if not worst <= SAME_MODEL:
            raise ConfigError(
                f"--onnx {options.onnx}: {name} differs from this model by {worst:.2g}: the file holds another one; "
                "delete it, and it is made anew"
            )
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        earlier = None
        if options.before is not None:
            earlier = Earlier(options.before, folder / "weights.pth", options.preset)
            stack.callback(earlier.close)
        for _ in range(options.rounds):
            for name, detect in found.items():
                detect(clips)  # threads that another implementation left spinning come to rest
                start = time.perf_counter()
                detect(clips)
                seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
            if earlier is not None:
                taken, outputs = earlier()
                seconds["before"] = min(seconds.get("before", float("inf")), taken)
    results = {name: _differences(detect(clips), expected) for name, detect in found.items()}
    if earlier is not None:
        results["before"] = _differences(torch.load(outputs, weights_only=True), expected)
    for name, result in results.items():
        result["seconds"], result["frames_per_second"] = seconds[name], TARGETS / seconds[name]
    return results, missing


def _add_runtimes(found: dict[str, Model], model: Detector, options: argparse.Namespace) -> dict[str, str]:
    """Add the runtimes that are installed, on a model that is exported once; return why others are missing."""
    if not options.onnx.exists():
        sizes = ClipSizes(clips=1, height=options.height, width=options.width)
        try:
            export_onnx(ClipProgram(model, TARGETS), sizes, options.onnx)
        except ConfigError as error:  # the packages are not installed
            return dict.fromkeys(RUNTIMES, str(error))
    missing = {}
    for name, load in RUNTIMES.items():
        try:
            found[name] = load(options.onnx)
        except ImportError as error:
            missing[name] = str(error)
    return missing


def _scramble(model: Detector) -> None:
    """Give zero-initialized layers weights: what they compute must not be a constant."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std(correction=0).clamp(0.02, 0.2))


def _differences(outputs: tuple[Tensor, Tensor], expected) -> dict[str, float]:
    logits, boxes = outputs
    return {
        "logits": (logits - expected.logits).abs().max().item(),
        "boxes": (boxes - expected.boxes).abs().max().item(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.processor", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="result file to write")
    parser.add_argument("--before", type=Path, metavar="DIR", help="checkout of an earlier commit to measure as well")
    parser.add_argument(
        "--onnx", type=Path, metavar="FILE", help="measure the runtimes on this model of the same size, made if absent"
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="the model (default: %(default)s)")
    parser.add_argument("--height", type=int, default=256, help="rows of the frames (default: %(default)s)")
    parser.add_argument("--width", type=int, default=320, help="columns of the frames (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="of which the fastest counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    return run(lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    config = ModelConfig.preset(options.preset)
    with tempfile.TemporaryDirectory() as folder:
        results, missing = measure(options, config, Path(folder))
    for name, result in results.items():
        ratio = result["seconds"] / results["stnet"]["seconds"]
        differences = f"differences to plain PyTorch {result['logits']:.1e}, {result['boxes']:.1e}"
        print(f"{name}: {result['frames_per_second']:.2f} frames/s, stnet takes 1/{ratio:.2f} of it; {differences}")
    document = {"machine": environment.describe(), "preset": options.preset, "rounds": options.rounds}
    if options.before is not None:
        document["before"] = _commit(options.before)
    size = {"height": options.height, "width": options.width, "frames": config.frames, "targets": TARGETS}
    write_json(options.output, document | size | {"models": results, "missing": missing})


def _commit(checkout: Path) -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
