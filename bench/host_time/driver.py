"""A GPU that is not there for measurements of host time: kernels are compiled for an H100, and a launch does nothing.

Tensors lie on the CPU. What a call costs beyond is Triton's launcher in C and the launch itself, 3 to 5 microseconds a
kernel (unconfirmed on a GPU), for everybody's kernels alike.
"""

from stnet.kernels.triton import without_device

ARCHITECTURE = "sm_90"


def activate() -> None:
    """Make the driver Triton's for the rest of the process."""
    without_device.activate(ARCHITECTURE)


def stnet_without_a_device():
    """Let backend="triton" take tensors on the CPU as those of an H100, while the context lasts."""
    return without_device.compiling_for(ARCHITECTURE)
