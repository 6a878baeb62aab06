"""How the model is executed: rewritten for inference, in one precision, on one device."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stnet.data.clips.transforms import resized_size
from stnet.errors import ConfigError
from stnet.inference.folding import fold_batch_norms, keep_boxes_in_float32, pack_projections
from stnet.inference.graphs import Function, GraphedFunction
from stnet.inference.preprocess import Preprocessor
from stnet.inference.timing import StageTimer
from stnet.model.detector import Detector

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How to execute a model.

    Attributes:
        device: where; None: the first GPU, or the CPU where there is none.
        dtype: "float32", "tf32" (float32 with products in TensorFloat-32, GPU only), "float16" (GPU only) or
            "bfloat16"; None: float16 on a GPU, float32 on a CPU.
        fold: fold fixed BatchNorm into convolutions.
        pack: one product for the four query projections of each attention.
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
        """The device, checked. Raises `ConfigError`."""
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device {self.device!r} is unknown; use cpu, cuda or cuda:N") from error
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device {device} is not supported; use cpu, cuda or cuda:N")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {device}: {torch.cuda.device_count()} CUDA devices here; use --device cpu")
        return device

    def resolved_dtype(self) -> str:
        """The name of the dtype, checked against the device. Raises `ConfigError`."""
        gpu = self.resolved_device().type == "cuda"
        if self.dtype is None:
            return "float16" if gpu else "float32"
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if not gpu and self.dtype in ("float16", "tf32"):
            raise ConfigError(f"dtype {self.dtype} needs a GPU; use float32 or bfloat16 on the CPU")
        return self.dtype


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
        self._preprocessor = Preprocessor(self.device)
        self._model = self._prepared(model)
        self._extract = self._function(self._extract_all)
        self._detect: dict[int, Function] = {}

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which the model sees frames of this size."""
        return resized_size(height, width, self.config.image_size, self.config.max_image_size)

    @torch.inference_mode()
    def images(self, frames: list[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Normalized `[N, 3, height, width]` of uint8 RGB frames `[H, W, 3]`."""
        with self._timed("resize"):
            images = self._preprocessor(frames, size).to(self.dtype)
            return images.contiguous(memory_format=self._memory_format)

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Level maps `[N, hidden, h, w]` of normalized images `[N, 3, H, W]`."""
        with self._timed("backbone"):
            return self._extract([images])

    @torch.inference_mode()
    def detect(self, levels: Sequence[Tensor], targets: int | None = None) -> tuple[Tensor, Tensor]:
        """float32 logits `[B, T, Q, classes]` and boxes `[B, T, Q, 4]` of level maps `[B, F, hidden, h, w]`.

        `targets`: the first T frames of each clip are predicted; default: as the engine was made for.
        """
        targets = targets or self.targets
        if targets not in self._detect:
            self._detect[targets] = self._function(self._detect_all(targets))
        logits, boxes = self._detect[targets](list(levels))
        return logits, boxes

    def free_memory(self) -> None:
        """Give memory kept for speed back to the device, after an out-of-memory error."""
        for function in (self._extract, *self._detect.values()):
            if isinstance(function, GraphedFunction):
                function.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.options.channels_last else torch.contiguous_format

    def _prepared(self, model: Detector) -> Detector:
        model = copy.deepcopy(model).eval().requires_grad_(False)
        if self.options.fold:
            fold_batch_norms(model)
        if self.options.pack:
            pack_projections(model)
        model = model.to(self.device, self.dtype)
        if self.dtype != torch.float32:
            keep_boxes_in_float32(model)
        if self.options.channels_last:
            model.backbone.to(memory_format=torch.channels_last)
            model.input_proj.to(memory_format=torch.channels_last)
        if self._timer is not None:
            self._timer.watch(model.encoder, "encoder")
            self._timer.watch(model.decoder, "decoder")
        return model

    def _extract_all(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._model.extract_features(inputs[0])

    def _detect_all(self, targets: int) -> Function:
        def detect(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            output = self._model.detect(inputs, None, targets)
            return [output.logits.float(), output.boxes.float()]

        return detect

    def _function(self, function: Function) -> Function:
        if self.options.compile:
            function = torch.compile(function)
        function = self._precisely(function)
        # Timers wait for the device in the middle of the model, which a graph cannot hold.
        if self.device.type != "cuda" or not self.options.graphs or self._timer is not None:
            return function
        return GraphedFunction(function)

    def _precisely(self, function: Function) -> Function:
        """The function with products in TensorFloat-32 exactly if that was chosen."""
        if self.device.type != "cuda" or self.dtype != torch.float32:
            return function
        allowed = self.dtype_name == "tf32"

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
            before = matmul.allow_tf32, convolution.allow_tf32
            matmul.allow_tf32, convolution.allow_tf32 = allowed, allowed
            try:
                return function(inputs)
            finally:
                matmul.allow_tf32, convolution.allow_tf32 = before

        return run

    def _timed(self, stage: str):
        return nullcontext() if self._timer is None else self._timer.stage(stage, on_device=True)
