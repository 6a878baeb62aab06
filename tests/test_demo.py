"""Scoring of the demo: hand-made frames with known answers."""

import numpy as np
import pytest

from stnet.demo import score_frames

LESION = np.array([[10, 10, 30, 30]], dtype=np.float32)
BENIGN = np.array([1])


def _row(*detections):
    return {
        "boxes": [list(box) for box, _, _ in detections],
        "scores": [score for _, score, _ in detections],
        "labels": [label for _, _, label in detections],
    }


@pytest.mark.parametrize(
    ("row", "found", "right", "false_positives"),
    [
        (_row(), 0, 0, 0),
        (_row(((10, 10, 30, 30), 0.9, 1)), 1, 1, 0),
        (_row(((10, 10, 30, 30), 0.9, 2)), 1, 0, 0),
        (_row(((10, 10, 30, 30), 0.2, 1)), 0, 0, 0),
        (_row(((50, 50, 60, 60), 0.9, 1)), 0, 0, 1),
        (_row(((50, 50, 60, 60), 0.9, 1), ((11, 10, 31, 30), 0.5, 1)), 1, 1, 1),
        (_row(((10, 10, 30, 30), 0.9, 1), ((10, 10, 30, 30), 0.8, 1)), 1, 1, 1),  # a second box on it is false
    ],
)
def test_one_lesion(row, found, right, false_positives):
    score = score_frames([(LESION, BENIGN)], [row], 0.3)
    assert (score.frames_with_lesion, score.frames_found, score.class_right) == (1, found, right)
    assert score.false_positives == false_positives


def test_frames_without_lesion_count_false_positives_only():
    empty = (np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))
    score = score_frames([empty, empty], [_row(((0, 0, 5, 5), 0.9, 1)), _row()], 0.3)
    assert (score.frames_with_lesion, score.false_positives_per_frame, score.found) == (0, 0.5, 0.0)


def test_every_lesion_of_a_frame_must_be_found():
    two = np.array([[10, 10, 30, 30], [50, 50, 70, 70]], dtype=np.float32)
    one_found = _row(((10, 10, 30, 30), 0.9, 1))
    both = _row(((10, 10, 30, 30), 0.9, 1), ((50, 50, 70, 70), 0.8, 2))
    score = score_frames([(two, np.array([1, 2]))] * 2, [one_found, both], 0.3)
    assert (score.frames_found, score.class_right) == (1, 1)
