"""Backbone features of the frames that clips still need, in memory allocated once.

Neighbouring clips share their global frames (and, in single-frame mode, their local ones); a frame goes through
the backbone once and its level maps stay here until no clip needs them.
"""

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor


class FeatureCache:
    """Slots for the level maps of at most `capacity` frames of one size.

    Memory: capacity * sum over levels of hidden * h * w elements, taken at the first `add`. At 512 x 512 and
    256 channels a frame takes 5.6 MB in float32.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity} must be at least 1")
        self.capacity = capacity
        self._slots: dict[Hashable, int] = {}
        self._free = list(range(capacity - 1, -1, -1))
        self._levels: list[Tensor] = []

    def __contains__(self, key: Hashable) -> bool:
        return key in self._slots

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes taken by the slots; 0 before the first `add`."""
        return sum(level.numel() * level.element_size() for level in self._levels)

    def add(self, keys: Sequence[Hashable], levels: Sequence[Tensor]) -> None:
        """Keep the level maps `[N, hidden, h, w]` of N frames.

        Raises:
            ValueError: the slots do not suffice, or the maps differ in size from those kept before.
        """
        new = [key for key in dict.fromkeys(keys) if key not in self._slots]
        if len(new) > len(self._free):
            raise ValueError(f"{len(new)} frames to add, {len(self._free)} of {self.capacity} slots free")
        if not self._levels:
            self._levels = [level.new_empty(self.capacity, *level.shape[1:]) for level in levels]
        for kept, level in zip(self._levels, levels, strict=True):
            if kept.shape[1:] != level.shape[1:]:
                raise ValueError(f"level maps {list(level.shape[1:])}; this cache holds {list(kept.shape[1:])}")
        for key in new:
            self._slots[key] = self._free.pop()
        slots = self._index(keys)
        for kept, level in zip(self._levels, levels, strict=True):
            kept.index_copy_(0, slots, level)

    def clips(self, keys: Sequence[Sequence[Hashable]]) -> list[Tensor]:
        """Level maps `[B, F, hidden, h, w]` of B clips of F frames each; KeyError for a frame not kept."""
        slots = self._index([key for clip in keys for key in clip])
        shape = (len(keys), len(keys[0]))
        return [level.index_select(0, slots).unflatten(0, shape) for level in self._levels]

    def release(self, keys: Sequence[Hashable]) -> None:
        """Give back the slots of `keys`; keys that are not kept are ignored."""
        for key in keys:
            if key in self._slots:
                self._free.append(self._slots.pop(key))

    def _index(self, keys: Sequence[Hashable]) -> Tensor:
        index = torch.tensor([self._slots[key] for key in keys])
        return index.to(self._levels[0].device, non_blocking=True)
