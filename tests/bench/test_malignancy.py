"""The study of malignancy: which scores tell malignant from benign, and what was not found."""

import json

import numpy as np
import pytest
import torch

from bench.report import lesions
from bench.studies.accuracy import box_shifts
from bench.studies.malignancy import malignancy
from bench.studies.phantoms import check_classes
from bench.studies.seen import Seen
from stnet.errors import ConfigError
from stnet.inference.frame_results import FrameResult
from stnet.inference.lesion_collector import frame_findings
from stnet.lesions.linking import link_settings
from stnet.model.postprocess import Detections

SETTINGS = link_settings(0.4)
LEFT, RIGHT = (10.0, 10.0, 40.0, 30.0), (60.0, 10.0, 95.0, 40.0)


def seen(lesions: dict[tuple[float, ...], int], found: dict[tuple[float, ...], tuple[float, float]]) -> Seen:
    """A video of three equal frames: its lesions by box, and the class scores of what was found by box."""
    rows = sorted(((score, label, box) for box, scores in found.items() for label, score in enumerate(scores, 1)))[::-1]
    detections = Detections(
        torch.tensor([box for _, _, box in rows]).view(-1, 4),
        torch.tensor([score for score, _, _ in rows]),
        torch.tensor([label for _, label, _ in rows]),
    )
    results = [FrameResult(video="a", index=i, time=i / 10, detections=detections, size=(50, 100)) for i in range(3)]
    return Seen(
        boxes=[np.array(list(lesions)).reshape(-1, 4)] * 3,
        labels=[np.array(list(lesions.values()), dtype=int)] * 3,
        instances=[np.arange(len(lesions))] * 3,
        results=results,
        findings=[frame_findings(result, 2, SETTINGS.keep_score) for result in results],
    )


def test_rules_differ_where_a_video_has_lesions_of_both_classes():
    videos = [
        seen({LEFT: 1, RIGHT: 2}, {LEFT: (0.9, 0.1), RIGHT: (0.1, 0.8)}),
        seen({LEFT: 1}, {LEFT: (0.8, 0.2)}),
        seen({}, {LEFT: (0.1, 0.9)}),  # without a lesion: left out
        seen({RIGHT: 2}, {RIGHT: (0.05, 0.2)}),  # not found: judged by frames
    ]
    found = malignancy(videos, SETTINGS)
    assert found["videos"] == {
        "count": 3,
        "malignant": 2,
        "found": 2,
        "by frames": 1.0,
        "most suspicious lesion": 1.0,
        "lesion with the highest score": 0.5,
    }
    assert found["lesions"] == {"count": 4, "malignant": 2, "found": 3, "score of their video": 0.875, "own track": 1.0}


def test_one_class_alone_has_no_area():
    found = malignancy([seen({LEFT: 1}, {LEFT: (0.8, 0.2)})], SETTINGS)
    assert found["videos"]["by frames"] is None and found["lesions"]["own track"] is None


def test_a_set_without_lesions_has_no_areas(tmp_path):
    results = {
        "a": [seen({LEFT: 1}, {LEFT: (0.8, 0.2)}), seen({LEFT: 2}, {LEFT: (0.1, 0.7)})],
        "healthy": [seen({}, {})],
    }
    document = {"results": {name: malignancy(videos, SETTINGS) for name, videos in results.items()}}
    (tmp_path / lesions.MALIGNANCY_FILE).write_text(json.dumps(document))
    assert "| healthy | 0 | 0 | 0 | - | - | - |" in lesions.malignancy(tmp_path)


def test_models_of_other_classes_are_refused():
    check_classes("a", {1: "benign", 2: "malignant"})
    with pytest.raises(ConfigError, match="other classes than benign and malignant"):
        check_classes("a", {1: "malignant", 2: "benign"})


def test_without_boxes_nothing_moved():
    nothing = [Detections(torch.zeros(1, 4), torch.zeros(1), torch.ones(1, dtype=torch.int64))]
    shifts = box_shifts(nothing, nothing)
    assert shifts == {"boxes": 0, "without_match": 0, "median_pixels": None, "percentile_99_pixels": None}
