"""Export a detector for other runtimes, with the difference to PyTorch measured and printed.

    python -m stnet.export lite0 --output exported

writes `model.safetensors` with a model card, `model.pt2` (torch.export) and `model.onnx`. Exported programs take
`clips` [B, F, 3, height, width], normalized, without padding, of any number and size unless these are fixed, and give
`logits` [B, T, Q, classes] and `boxes` [B, T, Q, 4] (cx, cy, w, h in [0, 1]). They are made of portable operations:
they run without Triton and without stnet, and hold no GridSample. `examples/onnx_runtime.py` runs one with onnxruntime
and numpy.

Asked for by name: `onnx-float16`, with weights and most of the arithmetic in float16; `fused`, a torch.export program
that keeps our operator, for those who have stnet installed; `aot`, the same as an AOTInductor package for this
machine's processor, which a C++ compiler makes.
"""

import argparse
import io
import json
import logging
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import stnet
from stnet import files
from stnet.choices import PROGRAM_FILES
from stnet.console import printable
from stnet.errors import ConfigError
from stnet.execution.folding import fold_batch_norms, keep_boxes_in_float32, pack_projections
from stnet.model.card import model_card
from stnet.model.checkpoint import read_checkpoint, resolve, save
from stnet.model.detector import Detector
from stnet.model.operating_points import OPERATING_POINTS_KEY
from stnet.normalization import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    import onnx_ir

