"""CUDA graphs per input shape: one launch replays a whole function."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CAPTURE_AT_USE = 2
"""A shape is captured when it comes the second time: shapes that occur once are not worth a capture."""

WARM_UP_RUNS = 2

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class GraphedFunction:
    """Calls `function` on a list of CUDA tensors, replaying a graph where the shapes were seen before.

    The outputs live in memory that the next call with the same shapes overwrites: use them, on the same stream,
    before that. A function that cannot be captured runs eagerly for ever, with one warning.

    Args:
        function: from a list of tensors to a list of tensors, without synchronization or host reads.
        most: graphs kept, the least recently used being dropped first.
    """

    def __init__(self, function: Function, most: int = 8) -> None:
        self._function, self._most = function, most
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._uses: dict[tuple, int] = {}
        self._capturable = True

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the function's outputs, which stay as they are until the next call."""
        key = tuple((tuple(x.shape), x.stride(), x.dtype) for x in inputs)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key].replay(inputs)
        self._uses[key] = self._uses.get(key, 0) + 1
        if not self._capturable or self._uses[key] < CAPTURE_AT_USE:
            return self._function(inputs)
        graph = self._capture(inputs)
        if graph is None:
            return self._function(inputs)
        self._graphs[key] = graph
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)
        return graph.replay(inputs)

    def clear(self) -> None:
        """Free all graphs and their memory."""
        self._graphs.clear()

    def _capture(self, inputs: Sequence[Tensor]) -> "_Graph | None":
        try:
            return _Graph(self._function, inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capturable = False
            warnings.warn(f"CUDA graphs are off: the model cannot be captured ({error})", stacklevel=2)
        return None


class _Graph:
    """A captured call with its own input and output tensors."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may wait for events of earlier batches meanwhile, which the default mode forbids.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = list(function(self._inputs))

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._outputs
