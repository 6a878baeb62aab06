"""Where the model looked: a clip is run once more, and the samples of chosen queries are told.

The points are those of the last layer of the encoder and of the decoder: what the decoder samples there decides on the
box and the score, and what the encoder samples there decides on what it finds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stnet.devices import is_out_of_memory
from stnet.errors import StnetError
from stnet.execution.engine import Engine
from stnet.kernels import SamplingPoints
from stnet.model.attention import SpatialTemporalDeformableAttention

Call = tuple[SpatialTemporalDeformableAttention, tuple[Any, ...]]
"""An attention and the arguments of its forward pass."""


class InspectedClip:
    """A clip whose target frame was predicted while the attentions were watched.

    Args:
        engine: runs it; others are kept off meanwhile.
        frames: the F frames of the clip, uint8 RGB `[H, W, 3]`.
        target: the clip position of the frame that is predicted.

    Attributes:
        logits: float32 `[Q, classes]` of the target's queries, on the CPU.
        boxes: float32 `[Q, 4]`, cx cy w h in units of the frame.

    Raises:
        StnetError: memory does not suffice.
    """

    def __init__(self, engine: Engine, frames: Sequence[np.ndarray], target: int) -> None:
        self._engine, self._target = engine, target
        try:
            self._run(list(frames))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise StnetError(f"out of memory on {engine.device} while looking into a clip") from error

    def decoder_points(self, query: int) -> SamplingPoints:
        """Return the samples of one object query, `[1, 1, 1, H, N]`."""
        return self._points(self._decoder, 0, torch.tensor([query]))

    def encoder_points(self, box: Sequence[float]) -> SamplingPoints:
        """Return the samples of the positions of all levels under a box, `[1, 1, K, H, N]`.

        Args:
            box: x0 y0 x1 y1 in units of the target frame. Where no position's centre lies in it, it is the nearest one
                of each level.
        """
        chosen, start = [], 0
        for height, width in self._shapes:
            chosen.append(start + _cells(box, height, width))
            start += height * width
        return self._points(self._encoder, self._target, torch.cat(chosen))

    @torch.inference_mode()
    def _run(self, frames: list[np.ndarray]) -> None:
        engine = self._engine
        with engine.using():
            images = engine.images(frames, engine.size_of(*frames[0].shape[:2]))
            model, calls = engine.model, []
            layer, attention = model.encoder.layers[-1], model.decoder.layers[-1].attention
            hooks = [
                module.register_forward_pre_hook(lambda *call: calls.append(call)) for module in (layer, attention)
            ]
            try:
                levels = [level.unsqueeze(0) for level in model.extract_features(images)]
                self._shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
                output = model.detect(levels, None, [self._target], geometry=engine.geometry(levels))
            finally:
                for hook in hooks:
                    hook.remove()
            (_, given), self._decoder = calls
            self._encoder = (layer.attention, layer.attention_arguments(*given))
            self.logits, self.boxes = output.logits[0, 0].float().cpu(), output.boxes[0, 0].float().cpu()

    @torch.inference_mode()
    def _points(self, call: Call, target: int, queries: Tensor) -> SamplingPoints:
        attention, (query, references, value, shapes, table, *others) = call
        queries = queries.to(query.device)
        with self._engine.using():
            return attention.sampling_points(
                query[:, target : target + 1, queries],
                references[:, target : target + 1, queries],
                value,
                shapes,
                (table[target],),
                *(reference[:, target : target + 1, queries] for reference in others),
            )


def _cells(box: Sequence[float], height: int, width: int) -> Tensor:
    """Return the positions of a level, row by row, whose centres lie in a box; at least one."""
    sides = []
    for low, high, count in ((box[1], box[3], height), (box[0], box[2], width)):
        first, last = int(np.ceil(low * count - 0.5)), int(np.floor(high * count - 0.5))
        if last < first:
            first = last = int(np.floor((low + high) / 2 * count))
        first, last = (min(max(edge, 0), count - 1) for edge in (first, last))
        sides.append(torch.arange(first, last + 1))
    rows, columns = sides
    return (rows[:, None] * width + columns).flatten()
