"""COCO metrics on cases whose answer is known by hand or from pycocotools' own summary."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stnet.evaluation.coco import ScoredFrame, evaluate_frames, merge_duplicates

CLASSES = ("benign", "malignant")
SIDE = 200


def frame(number, truth=(), found=(), video="v") -> ScoredFrame:
    """`truth`: (box, label); `found`: (box, score, label)."""
    return ScoredFrame(
        image_id=number,
        video=video,
        height=SIDE,
        width=SIDE,
        true_boxes=np.array([box for box, _ in truth], dtype=np.float64).reshape(-1, 4),
        true_labels=np.array([label for _, label in truth], dtype=np.int64),
        boxes=np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], dtype=np.float64),
        labels=np.array([label for _, _, label in found], dtype=np.int64),
    )


BOX = (10, 10, 50, 40)
FAR = (100, 100, 120, 130)


def test_perfect_detections():
    metrics = evaluate_frames([frame(1, [(BOX, 1)], [(BOX, 0.9, 1)]), frame(2, [(BOX, 2)], [(BOX, 0.8, 2)])], CLASSES)
    for precision in (metrics.overall, metrics.agnostic, *metrics.per_class.values()):
        assert [precision.ap, precision.ap50, precision.ap75] == pytest.approx([1.0] * 3)
    assert metrics.recall == 1 and metrics.false_positives_per_frame == 0
    assert (metrics.frames, metrics.lesions) == (2, 2)


def test_wrong_class_counts_only_when_agnostic():
    metrics = evaluate_frames([frame(1, [(BOX, 1)], [(BOX, 0.9, 2)])], CLASSES)
    assert metrics.per_class["benign"].ap50 == 0
    assert metrics.per_class["malignant"].ap50 is None  # no malignant lesion anywhere
    assert metrics.overall.ap50 == 0
    assert metrics.agnostic.ap50 == pytest.approx(1.0)


def test_a_better_scored_false_positive_in_a_lesion_free_frame_halves_precision():
    with_free = evaluate_frames([frame(1, [(BOX, 1)], [(BOX, 0.5, 1)]), frame(2, [], [(FAR, 0.9, 1)])], CLASSES)
    assert with_free.overall.ap50 == pytest.approx(0.5)
    assert with_free.false_positives_per_frame == pytest.approx(0.5)


def test_two_classes_of_one_query_are_one_agnostic_detection():
    frames = [
        frame(1, [(BOX, 1)], [(BOX, 0.6, 1), (BOX, 0.55, 2)]),
        frame(2, [(FAR, 1)], [(FAR, 0.5, 1)]),
    ]
    metrics = evaluate_frames(frames, CLASSES, score_threshold=0.5)
    assert metrics.agnostic.ap50 == pytest.approx(1.0)
    assert metrics.false_positives_per_frame == 0


def test_score_threshold_sets_the_operating_point():
    frames = [frame(1, [(BOX, 1)], [(BOX, 0.4, 1), (FAR, 0.35, 1)]), frame(2)]
    assert evaluate_frames(frames, CLASSES, 0.5).recall == 0
    low = evaluate_frames(frames, CLASSES, 0.3)
    assert low.recall == 1 and low.false_positives_per_frame == pytest.approx(0.5)


def test_a_second_detection_of_a_lesion_is_a_false_positive():
    near = (11, 10, 50, 41)
    metrics = evaluate_frames([frame(1, [(BOX, 1)], [(BOX, 0.9, 1), (near, 0.8, 1)])], CLASSES)
    assert metrics.recall == 1 and metrics.false_positives_per_frame == 1


def test_class_zero_is_ignored():
    metrics = evaluate_frames([frame(1, [(BOX, 1)], [(BOX, 0.9, 1), (FAR, 0.99, 0)])], CLASSES)
    assert metrics.agnostic.ap == pytest.approx(1.0) and metrics.false_positives_per_frame == 0


def test_no_lesions_at_all():
    metrics = evaluate_frames([frame(1), frame(2, [], [(BOX, 0.9, 1)])], CLASSES)
    assert metrics.overall.ap is None and metrics.recall is None
    assert metrics.false_positives_per_frame == pytest.approx(0.5)


def test_nothing_detected():
    metrics = evaluate_frames([frame(1, [(BOX, 1)])], CLASSES)
    assert metrics.overall.ap == 0 and metrics.recall == 0


def test_order_of_frames_does_not_matter_even_with_ties():
    generator = np.random.default_rng(0)
    frames = _random_frames(generator, 12, tied=True)
    shuffled = [frames[i] for i in generator.permutation(len(frames))]
    assert evaluate_frames(frames, CLASSES) == evaluate_frames(shuffled, CLASSES)


def _random_frames(generator, count, tied=False):
    frames = []
    for number in range(count):
        truth = [(_box(generator), int(generator.integers(1, 3))) for _ in range(generator.integers(0, 3))]
        found = [(np.array(box) + generator.normal(0, 4, 4), 0.5, label) for box, label in truth]
        found += [(_box(generator), 0.5, int(generator.integers(0, 3))) for _ in range(5)]
        if not tied:
            found = [(box, float(generator.random()), label) for box, _, label in found]
        frames.append(frame(number + 1, truth, found))
    return frames


def _box(generator):
    x, y = generator.uniform(0, 60, 2)
    w, h = generator.uniform(8, 40, 2)
    return (x, y, x + w, y + h)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_summary_of_pycocotools(seed):
    frames = _random_frames(np.random.default_rng(seed), 20)
    metrics = evaluate_frames(frames, CLASSES)
    expected = _summary(frames)
    assert metrics.overall.ap == pytest.approx(expected[0], abs=1e-12)
    assert metrics.overall.ap50 == pytest.approx(expected[1], abs=1e-12)
    assert metrics.overall.ap75 == pytest.approx(expected[2], abs=1e-12)


def _summary(frames):
    def entries(boxes, labels, scores=None):
        listed = []
        for item in frames:
            for row, (box, label) in enumerate(zip(getattr(item, boxes), getattr(item, labels), strict=True)):
                x0, y0, x1, y1 = box
                entry = {
                    "id": len(listed) + 1,
                    "image_id": item.image_id,
                    "category_id": int(label),
                    "iscrowd": 0,
                }
                entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                if scores:
                    entry["score"] = getattr(item, scores)[row]
                listed.append(entry)
        return listed

    truth = COCO()
    truth.dataset = {
        "images": [{"id": item.image_id} for item in frames],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": entries("true_boxes", "true_labels"),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        known = [e for e in entries("boxes", "labels", "scores") if e["category_id"] > 0]
        evaluation = COCOeval(truth, truth.loadRes(known), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_merging_keeps_the_best_of_equal_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 2, 2]], dtype=float)
    assert merge_duplicates(boxes, np.array([0.2, 0.4, 0.7])).tolist() == [2, 1]


def test_refusals():
    with pytest.raises(ValueError, match="no annotated frame"):
        evaluate_frames([], CLASSES)
    with pytest.raises(ValueError, match=r"image 7 .* not finite"):
        evaluate_frames([frame(7, [], [(BOX, float("nan"), 1)])], CLASSES)
    with pytest.raises(ValueError, match="category 3"):
        evaluate_frames([frame(1, [(BOX, 3)])], CLASSES)
