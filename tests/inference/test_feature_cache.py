"""Slots are filled, found, given back, and never outgrow their number."""

import pytest
import torch

from stnet.execution.feature_cache import FeatureCache


def levels(*values: float) -> list[torch.Tensor]:
    """Two level maps per frame, filled with the frame's value."""
    column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)
    return [column.expand(-1, 3, 4, 5).clone(), column.expand(-1, 3, 2, 2).clone()]


def test_clips_gather_their_frames():
    cache = FeatureCache(4)
    assert cache.nbytes == 0
    cache.add(["a", "b"], levels(1, 2))
    cache.add(["c"], levels(3))
    first, second = cache.clips([["a", "b", "a"], ["c", "c", "b"]])
    assert first.shape == (2, 3, 3, 4, 5) and second.shape == (2, 3, 3, 2, 2)
    assert first[:, :, 0, 0, 0].tolist() == [[1, 2, 1], [3, 3, 2]]
    assert cache.nbytes == 4 * (3 * 20 + 3 * 4) * 4


def test_released_slots_are_used_again_without_growing():
    cache = FeatureCache(3)
    for number in range(50):
        cache.add([number], levels(number))
        cache.release([number - 2, "never added"])
        assert len(cache) <= 2
    assert cache.clips([[49, 48]])[0][0, :, 0, 0, 0].tolist() == [49, 48]
    assert 47 not in cache and 48 in cache
    with pytest.raises(KeyError):
        cache.clips([[47]])


def test_adding_again_replaces():
    cache = FeatureCache(1)
    cache.add(["a"], levels(1))
    cache.add(["a"], levels(2))
    assert cache.clips([["a"]])[0].unique().tolist() == [2]


def test_misuse():
    with pytest.raises(ValueError, match="capacity 0"):
        FeatureCache(0)
    cache = FeatureCache(2)
    cache.add(["a"], levels(1))
    with pytest.raises(ValueError, match="2 frames to add, 1 of 2 slots free"):
        cache.add(["b", "c"], levels(2, 3))
    with pytest.raises(ValueError, match="this cache holds"):
        cache.add(["b"], [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)])
