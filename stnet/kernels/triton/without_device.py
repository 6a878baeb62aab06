"""Triton without a GPU: kernels are compiled for one that is named, and a launch does nothing.

Tensors lie on the CPU, laid out as they would be on the GPU. Everything but the launch happens as it does there, so
that what Triton keeps in its cache is what it looks for on such a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from stnet.kernels.triton.architecture import assumed, is_nvidia, warp_lanes


class _Launcher:
    """What launches a compiled kernel: nothing."""

    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments):
        pass


def target_of(arch: str) -> GPUTarget:
    """Return Triton's description of an architecture of the launch table."""
    if is_nvidia(arch):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), warp_lanes(arch))
    return GPUTarget("hip", arch, warp_lanes(arch))


def activate(arch: str) -> None:
    """Make the driver without a device Triton's for the rest of the process."""
    target = target_of(arch)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target,
            launcher_cls=_Launcher,
            utils=SimpleNamespace(
                load_binary=lambda *arguments: (1, 2, 64, 0, 1024),  # module, function, registers, spills, threads
                unload_module=lambda module: None,
                get_device_properties=lambda device: {"max_shared_mem": 2**18},
            ),
        )
    )


@contextmanager
def compiling_for(arch: str) -> Iterator[None]:
    """Let the backend "triton" take tensors on the CPU as those of a GPU, compile for it, and run nothing.

    The process keeps the driver.
    """
    activate(arch)
    with assumed(arch):
        yield
