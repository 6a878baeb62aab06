"""Selecting detections from logits and boxes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from stnet.model.postprocess import select_detections


def test_best_pairs_in_pixels_without_class_0():
    logits = torch.tensor([[[9.0, 1.0, -2.0], [5.0, -3.0, 2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.4, 0.2]]])
    (found,) = select_detections(logits, boxes, height=100, width=200, top=3)
    assert found.labels.tolist() == [2, 1, 2]
    assert found.scores.tolist() == pytest.approx(torch.tensor([2.0, 1.0, -2.0]).sigmoid().tolist())
    torch.testing.assert_close(found.boxes[0], torch.tensor([-20.0, 10, 60, 30]))  # unclipped
    torch.testing.assert_close(found.boxes[1], torch.tensor([80.0, 30, 120, 70]))
    (kept,) = select_detections(logits, boxes, height=100, width=200, keep_class0=True)
    assert kept.labels.tolist() == [0, 0, 2, 1, 2, 1]


@pytest.mark.parametrize("top", [1, 4, 100])
def test_count_is_limited_by_the_pairs_there_are(top):
    found = select_detections(torch.randn(2, 5, 3), torch.rand(2, 5, 4), 10, 10, top=top)
    assert [len(frame.scores) for frame in found] == [min(top, 10)] * 2
    assert all((frame.scores.diff() <= 0).all() for frame in found)


def test_threshold_keeps_equal_scores():
    (found,) = select_detections(torch.zeros(1, 2, 3), torch.rand(1, 2, 4), 10, 10)
    assert len(found.above(0.5).scores) == 4
    assert len(found.above(0.5001).scores) == 0


def test_duplicates_of_a_better_query_are_dropped_with_all_their_classes():
    logits = torch.tensor([[[-9.0, 0.0, 2.0], [-9.0, 1.9, 1.0], [-9.0, -1.0, -2.0]]] * 2)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]]] * 2)
    boxes[1, 1] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    first, second = select_detections(logits, boxes, 100, 100, duplicate_iou=0.5)
    assert first.scores.tolist() == pytest.approx(torch.tensor([2.0, 0.0, -1.0, -2.0]).sigmoid().tolist())
    assert first.labels.tolist() == [2, 1, 1, 2]
    assert len(second.scores) == 6
    (few,) = select_detections(logits[:1], boxes[:1], 100, 100, top=3, duplicate_iou=0.5)
    assert few.scores.tolist() == first.scores.tolist()[:3]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), iou=st.sampled_from([0.1, 0.5, 0.9]), queries=st.integers(1, 12))
def test_what_is_kept_overlaps_nothing_better_and_what_is_dropped_does(seed, iou, queries):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, queries, 3, generator=generator)
    boxes = 0.3 + 0.3 * torch.rand(2, queries, 4, generator=generator)
    everything = select_detections(logits, boxes, 80, 60, top=1000)
    for kept, given_ in zip(
        select_detections(logits, boxes, 80, 60, top=1000, duplicate_iou=iou), everything, strict=True
    ):
        overlap = box_iou(kept.boxes, kept.boxes)
        same = (kept.boxes[:, None] == kept.boxes[None]).all(-1)
        assert (overlap[~same] <= iou + 1e-5).all()
        dropped = ~(given_.boxes[:, None] == kept.boxes[None]).all(-1).any(1)
        better = kept.scores[None] >= given_.scores[dropped, None]
        assert ((box_iou(given_.boxes[dropped], kept.boxes) > iou - 1e-5) & better).any(1).all()


def test_no_queries_have_no_duplicates():
    (found,) = select_detections(torch.zeros(1, 0, 3), torch.zeros(1, 0, 4), 10, 10, duplicate_iou=0.5)
    assert len(found.scores) == 0
