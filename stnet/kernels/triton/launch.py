"""A launch that is made once and repeated with other tensors: a plan.

Triton finds the machine code of a call by all its arguments anew, which takes most of the time that a call costs on the
host. Here that is done once for tensors that lie alike in memory (`stnet.kernels.plans.layout_of`): what else a launch
depends on, sizes, strides and constants, follows from that. Triton's launch hooks (its profiler sets some) run as ever,
for with hooks a launch takes Triton's own way.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from triton import knobs
from triton.runtime import driver

from stnet.kernels.triton.kernel_call import KernelCall, on_device


class Launch:
    """A kernel call whose tensors are given with each launch; it keeps none of those it was made with.

    It may be used by any number of threads.
    """

    def __init__(self, call: KernelCall, tensors: Sequence[Tensor | None]):
        """Make a launch of a call.

        Args:
            call: the call; its grid, numbers and constants, and its tables.
            tensors: objects all different, in whose place others are given; tensors of the call that are not among them
                are tables, which stay.
        """
        places = {id(x): place for place, x in enumerate(tensors) if x is not None}
        names = call.kernel.arg_names
        values = [call.arguments[name] if name in call.arguments else call.constants[name] for name in names]
        self._places = [(i, places[id(x)]) for i, x in enumerate(values) if id(x) in places]
        given = {i for i, _ in self._places}
        self._values = [None if i in given else value for i, value in enumerate(values)]
        kept = {name: value for name, value in zip(names, self._values, strict=True) if name in call.arguments}
        self._call = replace(call, arguments=kept)
        # Triton's compiled kernel itself: its machine code is unloaded with it, and Triton lets go of one of two that
        # threads compile at the same time.
        self._compiled: Any = None

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the device of the first tensor, whichever device is current."""
        compiled = self._compiled
        values = self._values.copy()
        for i, place in self._places:
            values[i] = tensors[place]
        if compiled is None or _hooked(self._call.kernel):
            self._launch_by_triton(values)
            return
        device, function, metadata = tensors[0].device, compiled.function, compiled.packed_metadata
        with on_device(device):
            stream = driver.active.get_current_stream(device.index)
            compiled.run(*self._call.grid, stream, function, metadata, None, None, None, *values)

    def _launch_by_triton(self, values: list[Any]) -> None:
        call = self._call
        named = zip(call.kernel.arg_names, values, strict=True)
        compiled = replace(call, arguments={name: value for name, value in named if name in call.arguments}).launch()
        if compiled is not None:  # there is none under the interpreter, or if a hook prevents it
            self._compiled = compiled


def _hooked(kernel: Any) -> bool:
    runtime = knobs.runtime
    return bool(kernel.pre_run_hooks or _calls(runtime.launch_enter_hook) or _calls(runtime.launch_exit_hook))


def _calls(hook: Any) -> Any:
    """What a hook of Triton holds: nothing, a function, or (from 3.5 on) a chain of functions."""
    return getattr(hook, "calls", hook)


def distinct(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the tensors as objects that are all different, though some may be given twice."""
    return tuple(None if x is None else x.detach() for x in tensors)
