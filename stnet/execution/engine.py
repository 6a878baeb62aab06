"""How the model is executed: rewritten for inference, in one precision, on one device."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stnet.choices import DTYPE_NAMES
from stnet.data.clips.transforms import resized_size
from stnet.devices import cpu_computes_bfloat16, resolve_device
from stnet.errors import ConfigError
from stnet.execution import onednn
from stnet.execution.folding import fold_batch_norms, keep_boxes_in_float32, pack_projections
from stnet.execution.graphs import Function, GraphedFunction, GraphPool
from stnet.execution.precision import products_in_tf32
from stnet.execution.preprocess import Preprocessor
from stnet.execution.processor import extract_in_portions, rewrite_for_processor
from stnet.execution.timing import StageTimer
from stnet.model.detector import Detector
from stnet.model.geometry import ClipGeometry, clip_geometry

DTYPES = dict(zip(DTYPE_NAMES, (torch.float32, torch.float32, torch.float16, torch.bfloat16), strict=True))


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How to execute a model.

    Attributes:
        device: where; None: the first GPU, or the CPU where there is none.
        dtype: "float32", "tf32" (float32 with products in TensorFloat-32, GPU only), "float16" (GPU only) or
            "bfloat16" (on a CPU that computes in it); None: float16 on a GPU, float32 on a CPU.
        fold: fold fixed BatchNorm into convolutions.
        pack: one product for the four query projections of each attention; on a CPU, with channels-last images, also
            fused layers of oneDNN on portions that stay in its caches.
        channels_last: convolutions on channels-last images.
        graphs: CUDA graphs per shape (GPU only).
        compile: `torch.compile` the model; worth its minutes of compilation for long runs.
    """

    device: str | torch.device | None = None
    dtype: str | None = None
    fold: bool = True
    pack: bool = True
    channels_last: bool = True
    graphs: bool = True
    compile: bool = False

    def resolved_device(self) -> torch.device:
        """Return the device with its index, checked.

        Raises:
            ConfigError: there is none of this name.
        """
        return resolve_device("auto" if self.device is None else self.device)

    def resolved_dtype(self) -> str:
        """Return the name of the dtype, checked against the device.

        Raises:
            ConfigError: no such dtype, or none for this device.
        """
        gpu = self.resolved_device().type == "cuda"
        if self.dtype is None:
            return "float16" if gpu else "float32"
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if not gpu and self.dtype in ("float16", "tf32"):
            raise ConfigError(f"dtype {self.dtype} needs a GPU; use float32 or bfloat16 on the CPU")
        if not gpu and self.dtype == "bfloat16" and not cpu_computes_bfloat16():
            raise ConfigError(
                "dtype bfloat16: this processor has no instructions for it and would be ten times as slow; use float32"
            )
        return self.dtype


def rewritten(model: Detector, options: EngineOptions, device: torch.device, dtype: torch.dtype) -> Detector:
    """Return a model, which is changed, as it runs in a dtype on any device."""
    model = model.eval().requires_grad_(False)
    if options.fold:
        fold_batch_norms(model)
    if options.pack:
        pack_projections(model)
    model = model.to(device, dtype)
    if dtype != torch.float32:
        keep_boxes_in_float32(model)
    if options.channels_last:
        model.backbone.to(memory_format=torch.channels_last)
        model.input_proj.to(memory_format=torch.channels_last)
    return model


