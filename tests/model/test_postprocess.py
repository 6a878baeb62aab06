"""Selecting detections from logits and boxes."""

import pytest
import torch

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
