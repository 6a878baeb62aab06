"""Matching: every way targets can be missing, crowded or broken."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stnet.errors import NonFiniteError
from stnet.training.matcher import CostWeights, match, matching_cost
from stnet.training.targets import FrameTargets


def predictions(layers: int, frames: int, queries: int, classes: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, frames, queries, classes, generator=generator)
    boxes = torch.rand(layers, frames, queries, 4, generator=generator) * 0.5 + 0.1
    return logits, boxes


def truth(counts: list[int], seed: int = 1) -> FrameTargets:
    generator = torch.Generator().manual_seed(seed)
    return FrameTargets.from_lists(
        [torch.rand(count, 4, generator=generator) * 0.5 + 0.1 for count in counts],
        [torch.randint(1, 3, (count,), generator=generator) for count in counts],
    )


def rows(matches):
    return torch.stack((matches.layer, matches.frame, matches.query, matches.target), 1).tolist()


def test_no_frame_has_a_target():
    logits, boxes = predictions(2, 3, 5)
    assert rows(match(logits, boxes, truth([0, 0, 0]))) == []


def test_frames_without_targets_stay_unmatched():
    logits, boxes = predictions(2, 4, 5)
    matches = match(logits, boxes, truth([0, 2, 0, 1]))
    assert sorted(set(map(tuple, (row[:2] for row in rows(matches))))) == [(0, 1), (0, 3), (1, 1), (1, 3)]
    assert len(rows(matches)) == 6


def test_more_targets_than_queries_matches_every_query_once():
    logits, boxes = predictions(1, 1, 3)
    matches = match(logits, boxes, truth([7]))
    assert matches.query.tolist() == [0, 1, 2]
    assert len(set(matches.target.tolist())) == 3


def test_duplicate_targets_get_different_queries():
    logits, boxes = predictions(1, 1, 6)
    box = torch.tensor([[0.3, 0.3, 0.2, 0.2]]).repeat(2, 1)
    matches = match(logits, boxes, FrameTargets.from_lists([box], [torch.tensor([1, 1])]))
    assert len(set(matches.query.tolist())) == 2
    assert sorted(matches.target.tolist()) == [0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_non_finite_predictions_name_their_frame(bad, where):
    logits, boxes = predictions(2, 4, 5)
    (logits if where == "logits" else boxes)[1, 2, 3] = bad
    if where == "logits" and bad == float("inf"):
        logits[1, 2, 3] = float("nan")  # an infinite logit alone gives a large finite cost
    with pytest.raises(NonFiniteError, match="frame 2") as caught:
        match(logits, boxes, truth([1, 1, 2, 1]))
    assert caught.value.frames == (2,)


def test_unannotated_frames_have_no_targets_whatever_they_list():
    targets = FrameTargets.from_lists([torch.rand(2, 4)], [torch.tensor([1, 2])], [False])
    assert targets.counts == (0,)
    logits, boxes = predictions(1, 1, 4)
    assert rows(match(logits, boxes, targets)) == []


def test_together_equals_one_frame_at_a_time():
    counts = [2, 0, 3, 1]
    logits, boxes = predictions(3, 4, 6)
    targets = truth(counts)
    together = rows(match(logits, boxes, targets))
    for frame in range(4):
        single = FrameTargets(
            boxes=targets.boxes[frame : frame + 1],
            labels=targets.labels[frame : frame + 1],
            counts=(counts[frame],),
            annotated=targets.annotated[:1],
        )
        alone = rows(match(logits[:, frame : frame + 1], boxes[:, frame : frame + 1], single))
        expected = [[layer, 0, query, target] for layer, f, query, target in together if f == frame]
        assert alone == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 5))
def test_the_assignment_is_the_cheapest(seed, count, queries):
    logits, boxes = predictions(1, 1, queries, seed=seed)
    targets = truth([count], seed=seed + 1)
    cost = matching_cost(logits, boxes, targets, CostWeights())[0, 0].numpy()
    matches = match(logits, boxes, targets)
    reached = cost[matches.query.numpy(), matches.target.numpy()].sum()
    cheapest = min(
        sum(cost[query, target] for target, query in enumerate(choice))
        for choice in itertools.permutations(range(queries), count)
    )
    assert reached == pytest.approx(cheapest, abs=1e-5)


def test_repeated_targets_get_that_many_queries_in_their_layer():
    logits, boxes = predictions(2, 2, 9)
    matches = match(logits, boxes, truth([2, 1]), repeats=[3, 1])
    first = [row for row in rows(matches) if row[0] == 0 and row[1] == 0]
    assert np.bincount([row[3] for row in first]).tolist() == [3, 3]
    assert len({row[2] for row in first}) == 6
    assert len([row for row in rows(matches) if row[0] == 1]) == 3


def test_targets_refuse_disagreeing_lists():
    with pytest.raises(ValueError, match="2 boxes and 1 labels"):
        FrameTargets.from_lists([torch.rand(2, 4)], [torch.tensor([1])])
    with pytest.raises(ValueError, match="1 frames of boxes, 2 of labels"):
        FrameTargets.from_lists([torch.rand(2, 4)], [torch.tensor([1, 1])] * 2)
