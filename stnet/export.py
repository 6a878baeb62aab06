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
from stnet import command_line, files
from stnet.console import printable
from stnet.errors import ConfigError
from stnet.model.attention import SpatialTemporalDeformableAttention
from stnet.model.checkpoint import read_checkpoint, resolve, save
from stnet.model.detector import Detector
from stnet.model.provenance import PROVENANCE_KEY

ONNX_OPSET = 20  # GridSample of opset 20 knows bilinear interpolation by the name PyTorch exports
TOLERANCE = 1e-3
FORMATS = ("safetensors", "torch", "onnx")


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


def model_card(model: Detector, metadata: dict[str, str], source: str) -> str:
    """A short description in Markdown, as model hubs expect it."""
    facts = sorted(_fact(key, value) for key, value in metadata.items() if key != PROVENANCE_KEY)
    listed = "".join(fact for fact in facts if fact.startswith("- "))
    sections = "\n".join(fact for fact in facts if not fact.startswith("- "))
    return f"""---
license: apache-2.0
library_name: stnet
tags: [object-detection, ultrasound, video]
---
# STNet detector

Breast-lesion detection in ultrasound video (STNet, MICCAI 2023). Classes: {", ".join(model.config.class_names)}.
Parameters: {sum(p.numel() for p in model.parameters()):,}. Source: {source}.
{_provenance(model)}
```python
import stnet
model = stnet.load("model.safetensors")
```

Intended for research. Not a medical device; not for diagnosis. How it behaves on images of scanners and patients it
was not trained on is unknown.

{listed}
## model

```json
{model.config.to_json()}
```

{sections}"""


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


def _provenance(model: Detector) -> str:
    known = model.provenance
    if known is None:
        return "What it was trained on is unknown.\n"
    caution = f"Caution: {printable(known.caution)}.\n" if known.caution else ""
    return f"Trained on {printable(known.trained_on)}.\n{caution}"


def _fact(title: str, text: str) -> str:
    """A fact from the checkpoint: a line of a list, or a section for a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, dict):
        return f"- {title}: {text}\n"
    return f"## {title}\n\n```json\n{json.dumps(value, indent=2)}\n```\n"


def main(arguments: list[str] | None = None, prog: str = "python -m stnet.export") -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Export a detector to torch.export, ONNX and safetensors.")
    parser.add_argument("checkpoint", help="checkpoint file, or the name of a shipped one such as tiny")
    parser.add_argument("--output", type=Path, default=Path("exported"), help="folder to write (default: exported)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="what to write (default: all)")
    parser.add_argument("--height", type=int, help="rows of the frames (default: the model's image size)")
    parser.add_argument("--width", type=int, help="columns of the frames (default: the model's image size)")
    parser.add_argument("--clips", type=int, default=1, help="clips per call (default: 1)")
    parser.add_argument("--targets", type=int, default=3, help="frames predicted per clip (default: 3)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    model = stnet.load(options.checkpoint)
    size = model.config.image_size
    height, width = options.height or size, options.width or size
    for name, value, least in (("--height", height, 32), ("--width", width, 32), ("--clips", options.clips, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    if not 1 <= options.targets <= model.config.frames:
        raise ConfigError(f"--targets is {options.targets}; clips of this model have {model.config.frames} frames")
    names = {"safetensors": ("model.safetensors", "README.md"), "torch": ("model.pt2",), "onnx": ("model.onnx",)}
    paths = [options.output / name for kind in options.formats for name in names[kind]]
    taken = [str(path) for path in paths if path.exists()]
    if taken and not options.overwrite:
        raise ConfigError(f"{', '.join(taken)} exist; choose another --output or pass --overwrite")
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
    for kind, export in (("torch", export_torch), ("onnx", export_onnx)):
        if kind not in options.formats:
            continue
        path = options.output / names[kind][0]
        print(f"writing {path}; this can take minutes", file=sys.stderr)
        with _quiet():
            parity = export(program, clips, path)
        worst = max((worst, parity.logits, parity.boxes), key=lambda x: (math.isnan(x), x))
        print(f"{path}: clips {list(clips.shape)}, differences to PyTorch {json.dumps(vars(parity))}")
    if not worst <= TOLERANCE:  # nor where it is not a number
        print(
            f"error: an exported program differs from the model by {worst:.2g}, more than {TOLERANCE}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
