"""CUDA graphs per input shape: one launch replays a whole function."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stnet.devices import is_out_of_memory

CAPTURE_AT_USE = 2
"""A shape is captured when it comes the second time: shapes that occur once are not worth a capture."""

RETURN_FACTOR = 8
"""How many times as often a shape has to come before it is captured again, after it had to make room."""

SHAPES_COUNTED = 4096
WARM_UP_RUNS = 2

Function = Callable[[Sequence[Tensor], Any], Sequence[Tensor]]
"""From a list of tensors, and what depends on their shapes alone, to a list of tensors."""

_CAPTURING = threading.Lock()  # CUDA allows one capture of a process at a time


class GraphPool:
    """Memory that the graphs of one engine share: they run one after the other."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def handle(self) -> Any:
        """What PyTorch knows the memory by."""
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def clear(self) -> None:
        """Forget the memory; to be called once its graphs are gone."""
        self._handle = None


class GraphedFunction:
    """Calls `function` on a list of CUDA tensors, replaying a graph where the shapes were seen before.

    The outputs live in memory that the next call with the same shapes overwrites: use them, on the same stream,
    before that. A function that cannot be captured runs eagerly for ever, with one warning. One thread at a time may
    call it, with its device as the current one.

    Args:
        function: from a list of tensors to a list of tensors, without synchronization or host reads.
        pool: memory shared with other graphs, which never run at the same time.
        constants: makes the second argument of `function` from the inputs' shapes. A graph keeps it, since it reads it
            at the addresses of the capture.
        most: graphs kept, the least recently used being dropped first.
    """

    def __init__(
        self,
        function: Function,
        pool: GraphPool | None = None,
        constants: Callable[[Sequence[Tensor]], Any] | None = None,
        most: int = 8,
    ) -> None:
        self._function, self._most = function, most
        self._pool = pool or GraphPool()
        self._constants = constants or (lambda inputs: None)
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._uses: dict[tuple, int] = {}
        self._needed: dict[tuple, int] = {}
        self._capturable = True

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the function's outputs, which stay as they are until the next call."""
        key = tuple((tuple(x.shape), x.stride(), x.dtype) for x in inputs)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key].replay(inputs)
        constants = self._constants(inputs)
        if not self._capturable or not self._worth_capturing(key):
            return self._function(inputs, constants)
        graph = self._capture(inputs, constants)
        if graph is None:
            return self._function(inputs, constants)
        self._keep(key, graph)
        return graph.replay(inputs)

    def clear(self) -> None:
        """Free all graphs and their memory."""
        self._graphs.clear()
        self._uses.clear()
        self._pool.clear()

    def _worth_capturing(self, key: tuple) -> bool:
        if len(self._uses) > SHAPES_COUNTED:
            self._uses.clear()
            self._needed.clear()
        self._uses[key] = self._uses.get(key, 0) + 1
        return self._uses[key] >= self._needed.get(key, CAPTURE_AT_USE)

    def _keep(self, key: tuple, graph: "_Graph") -> None:
        self._graphs[key] = graph
        if len(self._graphs) <= self._most:
            return
        # Shapes that take turns would be captured at each visit, which costs more than graphs save.
        evicted, _ = self._graphs.popitem(last=False)
        self._uses[evicted] = 0
        self._needed[evicted] = self._needed.get(evicted, CAPTURE_AT_USE) * RETURN_FACTOR

    def _capture(self, inputs: Sequence[Tensor], constants: Any) -> "_Graph | None":
        try:
            with _CAPTURING:
                return _Graph(self._function, inputs, constants, self._pool.handle)
        except RuntimeError as error:
            if _out_of_memory(error):
                raise torch.OutOfMemoryError(f"while a CUDA graph was captured: {error}") from error
            self._capturable = False
            warnings.warn(f"CUDA graphs are off: the model cannot be captured ({error})", stacklevel=2)
        return None


class _Graph:
    """A captured call with its own input and output tensors, and all else whose addresses it holds."""

    def __init__(self, function: Function, inputs: Sequence[Tensor], constants: Any, pool: Any) -> None:
        device = inputs[0].device
        self._inputs = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        self._constants = constants
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        # A capture that fails ends without leaving its stream: leaving this one does so.
        with torch.cuda.stream(current):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    function(self._inputs, constants)
            current.wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Another thread may wait for events of earlier batches meanwhile, which the default mode forbids.
            capture = torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local")
            with capture:
                self._outputs = list(function(self._inputs, constants))

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the graph on new inputs of the same shapes."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._outputs


def _out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory is behind an error: the end of a failed capture raises another one over it."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False