ONNX_OPSET = 18
TOLERANCE = 1e-3
TOLERANCE_16_BITS = 0.2  # of logits; what rounding costs is printed
LARGEST_EXAMPLE = 256  # side in pixels of clips to compare on, which a model of 512 would take a minute for
SIDES = (65, 4096)  # of frames, in pixels, where they are not fixed: from 65 on every level has two cells along a side


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest absolute differences between an exported program and the model."""

    logits: float
    boxes: float


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """Number of clips, and height and width of their frames in pixels; None: any."""

    clips: int | None = None
    height: int | None = None
    width: int | None = None

    def open_axes(self) -> dict[str, dict[int, str]]:
        """Return the names of the axes that are left open."""
        axes = {0: ("batch", self.clips), 3: ("height", self.height), 4: ("width", self.width)}
        return {"clips": {axis: name for axis, (name, size) in axes.items() if size is None}}

    def dynamic_shapes(self) -> dict[str, dict[int, Dim]]:
        """Return the axes that are left open as `torch.export` takes them."""
        limits = {"batch": (1, 4096), "height": SIDES, "width": SIDES}
        axes = self.open_axes()["clips"]
        return {"clips": {axis: Dim(name, min=limits[name][0], max=limits[name][1]) for axis, name in axes.items()}}

    def examples(self, frames: int, image_size: int) -> list[Tensor]:
        """Return clips to compare on: of the model's usual size if that is small, and others where sizes are open."""
        usual = max(SIDES[0], min(image_size, LARGEST_EXAMPLE))
        fixed = (self.clips, self.height, self.width)
        sizes = ((2, usual, usual), (1, SIDES[0] + 5, usual * 5 // 4))
        shapes = [tuple(f or s for f, s in zip(fixed, example, strict=True)) for example in sizes]
        return [torch.randn(clips, frames, 3, height, width) for clips, height, width in dict.fromkeys(shapes)]


class ClipProgram(nn.Module):
    """A detector as a function of clips alone, float32 in and out.

    Args:
        model: in evaluation mode; its weights are copied.
        targets: the first frames of each clip that are predicted.
        backend: of its operator; "reference" is made of portable operations.
        dtype: of weights and arithmetic; boxes are computed in float32.
    """

    def __init__(self, model: Detector, targets: int, backend: str = "reference", dtype: torch.dtype = torch.float32):
        super().__init__()
        self.model, self.targets, self.dtype = Detector(model.config, backend=backend).eval(), targets, dtype
        self.model.load_state_dict(model.state_dict())
        self.model.operating_points = model.operating_points
        fold_batch_norms(self.model)
        pack_projections(self.model)
        if dtype != torch.float32:
            keep_boxes_in_float32(self.model.to(dtype))
        self.requires_grad_(False)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[B, T, Q, classes]` and boxes `[B, T, Q, 4]` of clips `[B, F, 3, H, W]`."""
        output = self.model(clips.to(self.dtype), targets=self.targets)
        return output.logits.float(), output.boxes.float()


def export_torch(program: ClipProgram, sizes: ClipSizes, path: Path) -> Callable:
    """Write a `torch.export` program; return what is read back."""
    written = io.BytesIO()  # PyTorch ends the process where a disk is full
    torch.export.save(exported(program, sizes), written)
    with files.replacing(path) as temporary:
        temporary.write_bytes(written.getbuffer())
    return torch.export.load(path).module()


def export_package(program: ClipProgram, sizes: ClipSizes, path: Path) -> Callable:
    """Compile an AOTInductor package for this machine's processor; return what is read back.

    Raises:
        ConfigError: there is no C++ compiler that works.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / path.name
        try:
            aoti_compile_and_package(exported(program, sizes), package_path=str(package))
        except (CppCompileError, InvalidCxxCompiler) as error:
            raise ConfigError(f"{path}: needs a C++ compiler ({str(error).splitlines()[0]}); install g++") from error
        with files.replacing(path) as temporary:
            shutil.copyfile(package, temporary)
    return aoti_load_package(str(path))


def export_onnx(program: ClipProgram, sizes: ClipSizes, path: Path) -> Callable:
    """Write an ONNX model with its metadata; return what ONNX Runtime makes of it on the CPU.

    Raises:
        ConfigError: the packages onnx, onnxscript and onnxruntime are not installed.
    """
    require_onnx()
    import onnxruntime

    with _shapes_worked_out():
        onnx = torch.onnx.export(
            exported(program, sizes),
            dynamo=True,
            opset_version=ONNX_OPSET,
            optimize=False,  # it compares all pairs of nodes, which takes minutes; see `_simplify`
            verbose=False,
            input_names=["clips"],
            output_names=["logits", "boxes"],
            dynamic_shapes=sizes.open_axes(),
        )
    _simplify(onnx.model)
    onnx.model.metadata_props.update(metadata(program.model, program.targets))
    with files.replacing(path) as temporary:
        onnx.save(temporary)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; of what it cannot fold it warns by the dozen
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: map(torch.from_numpy, session.run(["logits", "boxes"], {"clips": clips.numpy()}))


def require_onnx() -> None:
    """Find the packages of ONNX export.

    Raises:
        ConfigError: one is not installed.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise ConfigError(f"ONNX export needs {name}: pip install 'stnet[onnx]'")


def _simplify(model: "onnx_ir.Model") -> None:
    """Take away what an ONNX model computes twice, or of constants alone: two thirds of its nodes.

    Among them are all of sequences, which TensorRT does not know.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.fold_constants(model, onnx_shape_inference=True)
    optimizer.remove_unused_nodes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)


def metadata(model: Detector, targets: int) -> dict[str, str]:
    """Return what a program that runs an exported model must know beside it, each value as JSON.

    `classes` are the names of labels 1, 2, ... of the logits (label 0 is never used). A frame is RGB, its short side
    resized to `image_size` unless the long one would exceed `max_image_size`, divided by 255, less `mean`, divided by
    `std`. `frames` make a clip, of which the first `targets` are predicted. Scores are the sigmoid of the logits; where
    the model has operating points, they are there under their own name, as `stnet.model.operating_points` describes.
    """
    config = model.config
    facts = {
        "classes": config.class_names,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "image_size": config.image_size,
        "max_image_size": config.max_image_size,
        "duplicate_iou": config.duplicate_iou,
        "frames": config.frames,
        "targets": targets,
    }
    written = {key: json.dumps(value) for key, value in facts.items()}
    if model.operating_points is not None:
        written[OPERATING_POINTS_KEY] = model.operating_points.to_json()
    return written


def exported(program: ClipProgram, sizes: ClipSizes) -> ExportedProgram:
    """Return the program of `torch.export`, open in what the sizes leave open."""
    config = program.model.config
    (clips, *_) = sizes.examples(config.frames, config.image_size)
    with torch.no_grad(), _shapes_worked_out():
        return torch.export.export(program, (clips,), dynamic_shapes=sizes.dynamic_shapes())


@torch.no_grad()
def parity(model: Detector, program: Callable, targets: int, clips: Tensor) -> Parity:
    """Compare a program with the model that it was made of, on one batch of clips."""
    output = model(clips, targets=targets)
    logits, boxes = program(clips)
    return Parity(logits=(logits - output.logits).abs().max().item(), boxes=(boxes - output.boxes).abs().max().item())


def _shapes_worked_out() -> AbstractContextManager:
    """Have the shapes of every operation worked out anew: looking them up takes twice as long if they are symbols."""
    return torch._dynamo.config.patch(fake_tensor_cache_enabled=False)


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


WRITERS: dict[str, Callable[[ClipProgram, ClipSizes, Path], Callable]] = {
    "torch": export_torch,
    "onnx": export_onnx,
    "onnx-float16": export_onnx,
    "fused": export_torch,
    "aot": export_package,
}


def export(options: argparse.Namespace) -> int:
    """Write what the options of `stnet export` ask for; return the exit status.

    Raises:
        StnetError: the model cannot be loaded, or not be exported so.
        OSError: a file cannot be written.
    """
    model = stnet.load(options.checkpoint).eval()
    if not 1 <= options.targets <= model.config.frames:
        raise ConfigError(f"--targets is {options.targets}; clips of this model have {model.config.frames} frames")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{options.output}: cannot be written ({error.strerror or error}); choose another --output"
        ) from error
    if {"onnx", "onnx-float16"} & set(options.formats):
        require_onnx()  # before minutes are spent on other formats

    if "safetensors" in options.formats:
        kept = read_checkpoint(resolve(options.checkpoint)).metadata
        save(model, options.output / "model.safetensors", kept)
        files.write_text(options.output / "README.md", model_card(model, kept, printable(str(options.checkpoint))))
        print(f"{options.output / 'model.safetensors'}: weights, with a model card beside them")

    agrees = [_write(model, kind, options) for kind in WRITERS if kind in options.formats]
    return 0 if all(agrees) else 1


def _write(model: Detector, kind: str, options: argparse.Namespace) -> bool:
    """Write a program and print how it differs from the model; return whether that is little enough."""
    path = options.output / PROGRAM_FILES[kind][0]
    print(f"writing {path}; this can take minutes", file=sys.stderr)
    sizes = ClipSizes(clips=options.clips, height=options.height, width=options.width)
    dtype = torch.float16 if kind == "onnx-float16" else torch.float32
    backend = "auto" if kind in ("fused", "aot") else "reference"
    with _quiet():
        program = WRITERS[kind](ClipProgram(model, options.targets, backend, dtype), sizes, path)
    worst = 0.0
    for clips in sizes.examples(model.config.frames, model.config.image_size):
        found = parity(model, program, options.targets, clips)
        worst = max((worst, found.logits, found.boxes), key=lambda x: (math.isnan(x), x))
        print(f"{path}: clips {list(clips.shape)}, differences to PyTorch {json.dumps(vars(found))}")
    limit = TOLERANCE if dtype == torch.float32 else TOLERANCE_16_BITS
    if worst <= limit:
        return True
    # Also where it is not a number.
    print(f"error: {path} differs from the model by {worst:.2g}, more than {limit}", file=sys.stderr)
    return False


if __name__ == "__main__":
    from stnet.export_command import main

    sys.exit(main())
