"""TensorFloat-32 for a stretch of work: PyTorch's switches belong to the process; one thread at a time holds them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_HELD = threading.RLock()


@contextmanager
def products_in_tf32(allowed: bool) -> Iterator[None]:
    """Launch matrix products and convolutions of float32 in TensorFloat-32 or not, whatever holds elsewhere."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    with _HELD:
        before = matmul.allow_tf32, convolution.allow_tf32
        matmul.allow_tf32, convolution.allow_tf32 = allowed, allowed
        try:
            yield
        finally:
            matmul.allow_tf32, convolution.allow_tf32 = before
