"""The order of clips does not depend on how a batch is split."""

import pytest

from stnet.errors import ConfigError
from stnet.training.batches import ClipOrder
from stnet.training.config import TrainConfig


def order(items=10, clips_per_epoch=0, batch_size=4, accumulate=1, seed=0, rank=0, world=1):
    return ClipOrder(
        items,
        clips_per_epoch=clips_per_epoch,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=seed,
        rank=rank,
        world=world,
    )


def steps(clip_order) -> list[set[int]]:
    parts = list(clip_order)
    size = clip_order.accumulate
    return [set().union(*parts[start : start + size]) for start in range(0, len(parts), size)]


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_every_split_shares_the_same_steps(accumulate, world):
    whole = steps(order(12))
    shares = [steps(order(12, accumulate=accumulate, rank=rank, world=world)) for rank in range(world)]
    assert [set().union(*parts) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 2), (4, 1)])
def test_clips_of_like_aspect_share_a_pass(accumulate, world):
    aspects = [0.7 if item % 3 else 1.4 for item in range(30)]
    alike = [
        ClipOrder(
            30,
            clips_per_epoch=0,
            batch_size=8,
            accumulate=accumulate,
            seed=3,
            rank=rank,
            world=world,
            aspects=aspects,
        )
        for rank in range(world)
    ]
    parts = [list(order) for order in alike]
    shares = [steps(order) for order in alike]
    assert [set().union(*step) for step in zip(*shares, strict=True)] == steps(order(30, batch_size=8, seed=3))
    for number in range(alike[0].steps):
        passes = [part for rank in parts for part in rank[number * accumulate : (number + 1) * accumulate]]
        mixed = [part for part in passes if len({aspects[item % 30] for item in part}) > 1]
        assert len(mixed) <= 1, "at most one pass holds the border between the two shapes"


def test_an_epoch_shows_every_clip():
    assert set().union(*order(12)) == set(range(12))
    assert {clip % 10 for batch in order(10) for clip in batch} == set(range(10))
    assert order(10).steps == 3  # the last step is filled from another permutation


def test_few_clips_repeat():
    assert [len(batch) for batch in order(1)] == [4]
    assert list(order(1)) == [[0, 1, 2, 3]]  # the one clip four times, drawn anew each time


def test_clips_per_epoch_may_exceed_the_clips():
    drawn = [clip for batch in order(3, clips_per_epoch=20) for clip in batch]
    assert len(set(drawn)) == len(drawn) == 20
    counts = [sum(clip % 3 == number for clip in drawn) for number in range(3)]
    assert sorted(counts) == [6, 7, 7]


def test_epochs_differ_and_are_reproducible():
    one, two = order(), order()
    two.start(1)
    assert list(one) != list(two)
    one.start(1)
    assert list(one) == list(two)


def test_starting_in_the_middle_continues():
    whole, rest = order(), order()
    rest.start(0, 1)
    assert list(rest) == list(whole)[1:]
    assert len(rest) == 2


def test_uneven_splits_are_refused():
    with pytest.raises(ConfigError, match="multiple of 3"):
        order(batch_size=4, world=3)


@pytest.mark.parametrize("seed", [20261126141106, 2**63 - 1])
def test_a_point_in_time_is_a_seed(seed):
    assert sorted(set().union(*order(12, seed=seed))) == list(range(12))
    assert TrainConfig(seed=seed).seed == seed
