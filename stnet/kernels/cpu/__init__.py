"""The CPU backend: fused kernels compiled by Numba at first use (the `cpu` extra), no compiler needed.

Computed in float32, 16-bit inputs cast; the backward pass has the same bits in every run and for every number of
threads. All but this file need Numba; `stnet.kernels.backends` imports them when the backend is taken.
"""
