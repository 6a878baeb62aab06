"""Video scores and ROC areas against cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stnet.evaluation.coco import ScoredFrame
from stnet.evaluation.video_level import frame_maxima, positive_share, video_scores
from stnet.evaluation.video_metrics import evaluate_videos, rank_auc, roc_curve

CLASSES = ("benign", "malignant")


def frame(video: str, number: int, found=(), truth=()) -> ScoredFrame:
    """`found`: (score, label); `truth`: labels."""
    return ScoredFrame(
        image_id=number,
        video=video,
        height=100,
        width=100,
        true_boxes=np.tile([10.0, 10.0, 30.0, 30.0], (len(truth), 1)),
        true_labels=np.array(truth, dtype=np.int64),
        boxes=np.tile([10.0, 10.0, 30.0, 30.0], (len(found), 1)),
        scores=np.array([score for score, _ in found], dtype=np.float64),
        labels=np.array([label for _, label in found], dtype=np.int64),
    )


def test_frame_maxima_take_the_best_of_every_class():
    scores, labels = np.array([0.2, 0.9, 0.4, 0.99]), np.array([1, 2, 1, 0])
    assert frame_maxima(scores, labels, 3).tolist() == [0.4, 0.9, 0.0]
    assert frame_maxima(np.zeros(0), np.zeros(0, dtype=int), 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("frames", "strongest"), [(1, 1), (9, 1), (19, 1), (20, 2), (30, 3), (100, 10)])
def test_a_tenth_of_the_frames_decides(frames, strongest):
    maxima = np.zeros((frames, 2))
    maxima[:strongest, 0] = 0.8
    maxima[::-1][:strongest, 1] = 0.4  # which frames they are does not matter
    assert video_scores(maxima) == pytest.approx([0.8, 0.4])
    maxima[0, 0] = 0.0
    assert video_scores(maxima)[0] == pytest.approx(0.8 * (strongest - 1) / strongest)


def test_videos_without_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        video_scores(np.zeros((0, 2)))


def test_positive_share():
    assert positive_share(np.array([0.2, 0.6]), 1) == pytest.approx(0.75)
    assert positive_share(np.zeros(2), 1) == 0.5


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # one of four pairs in the wrong order
        ([0.5, 0.5], [0, 1], 0.5),
        ([0.5, 0.5, 0.9], [0, 1, 1], 0.75),
        ([0.5, 0.6], [1, 1], None),
        ([0.5], [0], None),
        ([], [], None),
    ],
)
def test_area_by_hand(scores, positive, area):
    found = rank_auc(np.array(scores, dtype=float), np.array(positive, dtype=bool))
    assert found == (area if area is None else pytest.approx(area))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_area_counts_pairs_and_lies_under_the_curve(rows):
    scores = np.array([score for score, _ in rows], dtype=float)
    positive = np.array([flag for _, flag in rows], dtype=bool)
    area = rank_auc(scores, positive)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    if not pairs:
        assert area is None
        return
    assert area == pytest.approx(np.mean(pairs))
    false, true = roc_curve(scores, positive)
    assert np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2) == pytest.approx(area)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_no_curve_without_both_kinds():
    assert roc_curve(np.array([0.1, 0.2]), np.array([True, True])) is None
    assert roc_curve(np.zeros(0), np.zeros(0, dtype=bool)) is None


def test_videos_by_hand():
    frames = [
        frame("m1", 1, [(0.9, 2), (0.1, 1)], [2]),
        frame("m2", 2, [(0.3, 2), (0.6, 1)], [2]),
        frame("b1", 3, [(0.2, 2), (0.6, 1)], [1]),
        frame("b2", 4, [(0.5, 2), (0.5, 1)], [1]),
        frame("free", 5, [(0.4, 2)]),
    ]
    result = evaluate_videos(frames, CLASSES, 0.5)
    assert [video.name for video in result.videos] == ["b1", "b2", "free", "m1", "m2"]
    assert result.videos[3].truth == ("malignant",) and result.videos[2].truth == ()
    assert result.videos[4].positive_share == pytest.approx(1 / 3)
    assert (result.positives, result.negatives, result.lesion_free) == (2, 2, 1)
    assert result.auc == pytest.approx(0.75)  # m2 is below b2
    assert (result.sensitivity, result.specificity) == (0.5, 0.5)  # b2 lies on the threshold: called positive
    assert result.lesion_auc == pytest.approx(1.0)
    assert evaluate_videos(frames, CLASSES, 0.3).sensitivity == 1


def test_frames_of_a_video_may_be_mixed_with_others():
    frames = [frame("a", 1, [(0.2, 1)], [1]), frame("b", 2, [(0.3, 2)], [2]), frame("a", 3, [(0.8, 1)])]
    video = evaluate_videos(frames, CLASSES, 0.5).videos[0]
    assert (video.frames, video.lesions, video.scores["benign"]) == (2, 1, 0.8)


def test_missing_kinds_give_none_and_nothing_undefined():
    result = evaluate_videos([frame("free", 1)], CLASSES, 0.5)
    assert (result.auc, result.sensitivity, result.specificity, result.lesion_auc) == (None,) * 4
    one_kind = evaluate_videos([frame("m", 1, [(0.9, 2)], [2])], CLASSES, 0.5)
    assert (one_kind.auc, one_kind.sensitivity, one_kind.specificity) == (None, 1.0, None)


def test_other_classes_take_the_last_as_positive():
    frames = [frame("a", 1, [(0.9, 1)], [1]), frame("b", 2, [(0.9, 2)], [2])]
    result = evaluate_videos(frames, ("cyst", "mass"), 0.5)
    assert result.positive_class == "mass" and result.auc == 1
    assert evaluate_videos(frames, ("Malignant", "x"), 0.5).positive_class == "Malignant"
