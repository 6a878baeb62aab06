"""Scores that mean something: calibration and thresholds of a checkpoint, in results of every kind."""

import json
import warnings

import pytest
import torch

import stnet
from stnet.choices import SCORE_THRESHOLD
from stnet.errors import CheckpointError, ConfigError
from stnet.inference.cli import main as infer
from stnet.inference.live import LiveDetector
from stnet.model.checkpoint import main as convert
from stnet.model.checkpoint import read_checkpoint
from stnet.model.operating_points import OPERATING_POINTS_KEY, OperatingPoints
from stnet.model.provenance import PROVENANCE_KEY, Provenance

POINTS = OperatingPoints(
    class_names=("benign", "malignant"),
    slopes=(0.5, 2.0),
    offsets=(-1.0, 1.0),
    sensitive=0.05,
    balanced=0.2,
    specific=0.6,
    chosen_on="made-up stills",
)


@pytest.fixture
def calibrated_model(small_model):
    """The small model with operating points, and without them again afterwards."""
    small_model.operating_points, small_model.provenance = POINTS, Provenance(trained_on="stripes", caution="no use")
    yield small_model
    small_model.operating_points = small_model.provenance = None


@pytest.mark.parametrize("duplicate_iou", [1.0, 0.2])
def test_scores_are_those_that_the_evaluation_calibrates(calibrated_model, make_frames, duplicate_iou):
    frames = make_frames(5)
    with pytest.warns(UserWarning, match="no use"):
        calibrated = stnet.VideoDetector(calibrated_model, device="cpu", duplicate_iou=duplicate_iou)
    calibrated_model.operating_points = None
    with pytest.warns(UserWarning, match="no use"):
        raw = stnet.VideoDetector(calibrated_model, device="cpu", duplicate_iou=duplicate_iou)
    for ours, theirs in zip(calibrated(frames), raw(frames), strict=True):
        wanted = POINTS.calibrated(theirs.detections.scores, theirs.detections.labels).sort(descending=True)
        torch.testing.assert_close(ours.detections.scores, wanted.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.detections.boxes, theirs.detections.boxes[wanted.indices], rtol=0, atol=1e-2)
        assert torch.equal(ours.detections.labels, theirs.detections.labels[wanted.indices])


def test_thresholds_come_from_the_point_that_is_named(calibrated_model, make_frames):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detectors = {
            name: stnet.VideoDetector(calibrated_model, device="cpu", operating_point=name)
            for name in (None, "sensitive", "specific")
        }
        with pytest.raises(ConfigError, match="'best' is none of sensitive, balanced, specific"):
            stnet.VideoDetector(calibrated_model, device="cpu", operating_point="best")
    assert [detector.score_threshold for detector in detectors.values()] == [0.2, 0.05, 0.6]
    assert [detector.operating_point for detector in detectors.values()] == ["balanced", "sensitive", "specific"]
    frames = make_frames(4)
    (video,) = detectors["sensitive"].videos(frames)
    (asked,) = detectors["specific"].videos(frames, score_threshold=0.05)
    assert [lesion.score for lesion in video.lesions] == [lesion.score for lesion in asked.lesions]
    live = list(LiveDetector(detectors[None], policy="wait")(frames))
    assert live[0].detections.scores.max() <= 1 and len(live) == 4


def test_a_model_without_points_has_the_usual_threshold_and_refuses_a_point(small_model):
    detector = stnet.VideoDetector(small_model, device="cpu")
    assert (detector.score_threshold, detector.operating_point) == (SCORE_THRESHOLD, None)
    with pytest.raises(ConfigError, match="operating point specific: this model has none"):
        stnet.VideoDetector(small_model, device="cpu", operating_point="specific")


def test_a_checkpoint_carries_points_and_provenance_and_half_of_it_stays_close(calibrated_model, tmp_path):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    stnet.save(calibrated_model, whole)
    assert convert([str(whole), str(half), "--half", "--trained-on", "stripes and dots"]) == 0
    loaded = stnet.load(half)
    assert (loaded.operating_points, loaded.provenance) == (POINTS, Provenance(trained_on="stripes and dots"))
    assert half.stat().st_size < 0.62 * whole.stat().st_size
    for name, tensor in stnet.load(whole).state_dict().items():
        other = loaded.state_dict()[name]
        assert other.dtype == tensor.dtype
        torch.testing.assert_close(other, tensor, rtol=0 if tensor.dim() < 2 else 1e-3, atol=1e-6)
    assert convert([str(whole), str(half), "--overwrite", "--caution", "alone"]) == 2


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (OPERATING_POINTS_KEY, "{}", "lacks class_names, slopes"),
        (OPERATING_POINTS_KEY, POINTS.to_json().replace("malignant", "cyst"), "for classes benign, cyst"),
        (OPERATING_POINTS_KEY, POINTS.to_json().replace("0.6", "0.1"), "must ascend"),
        (PROVENANCE_KEY, '{"trained_on": 3}', "trained_on is 3"),
    ],
)
def test_facts_that_do_not_fit_are_refused(small_model, tmp_path, key, text, message):
    path = tmp_path / "odd.safetensors"
    stnet.save(small_model, path, {key: text})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_infer_tells_point_threshold_and_training_material(calibrated_model, make_clip, tmp_path, capsys):
    clip, model, out = tmp_path / "clip.mp4", tmp_path / "model.safetensors", tmp_path / "out"
    make_clip(clip, frames=3)
    stnet.save(calibrated_model, model)
    command = [str(clip), "--checkpoint", str(model), "--output", str(out), "--device", "cpu", "--overwrite"]
    command += ["--formats", "json,csv,report"]
    assert infer([*command, "--operating-point", "specific"]) == 0
    told = capsys.readouterr().err
    assert "trained on stripes" in told and "no use" in told
    facts = json.loads((out / "clip" / "detections.json").read_text())["model"]
    assert facts["score_threshold"] == 0.6 and facts["calibrated"] and facts["trained_on"] == "stripes"
    page = (out / "report.html").read_text()
    assert "stripes" in page and "0.6, the specific operating point" in page
    assert infer([*command, "--score-threshold", "0.3"]) == 0
    facts = json.loads((out / "clip" / "detections.json").read_text())["model"]
    assert facts["score_threshold"] == 0.3
    with pytest.raises(SystemExit):
        infer([*command, "--score-threshold", "0.3", "--operating-point", "specific"])
    plain = tmp_path / "plain.safetensors"
    calibrated_model.operating_points = None
    stnet.save(calibrated_model, plain)
    capsys.readouterr()
    command[command.index(str(model))] = str(plain)
    assert infer([*command, "--operating-point", "specific"]) == 2
    assert "operating point specific: this model has none" in capsys.readouterr().err
