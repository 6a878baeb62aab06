"""Evaluation on stills: figures by hand and against pycocotools, intervals, calibration, operating points, commands."""

import csv
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from scipy.special import expit, logit

import stnet
from stnet.choices import OPERATING_POINTS
from stnet.errors import ConfigError
from stnet.evaluation.bootstrap import bootstrap_intervals
from stnet.evaluation.calibrate import main as calibrate
from stnet.evaluation.calibration import calibrated_frames, fit_platt, mean_error, reliability
from stnet.evaluation.coco import ScoredFrame, evaluate_frames
from stnet.evaluation.image_metrics import FIGURES, evaluate_images
from stnet.evaluation.lesion_metrics import evaluate_lesions
from stnet.evaluation.operating import ALARM_RATES, choose, cross_judge, judge
from stnet.evaluation.report import build_report
from stnet.evaluation.scored_stills import ScoredSet
from stnet.evaluation.stills_report import build_stills_report, show_stills, stills_files
from stnet.model.operating_points import OPERATING_POINTS_KEY, OperatingPoints
from stnet.training.cli import main as train
from stnet.training.validation import show_report

CLASSES = ("benign", "malignant")
SIDE = 200
LESION, SMALL, FAR = (10, 10, 60, 60), (100, 100, 120, 120), (150, 150, 190, 190)


def frame(number, truth=(), found=(), video=None) -> ScoredFrame:
    """`truth`: (box, label); `found`: (box, score, label)."""
    return ScoredFrame(
        image_id=number,
        video=video or f"v{number:04d}",
        height=SIDE,
        width=SIDE,
        true_boxes=np.array([box for box, _ in truth], dtype=np.float64).reshape(-1, 4),
        true_labels=np.array([label for _, label in truth], dtype=np.int64),
        boxes=np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], dtype=np.float64),
        labels=np.array([label for _, _, label in found], dtype=np.int64),
    )