class Engine:
    """Runs a `Detector` for inference; the given model is copied and left alone.

    Works on frames of any size: they are resized as in evaluation. All methods queue their work on the current
    stream of the device and do not wait for it.
    """

    def __init__(
        self, model: Detector, options: EngineOptions | None = None, targets: int = 3, timer: StageTimer | None = None
    ) -> None:
        options = options or EngineOptions()
        self.config, self.targets, self.options = model.config, targets, options
        if not 1 <= targets <= model.config.frames:
            raise ConfigError(f"targets {targets} must lie between 1 and the {model.config.frames} frames of a clip")
        self.device, self.dtype_name = options.resolved_device(), options.resolved_dtype()
        self.dtype = DTYPES[self.dtype_name]
        self._timer = timer
        self._lock, self._pool = threading.RLock(), GraphPool()
        # Timers wait for the device in the middle of the model, which a graph cannot hold.
        self.graphed = self.device.type == "cuda" and options.graphs and timer is None
        self._fused = (
            self.device.type == "cpu"
            and options.pack
            and options.channels_last
            and not options.compile  # the compiler fuses by itself
            and onednn.available()
        )
        self._preprocessor = Preprocessor(self.device)
        self._model = self._prepared(model)
        self._extract = self._function(self._extract_all)
        self._detect: dict[int, Callable[[Sequence[Tensor]], Sequence[Tensor]]] = {}

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep other threads off until what the engine gave is used: graphs give the same memory at every call.

        CUDA's current device, which each thread has of its own, is the engine's meanwhile.
        """
        with self._lock, self._on_device():
            yield

    @property
    def model(self) -> Detector:
        """The model as it is run, to be looked at while `using`."""
        return self._model

    def portion(self, count: int, most: int) -> tuple[int, int]:
        """Return how many of `count` clips or frames to hand over at once, and to how many they are to be filled up.

        Graphs are captured for each number that occurs: two sizes are enough, `most` and a quarter of it. Elsewhere
        nothing is filled up.
        """
        if not self.graphed:
            return min(count, most), min(count, most)
        part = max(1, most // 4)
        return (min(count, most), most) if count > most - part else (min(count, part), part)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) at which the model sees frames of this size."""
        return resized_size(height, width, self.config.image_size, self.config.max_image_size)

    @torch.inference_mode()
    def images(self, frames: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Return normalized `[N, 3, height, width]` of uint8 RGB frames `[H, W, 3]`."""
        with self._on_device(), self._timed("resize"):
            images = self._preprocessor(frames, size).to(self.dtype)
            return images.contiguous(memory_format=self._memory_format)

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Level maps `[N, hidden, h, w]` of normalized images `[N, 3, H, W]`."""
        with self._on_device(), self._timed("backbone"):
            return self._extract([images])

    @torch.inference_mode()
    def detect(self, levels: Sequence[Tensor], targets: int | None = None) -> tuple[Tensor, Tensor]:
        """float32 logits `[B, T, Q, classes]` and boxes `[B, T, Q, 4]` of level maps `[B, F, hidden, h, w]`.

        `targets`: the first T frames of each clip are predicted; default: as the engine was made for.
        """
        targets = targets or self.targets
        if targets not in self._detect:
            self._detect[targets] = self._function(self._detect_all(targets), self.geometry)
        with self._on_device():
            logits, boxes = self._detect[targets](list(levels))
        return logits, boxes

    def free_memory(self) -> None:
        """Give memory kept for speed back to the device, after an out-of-memory error."""
        with self.using():
            for function in (self._extract, *self._detect.values()):
                if isinstance(function, GraphedFunction):
                    function.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.options.channels_last else torch.contiguous_format

    def _prepared(self, model: Detector) -> Detector:
        model = rewritten(copy.deepcopy(model), self.options, self.device, self.dtype)
        if self._fused:
            rewrite_for_processor(model)
        if self._timer is not None:
            self._timer.watch(model.encoder, "encoder")
            self._timer.watch(model.decoder, "decoder")
        return model

    def _extract_all(self, inputs: Sequence[Tensor], _: object) -> Sequence[Tensor]:
        if self._fused:
            return extract_in_portions(self._model, inputs[0])
        return self._model.extract_features(inputs[0])

    def geometry(self, levels: Sequence[Tensor]) -> ClipGeometry:
        """Return what depends on the sizes of the levels alone: an input of graphs and compiled code, made once."""
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        return clip_geometry(shapes, self.config.hidden_dim, None, levels[0].device, self.dtype)

    def _detect_all(self, targets: int) -> Function:
        def detect(inputs: Sequence[Tensor], geometry: ClipGeometry) -> Sequence[Tensor]:
            output = self._model.detect(inputs, None, targets, geometry=geometry)
            return [output.logits.float(), output.boxes.float()]

        return detect

    def _function(
        self, function: Function, constants: Callable[[Sequence[Tensor]], Any] | None = None
    ) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
        if self.options.compile:
            function = torch.compile(function)
        function = self._precisely(function)
        if self.graphed:
            return GraphedFunction(function, self._pool, constants)
        return lambda inputs: function(inputs, None if constants is None else constants(inputs))

    def _precisely(self, function: Function) -> Function:
        """Return the function with products in TensorFloat-32 exactly if that was chosen."""
        if self.device.type != "cuda" or self.dtype != torch.float32:
            return function
        allowed = self.dtype_name == "tf32"

        def run(inputs: Sequence[Tensor], constants: Any) -> Sequence[Tensor]:
            with products_in_tf32(allowed):
                return function(inputs, constants)

        return run

    def _on_device(self) -> AbstractContextManager:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _timed(self, stage: str):
        return nullcontext() if self._timer is None else self._timer.stage(stage, on_device=True)
