"""Lesions against false positives, sizes, and the files of a report."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from stnet.data.quality.fingerprint import BINS, draw_fingerprint
from stnet.evaluation import plots
from stnet.evaluation.calibration import Reliability
from stnet.evaluation.coco import ScoredFrame
from stnet.evaluation.lesion_metrics import evaluate_lesions
from stnet.evaluation.report import build_report, report_files
from stnet.figures import write_png
from stnet.training.run_folder import RunFolder
from stnet.training.validation import flat

CLASSES = ("benign", "malignant")
HEIGHT, WIDTH = 100, 200
LESION, FAR = (10, 10, 50, 40), (120, 60, 150, 90)


def frame(number, truth=(), found=(), video="v") -> ScoredFrame:
    """`truth`: (box, label); `found`: (box, score, label)."""
    return ScoredFrame(
        image_id=number,
        video=video,
        height=HEIGHT,
        width=WIDTH,
        true_boxes=np.array([box for box, _ in truth], dtype=np.float64).reshape(-1, 4),
        true_labels=np.array([label for _, label in truth], dtype=np.int64),
        boxes=np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], dtype=np.float64),
        labels=np.array([label for _, _, label in found], dtype=np.int64),
    )


def test_froc_by_hand():
    # Scores 0.9 hit, 0.8 false, 0.7 hit, 0.6 false, 0.5 hit; four frames, four lesions of which one is never found.
    frames = [
        frame(1, [(LESION, 1)], [(LESION, 0.9, 2), (FAR, 0.8, 1)]),
        frame(2, [(LESION, 2)], [(LESION, 0.7, 2)]),
        frame(3, [(LESION, 2)], [(LESION, 0.5, 1)]),
        frame(4, [(FAR, 1)], [(LESION, 0.6, 1)]),
    ]
    metrics, curves = evaluate_lesions(frames, CLASSES)
    assert curves.false_positives.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5]
    assert curves.recall.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    assert metrics.recall_at == {0.1: 0.25, 0.25: 0.5, 0.5: 0.75, 1.0: 0.75}


def test_a_lesion_on_the_border_of_two_sizes_is_the_larger():
    border = (0, 0, 40, 20)  # 4 % of the frame
    metrics, _ = evaluate_lesions([frame(1, [(border, 1)], [(border, 0.9, 1)])], CLASSES)
    assert metrics.lesions_by_size == {"small": 0, "medium": 1, "large": 0}
    assert metrics.by_size["medium"].ap50 == pytest.approx(1)
    assert metrics.by_size["small"].ap50 is metrics.by_size["large"].ap50 is None


def test_names_are_data_whatever_they_hold(tmp_path):
    classes = ("benign {0} {mass}", "müller_\udcfc")
    frames = [frame(1, [(LESION, 1), (FAR, 2)], [(LESION, 0.9, 1), (FAR, 0.8, 2)], video="M\udcfcller")]
    report = build_report(frames, classes, score_threshold=0.5, video_threshold=0.5, samples=0)
    report_files(report, {})["videos.csv"](tmp_path / "videos.csv")
    assert "M\\udcfcller,1,2,benign {0} {mass}" in (tmp_path / "videos.csv").read_text(encoding="utf-8")
    columns = flat(report.metrics, classes)
    assert {"ap50_benign {0} {mass}", "ap50_müller_\\udcfc"} < columns.keys()
    RunFolder(tmp_path).append(tmp_path / "metrics.csv", columns)
    assert RunFolder(tmp_path).rows(tmp_path / "metrics.csv") == [columns]


def test_names_are_no_markup_in_pictures(tmp_path):
    classes = ("$benign", "$\\frac$ \udcfc")
    frames = [frame(1, [(LESION, 1), (FAR, 2)], [(LESION, 0.9, 1), (FAR, 0.8, 2)])]
    report = build_report(frames, classes, score_threshold=0.5, video_threshold=0.5, samples=0)
    writers = report_files(report, {})
    for name in (name for name in writers if name.endswith(".png")):
        writers[name](tmp_path / name)
        assert Image.open(tmp_path / name).size[0] > 300
    facts = {
        "videos": 1,
        "frames": 2,
        "boxes_per_class": dict.fromkeys(classes, 1),
        "boxes_per_frame": {"1": 2},
        "video_lengths": {"2": 1},
        "box_size_histogram": [2] * BINS,
        "box_positions": [[1]],
    }
    draw_fingerprint({"$\\train$": facts}, tmp_path / "fingerprint.png")
    assert Image.open(tmp_path / "fingerprint.png").size[0] > 1000


def test_legends_show_names_that_begin_with_an_underscore(tmp_path, monkeypatch):
    """Matplotlib takes such labels for its own, and leaves them out."""
    shown = set()

    def write(figure: Figure, path: Path) -> None:
        write_png(figure, path)
        shown.update(text.get_text() for legend in figure.findobj(Legend) for text in legend.get_texts())

    monkeypatch.setattr(plots, "write_png", write)
    frames = [frame(n, [(LESION, n)], [(LESION, 0.9, n), (FAR, 0.8, 3 - n)], f"v{n}") for n in (1, 2)]
    report = build_report(frames, ("_cyst", "_malignant"), score_threshold=0.5, video_threshold=0.5, samples=0)
    for name, draw in report_files(report, {}).items():
        if name.endswith(".png"):
            draw(tmp_path / name)
    found = Reliability(error=0.1, detections=1, scores=(0.5,), shares=(0.5,), counts=(1,))
    plots.draw_reliability({"_solid": found}, {}, tmp_path / "reliability.png")
    named = {text.split(",")[0].split(" at ")[0].split(" against ")[0] for text in shown}
    assert {"_cyst", "_malignant", "any class", "_solid"} == named
    assert any(text.startswith("_malignant against other lesions, area") for text in shown), shown


def test_equal_scores_are_taken_together():
    metrics, curves = evaluate_lesions([frame(1, [(LESION, 1)], [(LESION, 0.5, 1), (FAR, 0.5, 1)])], CLASSES)
    assert curves.false_positives.tolist() == [0, 1] and curves.recall.tolist() == [0, 1]
    assert metrics.recall_at == {0.1: 0, 0.25: 0, 0.5: 0, 1.0: 1}


def test_precision_by_the_share_of_the_frame():
    # 0.25 %, 6 % and 50 % of the frame; the large one is missed.
    small, medium, large = (100, 10, 110, 15), (0, 0, 40, 30), (50, 0, 150, 100)
    frames = [frame(n, [(box, 1)], [(box, 0.9, 1)]) for n, box in enumerate((small, medium), start=1)]
    metrics, _ = evaluate_lesions([*frames, frame(3, [(large, 1)])], CLASSES)
    assert metrics.lesions_by_size == {"small": 1, "medium": 1, "large": 1}
    assert [metrics.by_size[name].ap50 for name in ("small", "medium", "large")] == pytest.approx([1, 1, 0])
    only_small, _ = evaluate_lesions(frames[:1], CLASSES)
    assert only_small.by_size["large"].ap is None and only_small.lesions_by_size["large"] == 0


def test_every_lesion_has_one_size():
    generator = np.random.default_rng(0)
    boxes = [(0, 0, w, h) for w, h in generator.integers(1, 100, (40, 2))] + [(0, 0, 40, 20), (0, 0, 60, 50)]  # borders
    metrics, _ = evaluate_lesions([frame(n, [(box, 1)]) for n, box in enumerate(boxes)], CLASSES)
    assert sum(metrics.lesions_by_size.values()) == len(boxes)


def report_of(frames):
    return build_report(frames, CLASSES, score_threshold=0.5, video_threshold=0.5)


def written(report, folder):
    files = report_files(report, {"checkpoint": "a"})
    for name, write in files.items():
        write(folder / name)
    return files


def test_files(tmp_path):
    frames = [
        frame(1, [(LESION, 1)], [(LESION, 0.9, 1), (FAR, 0.3, 2)], "b, one"),
        frame(2, [(LESION, 2)], [(LESION, 0.8, 2)], "m"),
        frame(3, [], [(FAR, 0.2, 2)], "free"),
    ]
    files = written(report_of(frames), tmp_path)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["checkpoint"] == "a" and content["videos"]["auc"] == 1 and content["recall"] == 1
    assert content["lesions_in_frames"]["recall_at"]["0.5"] == 1
    with (tmp_path / "videos.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["video"] for row in rows] == ["b, one", "free", "m"]
    assert [row["marked_as"] for row in rows] == ["benign", "", "malignant"]
    assert float(rows[0]["score_benign"]) == 0.9 and float(rows[0]["positive_share"]) == pytest.approx(0.25)
    for name in files:
        if name.endswith(".png"):
            picture = np.asarray(Image.open(tmp_path / name).convert("L"))
            assert min(picture.shape) >= 300 and picture.std() > 5, name


@pytest.mark.parametrize("frames", [[frame(1)], [frame(1, [(LESION, 1)])], [frame(1, [], [(FAR, 0.7, 2)])]])
def test_files_where_kinds_are_missing(frames, tmp_path):
    written(report_of(frames), tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["videos"]["auc"] is None and content["videos"]["lesion_auc"] is None
