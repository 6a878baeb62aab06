"""Export a detector for other runtimes, with the difference to PyTorch measured and printed.

    python -m stnet.export tiny --output exported --height 128 --width 160

writes `model.safetensors` with a model card, `model.pt2` (torch.export) and `model.onnx`. Exported programs take clips
of one size, [B, F, 3, height, width] normalized, without padding, and give logits [B, T, Q, classes] and boxes
[B, T, Q, 4] (cx, cy, w, h in [0, 1]). They are made of portable operations: they run without Triton and without stnet.
"""

import argparse
import copy
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import stnet
from stnet import files
from stnet.choices import PROGRAM_FILES
from stnet.console import printable
from stnet.errors import ConfigError
from stnet.model.attention import SpatialTemporalDeformableAttention
from stnet.model.card import model_card
from stnet.model.checkpoint import read_checkpoint, resolve, save
from stnet.model.detector import Detector

ONNX_OPSET = 20  # GridSample of opset 20 knows bilinear interpolation by the name PyTorch exports
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest absolute differences between an exported program and the model."""

    logits: float
    boxes: float


class _ClipProgram(nn.Module):
    """The detector as a function of clips alone."""

    def __init__(self, model: Detector, targets: int):
        super().__init__()
        self.model, self.targets = model, targets

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(clips, targets=self.targets)
        return output.logits, output.boxes


def portable_program(model: Detector, targets: int) -> nn.Module:
    """Return a copy of the detector in evaluation mode with its operators made of plain PyTorch operations."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, SpatialTemporalDeformableAttention):
            module.backend = "reference"
    return _ClipProgram(model.eval().requires_grad_(False), targets)


def export_torch(program: nn.Module, clips: Tensor, path: Path) -> Parity:
    """Write a `torch.export` program and compare what is read back with the model."""
    with files.replacing(path) as temporary:
        torch.export.save(_exported(program, clips), temporary)
        loaded = torch.export.load(temporary).module()
        return _parity(program, loaded, clips)


def export_onnx(program: nn.Module, clips: Tensor, path: Path) -> Parity:
    """Write an ONNX model and compare ONNX Runtime on the CPU with the model.

    Raises:
        ConfigError: the packages onnx, onnxscript and onnxruntime are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX export needs {error.name}: pip install 'stnet[onnx]'") from error
    # Without the optimizer's constant folding, which takes minutes and changes nothing that a runtime does not redo.
    exported = torch.onnx.export(
        _exported(program, clips), dynamo=True, opset_version=ONNX_OPSET, optimize=False, verbose=False
    )
    exported.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; of what it cannot fold it warns by the dozen
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: inputs.numpy()})]

    return _parity(program, run, clips)


def _exported(program: nn.Module, clips: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        program(clips)  # the geometry of this size is kept by now, and becomes a constant of the program
        return torch.export.export(program, (clips,))


@torch.no_grad()
def _parity(program: Callable, other: Callable, clips: Tensor) -> Parity:
    clips = torch.randn_like(clips)
    logits, boxes = (
        (ours - theirs).abs().max().item() for ours, theirs in zip(program(clips), other(clips), strict=True)
    )
    return Parity(logits=logits, boxes=boxes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from reporting their insides by the dozen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export(options: argparse.Namespace) -> int:
    """Write what the options of `stnet export` ask for; return the exit status.

    Raises:
        StnetError: the model cannot be loaded, or not be exported so.
        OSError: a file cannot be written.
    """
    model = stnet.load(options.checkpoint)
    size = model.config.image_size
    height, width = options.height or size, options.width or size
    if not 1 <= options.targets <= model.config.frames:
        raise ConfigError(f"--targets is {options.targets}; clips of this model have {model.config.frames} frames")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{options.output}: cannot be written ({error.strerror or error}); choose another --output"
        ) from error

    if "safetensors" in options.formats:
        metadata = read_checkpoint(resolve(options.checkpoint)).metadata
        save(model, options.output / "model.safetensors", metadata)
        files.write_text(options.output / "README.md", model_card(model, metadata, printable(str(options.checkpoint))))
        print(f"{options.output / 'model.safetensors'}: weights, with a model card beside them")

    program = portable_program(model, options.targets)
    clips = torch.randn(options.clips, model.config.frames, 3, height, width)
    worst = 0.0
    for kind, write in (("torch", export_torch), ("onnx", export_onnx)):
        if kind not in options.formats:
            continue
        path = options.output / PROGRAM_FILES[kind][0]
        print(f"writing {path}; this can take minutes", file=sys.stderr)
        with _quiet():
            parity = write(program, clips, path)
        worst = max((worst, parity.logits, parity.boxes), key=lambda x: (math.isnan(x), x))
        print(f"{path}: clips {list(clips.shape)}, differences to PyTorch {json.dumps(vars(parity))}")
    if not worst <= TOLERANCE:  # nor where it is not a number
        print(
            f"error: an exported program differs from the model by {worst:.2g}, more than {TOLERANCE}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    from stnet.export_command import main

    sys.exit(main())
