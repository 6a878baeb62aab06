"""From rows of detections to findings: boxes once each, cut to what was looked at."""

import numpy as np
import pytest

from stnet.lesions import Findings, findings_of


def of(boxes, scores, labels, **options) -> Findings:
    values = {"classes": 2, "region": (0, 0, 100, 80), **options}
    return findings_of(3, 0.12, np.array(boxes, dtype=np.float32), np.array(scores), np.array(labels), **values)


def test_a_box_stands_once_with_the_scores_of_all_its_classes():
    findings = of([[60, 5, 90, 30], [10, 20, 40, 50], [10, 20, 40, 50]], [0.3, 0.2, 0.7], [1, 2, 1])
    assert findings.boxes.tolist() == [[10, 20, 40, 50], [60, 5, 90, 30]]
    assert findings.scores.tolist() == [[0.7, 0.2], [0.3, 0.0]]
    assert findings.rows.tolist() == [2, 0]
    assert (findings.frame, findings.time) == (3, 0.12)


def test_of_boxes_that_overlap_the_best_one_stays():
    findings = of([[10, 10, 50, 50], [12, 10, 52, 50], [45, 10, 85, 50]], [0.5, 0.9, 0.4], [1, 1, 1])
    assert findings.rows.tolist() == [1, 2]


def test_the_least_score_holds_for_the_best_class():
    findings = of([[10, 20, 40, 50], [10, 20, 40, 50], [60, 5, 90, 30]], [0.5, 0.1, 0.3], [1, 2, 1], least_score=0.4)
    assert findings.scores.tolist() == [[0.5, 0.1]]


def test_boxes_are_cut_to_the_region_and_those_beyond_are_left_out():
    boxes = [[-20, 10, 30, 120], [200, 10, 240, 40], [30, 5, 10, 5], [np.nan, 1, 2, 3], [90, 40, 70, 20]]
    findings = of(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [1] * 5)
    assert findings.boxes.tolist() == [[0, 10, 30, 80], [70, 20, 90, 40]]
    assert findings.rows.tolist() == [0, 4]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 7]])
def test_labels_without_a_class_are_left_out(labels):
    assert len(of([[10, 20, 40, 50], [60, 5, 90, 30]], [0.5, 0.9], labels).boxes) == 0


def test_a_frame_without_detections():
    findings = of(np.zeros((0, 4)), [], [])
    assert findings.boxes.shape == (0, 4) and findings.scores.shape == (0, 2) and findings.rows.shape == (0,)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="expected"):
        Findings(frame=0, time=0.0, boxes=np.zeros((2, 4)), scores=np.zeros((1, 2)), rows=np.zeros(2))
