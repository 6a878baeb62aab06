"""The fused backends, and which one runs a call.

A backend is a folder of `stnet.kernels` named like it. Its files `forward` and `backward` hold four functions of a
checked problem that is not empty, and of its tensors (`stnet.kernels.problem`). They prepare a call, and what they
return, `run`, runs it on these tensors and on all that lie alike (`stnet.kernels.plans`): any number of times, in any
thread, keeping none of them. What it needs to decide for that it decides once.

    forward.stda_forward(problem, tensors) -> run(tensors) ->
        output [B, T, Q, H * D], log-sum-exp of the logits float32 [B, T, Q, H]
    forward.msda_forward(problem, tensors) -> run(tensors) -> output [B, Q, H * D]
    backward.stda_backward(problem, tensors, grad_output, output, lse, needs, deterministic) ->
        run(tensors, grad_output, output, lse) -> StdaTensors
    backward.msda_backward(problem, tensors, grad_output, needs, deterministic) ->
        run(tensors, grad_output) -> MsdaTensors

Gradients are None where `needs` is False, else of the dtype of their tensor. A row of logits that are all -inf has
output 0 and log-sum-exp -inf. Files are imported when they are first used. The reference, which does what no backend
does, is no entry of the table: it is differentiated by PyTorch.
"""

import os
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from stnet.kernels.derivatives import forward_mode_is_wanted
from stnet.kernels.plans import Memory
from stnet.kernels.problem import MAX_HEAD_DIM, MsdaTensors, StdaTensors
from stnet.kernels.triton.architecture import assumed_architecture
from stnet.kernels.triton.launch_table import TABLE_VARIABLE

_HAS_TRITON = find_spec("triton") is not None
_HAS_NUMBA = find_spec("numba") is not None

REFERENCE = "reference"
_REMEDY = 'use backend="reference" or "auto"'


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A fused backend.

    Attributes:
        name: what users call it, and its folder.
        devices: types of the devices on which "auto" takes it.
        refusal: why it does not run on a device, None where it does.
        settings: what its prepared calls depend on besides the layout of tensors.
        plans: prepared calls by all that they depend on.
    """

    name: str
    devices: tuple[str, ...]
    refusal: Callable[[torch.device], str | None]
    settings: Callable[[], Hashable] = lambda: None
    plans: Memory[Callable] = field(default_factory=Memory, repr=False, compare=False)

    @cached_property
    def forward(self) -> ModuleType:
        """The file with the forward functions."""
        return import_module(f"stnet.kernels.{self.name}.forward")

    @cached_property
    def backward(self) -> ModuleType:
        """The file with the backward functions."""
        return import_module(f"stnet.kernels.{self.name}.backward")


def _without_triton(device: torch.device) -> str | None:
    if not _HAS_TRITON:
        return f"needs the triton package, which is not installed; {_REMEDY}"
    if device.type == "cuda":
        return None
    if device.type == "cpu" and assumed_architecture() is not None:
        return None
    if device.type != "cpu" or os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        return f"needs tensors on a GPU, value is on {device}; {_REMEDY}"
    return None


def _triton_settings() -> Hashable:
    return os.environ.get(TABLE_VARIABLE), assumed_architecture()


def _without_numba(device: torch.device) -> str | None:
    if device.type == "meta":  # shapes only
        return None
    if device.type != "cpu":
        return f"needs tensors on the CPU, value is on {device}; {_REMEDY}"
    return None if _HAS_NUMBA else "needs the numba package: pip install 'stnet[cpu]'"


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(name="triton", devices=("cuda",), refusal=_without_triton, settings=_triton_settings),
        Backend(name="cpu", devices=("cpu", "meta"), refusal=_without_numba),
    )
}


def choose(requested: str, tensors: StdaTensors[Tensor] | MsdaTensors[Tensor], limit: str | None) -> str:
    """Return the name of the backend that runs a call: the one that was asked for, or for "auto" the fastest that can.

    Args:
        requested: a name, or "auto".
        tensors: of the call.
        limit: `limit_of(tensors)`.

    Raises:
        ValueError: no such backend, or one that cannot run this call.
    """
    if requested == REFERENCE:
        return REFERENCE
    if requested != "auto" and requested not in BACKENDS:
        raise ValueError(f"backend {requested!r} is not one of {', '.join(('auto', *BACKENDS, REFERENCE))}")
    reason = limit
    if reason is None and forward_mode_is_wanted(tensors):
        reason = f"has no forward-mode derivative; {_REMEDY}"
    device = tensors.value.device
    if requested == "auto":
        return REFERENCE if reason else _fastest(device)
    reason = reason or BACKENDS[requested].refusal(device)
    if reason:
        raise ValueError(f"backend {requested!r} {reason}")
    return requested


def limit_of(tensors: StdaTensors[Tensor] | MsdaTensors[Tensor]) -> str | None:
    """Why no fused backend runs a call with tensors of these dtypes and shapes."""
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        return f"does not compute float64; {_REMEDY}"
    if tensors.value.shape[-1] > MAX_HEAD_DIM:
        return f"takes heads up to {MAX_HEAD_DIM} wide, not {tensors.value.shape[-1]}; {_REMEDY}"
    return None


def _fastest(device: torch.device) -> str:
    for backend in BACKENDS.values():
        if device.type in backend.devices and backend.refusal(device) is None:
            return backend.name
    if device.type == "cuda":
        warnings.warn(
            "triton is not installed: deformable attention runs by its slow reference implementation", stacklevel=4
        )
    return REFERENCE
