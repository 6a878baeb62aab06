"""The CPU path: fused kernels compiled by Numba at first use (the `cpu` extra), no compiler needed.

Computed in float32, 16-bit inputs cast; the backward pass has the same bits in every run and for every number of
threads. Importing this file needs Numba; `stnet.kernels.registration` does so only when the path is taken.
"""

from stnet.kernels.cpu_backward import msda_backward, stda_backward
from stnet.kernels.cpu_forward import msda_forward, stda_forward

__all__ = ["msda_backward", "msda_forward", "stda_backward", "stda_forward"]