def made(count: int, seed: int, sharpness: float = 1.0) -> list[ScoredFrame]:
    """Stills with none to two lesions, most of them found; scores are chances raised to a power."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        truth = [((20 + 90 * n, 30, 70 + 90 * n, 80), int(rng.integers(1, 3))) for n in range(number % 3)]
        found = []
        for box, label in truth:
            chance = rng.uniform(0.3, 1)
            hit = rng.random() < chance
            place = np.array(box) + (0 if hit else 45) + rng.normal(0, 1, 4)
            found += [(place, chance**sharpness, label), (place, 0.2 * chance**sharpness, 3 - label)]
        for _ in range(3):
            x, y = rng.uniform(100, 150, 2)
            found.append(((x, y, x + 30, y + 30), rng.uniform(0, 0.25) ** sharpness, int(rng.integers(1, 3))))
        found.sort(key=lambda item: -item[1])
        frames.append(frame(number, truth, found))
    return frames


def test_figures_by_hand():
    frames = [
        frame(0, [(LESION, 1), (SMALL, 2)], [(LESION, 0.9, 1), (FAR, 0.8, 1), (SMALL, 0.3, 2)]),
        frame(1, [(SMALL, 2)], [(SMALL, 0.7, 2)]),
        frame(2, [], [(FAR, 0.6, 2)]),
        frame(3, [(LESION, 1)], [(FAR, 0.05, 1)]),
    ]
    metrics = evaluate_images(frames, CLASSES, {}, samples=0)
    assert (metrics.images, metrics.lesions, metrics.lesion_free) == (4, 4, 1)
    assert (metrics.small, metrics.several, metrics.patients) == (2, 1, 4)
    values = {name: figure.value for name, figure in metrics.figures.items()}
    assert list(values) == list(FIGURES)
    assert values["recall_at_0.1_fp"] == 0.25  # before the false positive of 0.8
    assert values["recall_at_0.5_fp"] == 0.75  # at 0.3: two in four images
    assert values["small_recall_at_0.1_fp"] == 0 and values["small_recall_at_0.5_fp"] == 1
    assert values["several_recall_at_0.5_fp"] == 1
    assert values["found_videos_at_0.1_fp"] == pytest.approx(1 / 3)
    assert values["precision_at_recall_0.8"] is None and values["recall_of_16"] == 0.75
    assert values["several_ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert values["small_ap50"] == 1  # detections of other lesions and sizes are left out, as COCO does
    assert metrics.malignancy_auc == 1


def test_figures_at_recall_by_hand():
    frames = [frame(n, [(LESION, 1)], [(LESION, 0.9 - n / 100, 1)]) for n in range(8)]
    frames += [frame(8, [(LESION, 1)], [(FAR, 0.95, 1)]), frame(9, [], [(FAR, 0.85, 2), (LESION, 0.84, 1)])]
    values = {name: f.value for name, f in evaluate_images(frames, CLASSES, {}, samples=0).figures.items()}
    # 0.8 of nine lesions needs all eight found ones, the last at 0.83: three false positives come before it.
    assert values["precision_at_recall_0.8"] == pytest.approx(8 / 11)
    assert values["fp_at_recall_0.8"] == pytest.approx(0.3)
    assert values["lesion_free_fp_at_recall_0.8"] == 2
    assert values["fp_at_recall_0.9"] is None


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 25))
def test_average_precision_is_that_of_pycocotools(seed, count):
    frames = made(count, seed)
    values = {name: f.value for name, f in evaluate_images(frames, CLASSES, {}, samples=0).figures.items()}
    coco = evaluate_frames(frames, CLASSES)
    rates = evaluate_lesions(frames, CLASSES)[0].recall_at
    expected = {
        "ap": coco.agnostic.ap,
        "ap50": coco.agnostic.ap50,
        "ap75": coco.agnostic.ap75,
        "two_class_ap50": coco.overall.ap50,
        "recall_at_0.1_fp": rates[0.1],
        "recall_at_0.5_fp": rates[0.5],
    }
    for name, value in expected.items():
        assert values[name] == (None if value is None else pytest.approx(value)), name


def test_an_image_counted_twice_is_that_image_twice():
    frames = made(9, 3)
    copies = (replace(f, image_id=50 + f.image_id, video=f"{f.video}+") for f in frames)
    doubled = [*frames, *copies]
    once = evaluate_images(frames, CLASSES, {}, samples=0).figures
    twice = evaluate_images(doubled, CLASSES, {}, samples=0).figures
    for name, figure in once.items():
        assert twice[name].value == (None if figure.value is None else pytest.approx(figure.value)), name


def test_intervals_draw_patients_not_images():
    values = np.repeat(np.arange(6.0), 40)

    def mean(weights):
        return {"mean": float((weights * values).sum() / weights.sum()), "never": None}

    by_patient = bootstrap_intervals(mean, [str(v) for v in values])
    by_image = bootstrap_intervals(mean, [str(n) for n in range(len(values))])
    assert by_patient["never"] is None
    low, high = by_patient["mean"]
    assert low < 1.6 and high > 3.4
    assert by_image["mean"][1] - by_image["mean"][0] < 0.6 < high - low
    assert bootstrap_intervals(mean, [str(v) for v in values]) == by_patient


def test_a_single_patient_has_no_interval():
    frames = [frame(n, [(LESION, 1)] * (n > 0), [(FAR if n < 4 else LESION, 0.9, 1)]) for n in range(12)]
    figures = judge(frames, points(), {}, samples=100)["balanced"]
    assert figures.per_lesion_free.value == 1 and figures.per_lesion_free.interval is None  # there is one such image
    assert figures.recall.interval[0] < 8 / 11 < figures.recall.interval[1]
    alone = evaluate_images(frames, CLASSES, {f.video: "one" for f in frames}, samples=20)
    assert alone.patients == 1 and {figure.interval for figure in alone.figures.values()} == {None}


def judged(count: int, seed: int, sharpness: float) -> list[ScoredFrame]:
    """One detection a still, right with some chance whose logit is that of the score times `sharpness`."""
    rng = np.random.default_rng(seed)
    frames = []
    for number, chance in enumerate(rng.uniform(0.02, 0.98, count)):
        label = 1 + number % 2
        score = float(expit(logit(chance) / sharpness))
        frames.append(frame(number, [(LESION, label)], [(LESION if rng.random() < chance else FAR, score, label)]))
    return frames


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_platt_scaling_mends_scores_that_are_too_sure_or_too_shy(sharpness):
    frames, others = judged(1000, 1, sharpness), judged(1000, 2, sharpness)
    chosen = choose(frames, CLASSES, "made")
    np.testing.assert_allclose(chosen.slopes, sharpness, rtol=0.3)
    before = mean_error(reliability(others, CLASSES))
    after = mean_error(reliability(calibrated_frames(others, chosen), CLASSES))
    assert before > 0.1 and after < 0.65 * before
    halves = cross_judge(frames, CLASSES, {}, samples=0)
    assert halves.error_after < 0.65 * halves.error_before


def test_classes_without_anything_to_fit_keep_their_scores():
    none = fit_platt([frame(0, [], [(FAR, 0.5, 1)])], CLASSES)
    assert none == ((1.0, 1.0), (0.0, 0.0))
    assert mean_error(reliability([frame(0)], CLASSES)) is None


def test_operating_points_make_the_alarms_they_may():
    frames = made(300, 5)
    points = choose(frames, CLASSES, "made")
    results = judge(frames, points, {}, samples=50)
    assert list(results) == list(OPERATING_POINTS)
    for name, rate in ALARM_RATES.items():
        assert rate - 0.03 < results[name].per_image.value <= rate
        low, high = results[name].per_image.interval
        assert low <= results[name].per_image.value <= high < 3 * rate + 0.05
    assert results["sensitive"].recall.value > results["balanced"].recall.value > results["specific"].recall.value
    free = results["sensitive"]
    assert free.lesion_free_boxes == round(100 * free.per_lesion_free.value)
    patients = {f.video: f"patient {n // 2}" for n, f in enumerate(frames)}
    halves = cross_judge(frames, CLASSES, patients, samples=0)
    assert abs(halves.points["balanced"].per_image.value - ALARM_RATES["balanced"]) < 0.03
    assert halves.points["balanced"].recall.interval is None
    assert cross_judge(frames[:1], CLASSES, {}).points == {}


def test_patients_may_have_any_name():
    frames = made(12, 3)
    patients = {frame.video: f"M\udcfcller {number}" for number, frame in enumerate(frames)}
    assert cross_judge(frames, CLASSES, patients, samples=0).points


def test_of_equal_scores_the_finding_box_tells_malignancy():
    # What lies elsewhere has the same score, comes first, and is sure of the other class.
    frames = [
        frame(1, [(LESION, 2)], [(FAR, 0.6, 1), (LESION, 0.6, 2), (LESION, 0.1, 1)]),
        frame(2, [(LESION, 1)], [(FAR, 0.6, 2), (LESION, 0.6, 1), (LESION, 0.1, 2)]),
    ]
    assert evaluate_images(frames, CLASSES, {}, samples=0).malignancy_auc == 1


def points(**changes) -> OperatingPoints:
    values = {"class_names": CLASSES, "slopes": (2.0, 0.5), "offsets": (-1.0, 1.0), "chosen_on": "made"}
    return OperatingPoints(**{**values, "sensitive": 0.1, "balanced": 0.3, "specific": 0.6, **changes})


def test_operating_points_travel_as_json():
    assert OperatingPoints.from_json(points().to_json(), "x") == points()
    assert points().threshold("balanced") == 0.3
    scores, labels = torch.tensor([[0.0, 0.5], [0.9, 1.0]]), torch.tensor([[1, 2], [1, 2]])
    expected = [[0.0, torch.sigmoid(torch.tensor(1.0))], [torch.sigmoid(2 * torch.logit(torch.tensor(0.9)) - 1), 1.0]]
    torch.testing.assert_close(points().calibrated(scores, labels), torch.tensor(expected))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"slopes": (1.0,)}, "slopes"),
        ({"slopes": (1.0, 0.0)}, "above 0"),
        ({"offsets": (0.0, float("nan"))}, "offsets"),
        ({"balanced": 0.7}, "must ascend"),
        ({"specific": 1.5}, "must ascend"),
    ],
)
def test_operating_points_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        points(**changes)
    with pytest.raises(ConfigError, match="'exact' is none of sensitive, balanced, specific"):
        points().threshold("exact")
    for text in ("{}", '{"slopes": "x"}', "[]", "no"):
        with pytest.raises(ConfigError, match=r"m\.safetensors"):
            OperatingPoints.from_json(text, "m.safetensors")


class Lines:
    def __init__(self):
        self.text = ""

    def message(self, text):
        self.text += text + "\n"

    def table(self, title, header, rows):
        self.text += "\n".join([str(title), *(" | ".join(row) for row in (header, *rows))]) + "\n"


def test_a_box_scored_for_two_classes_is_one_box_of_the_table(tmp_path):
    sets = [ScoredSet(name="a", frames=made(3, 7), patients={})]
    every = points(slopes=(1.0, 1.0), offsets=(0.0, 0.0), sensitive=0.0)
    report = build_stills_report(sets, CLASSES, points=every, score_threshold=0.5, samples=0)
    stills_files(report, {})["stills.csv"](tmp_path / "stills.csv")
    with (tmp_path / "stills.csv").open(encoding="utf-8", newline="") as handle:
        counts = [(int(row["lesions"]), int(row["boxes_sensitive"])) for row in csv.DictReader(handle)]
    assert counts == [(0, 3), (1, 4), (2, 5)]  # each lesion's box has both classes


def test_a_report_of_stills_that_all_have_a_lesion_and_of_which_nothing_is_found(tmp_path):
    sets = [ScoredSet(name="a", frames=[frame(1, [(LESION, 2)], [(LESION, 0.001, 2)])], patients={})]
    report = build_stills_report(sets, CLASSES, points=points(), score_threshold=0.5, samples=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, write in stills_files(report, {}).items():
            write(tmp_path / name)
    with (tmp_path / "stills.csv").open(encoding="utf-8", newline="") as handle:
        assert [row["marked_as"] for row in csv.DictReader(handle)] == ["malignant"]
    show_stills(report, "made", said := Lines())
    assert "sensitive, 0.100 of the checkpoint | 0.0 | 0.000 | -\n" in said.text  # not 0 boxes in no image


def test_the_rates_of_operating_points_are_those_that_the_documentation_states():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for name, rate in ALARM_RATES.items():
        assert re.search(rf"`{name}`\s+(makes\s+)?{rate:g}(?!\.?\d)", text), name


def test_a_score_means_in_videos_what_it_means_to_users():
    scores = torch.tensor([0.5, 0.5, 0.3], dtype=torch.float64)
    frames = [frame(1, [(LESION, 1)], [(LESION, 0.5, 1), (FAR, 0.5, 2), (SMALL, 0.3, 1)])]
    for threshold in points().calibrated(scores, torch.tensor([1, 2, 1])).tolist():
        shown = points().calibrated(scores, torch.tensor([1, 2, 1])) >= threshold
        metrics = evaluate_frames(frames, CLASSES, threshold)  # of raw scores, which a report of them starts from
        told = build_report(
            frames, CLASSES, score_threshold=threshold, video_threshold=0.5, metrics=metrics, points=points(), samples=0
        )
        assert (told.metrics.recall, told.metrics.false_positives_per_frame) == (shown[0], shown[1:].sum())
    show_report(told, said := Lines())
    assert "videos | 1" in said.text and "patients" not in said.text  # nobody said whose videos they are
    assert told.videos.videos[0].scores == pytest.approx({"benign": 0.2689, "malignant": 0.7311}, abs=1e-4)


def test_a_report_holds_sets_and_operating_points(tmp_path):
    frames = made(60, 7)
    sets = [
        ScoredSet(name="a", frames=frames[:40], patients={f.video: "one" for f in frames[:10]}),
        ScoredSet(name="b", frames=frames[40:], patients={}),
    ]
    report = build_stills_report(sets, CLASSES, points=choose(frames, CLASSES, "x"), score_threshold=0.5, samples=20)
    for name, write in stills_files(report, {"checkpoint": "made"}).items():
        write(tmp_path / name)
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert numbers["checkpoint"] == "made" and numbers["images"]["patients"] == 51
    assert numbers["sets"]["a"]["figures"]["ap50"]["value"] > 0.3
    assert numbers["calibration_error"]["calibrated"] is not None
    assert numbers["sets_at_operating_points"]["b"]["balanced"]["recall"]["value"] is not None
    assert len((tmp_path / "stills.csv").read_text().splitlines()) == 61
    for name in ("froc.png", "precision_recall.png", "reliability.png"):
        assert Image.open(tmp_path / name).size[0] > 100
    said = Lines()
    show_stills(report, "made", said)
    assert "average precision at IoU 0.5 | " in said.text and "balanced" in said.text
    assert "calibrated on the other half" in said.text
    bare = build_stills_report(sets[:1], CLASSES, points=None, score_threshold=0.5, samples=0)
    assert bare.point_results == {} and bare.images is bare.sets["a"]


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    """Two files of stills, one of them without any lesion."""
    root = tmp_path_factory.mktemp("stills")
    files = []
    for name, lesions in (("with", True), ("without", False)):
        (root / name).mkdir()
        images, annotations = [], []
        for number in range(4):
            pixels = np.random.default_rng(number).integers(40, 90, (64, 80), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
            images.append(
                {"id": number, "file_name": f"{number}.png", "height": 64, "width": 80, "patient": f"p{number // 2}"}
            )
            if lesions:
                annotations.append({"image_id": number, "category_id": 1 + number % 2, "bbox": [10, 10, 30, 20]})
        categories = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]
        files.append(root / name / "val.json")
        files[-1].write_text(json.dumps({"categories": categories, "images": images, "annotations": annotations}))
    return [str(file) for file in files]


def test_commands_evaluate_and_calibrate_on_files_of_stills(stills, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out, new = tmp_path / "out", tmp_path / "folder" / "new.safetensors"
    assert calibrate(["tiny", "--data", *stills, "--output", str(new), "--device", "cpu"]) == 0
    assert "with (4 stills), without (4 stills)" in capsys.readouterr().out
    chosen = stnet.load(new).operating_points
    assert chosen.chosen_on == "with (4 stills), without (4 stills)" and stnet.load("tiny").operating_points is None
    with safe_open(new, "pt") as file:
        assert OPERATING_POINTS_KEY in file.metadata()
    options = ["--evaluate", str(new), "--data", *stills, "--stills", "--device", "cpu"]
    assert train([*options, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "without" in said and "of the checkpoint" in said
    numbers = json.loads((out / "evaluation.json").read_text())
    assert numbers["frames"] == 8 and numbers["lesions"] == 4 and numbers["data"] == stills
    assert numbers["images"]["patients"] == 2
    assert train([*options, "--output", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert train(["--evaluate", "tiny", "--data", stills[0], stills[0], "--stills"]) == 2
    assert "given twice" in capsys.readouterr().err
    assert calibrate(["tiny", "--data", *stills, "--output", str(new)]) == 2
    assert "exists" in capsys.readouterr().err
