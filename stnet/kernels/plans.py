"""What calls that lie alike in memory share: decided once, kept for the calls to come."""

from collections.abc import Hashable, Sequence
from threading import Lock
from typing import Generic, TypeVar

from torch import Tensor

ALIGNMENT = 16  # bytes; kernels ask for no more

V = TypeVar("V")


class Memory(Generic[V]):
    """A mapping that holds at most `limit` entries, for threads without a lock of their own; the oldest goes first."""

    def __init__(self, limit: int = 1024):
        self.limit = limit
        self._entries: dict[Hashable, V] = {}
        self._lock = Lock()
        self.get = self._entries.get  # one step of the interpreter: needs no lock

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, key: Hashable, value: V) -> V:
        """Keep a value, which is returned; of two threads that made one at the same time the later one's stays."""
        with self._lock:
            if key not in self._entries and len(self._entries) >= self.limit:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = value
        return value


def layout_of(tensors: Sequence[Tensor | None]) -> tuple[Hashable, ...]:
    """Return what a launch depends on besides the numbers: device, shapes, strides, dtypes, alignment of addresses.

    The first tensor is there, and tells the device of all.
    """
    layout = [tensors[0].device]
    for x in tensors:
        if x is None:
            layout.append(None)
        else:
            layout += (x.shape, x.stride(), x.dtype, x.data_ptr() % ALIGNMENT)
    return tuple(layout)
