"""A Triton driver that knows no device: kernels are compiled for an H100, and a launch does nothing.

Tensors lie on the CPU. What a call costs beyond is Triton's launcher in C and the launch itself, 3 to 5 microseconds a
kernel (unconfirmed on a GPU), for everybody's kernels alike.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from stnet.kernels import backends
from stnet.kernels.triton import backward, forward

TARGET = GPUTarget("cuda", 90, 32)


class _Launcher:
    """What launches a compiled kernel: nothing."""

    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments):
        pass


def activate() -> None:
    """Make the driver Triton's for the rest of the process."""
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: TARGET,
            launcher_cls=_Launcher,
            utils=SimpleNamespace(
                load_binary=lambda *arguments: (1, 2, 64, 0, 1024),  # module, function, registers, spills, threads
                unload_module=lambda module: None,
                get_device_properties=lambda device: {"max_shared_mem": 2**18},
            ),
        )
    )


@contextmanager
def stnet_without_a_device() -> Iterator[None]:
    """Let backend="triton" take tensors on the CPU as those of an H100."""
    triton = dataclasses.replace(backends.BACKENDS["triton"], refusal=lambda device: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.BACKENDS, "triton", triton)
        for module in (forward, backward):
            patch.setattr(module, "architecture", lambda device: f"sm_{TARGET.arch}")
        yield
