"""Where the model looked: the points told of are those that the model sampled, and they reach picture and page."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.execution.engine import Engine, EngineOptions
from stnet.execution.inspection import InspectedClip
from stnet.inference import VideoDetector, cli, explainer
from stnet.inference.explainer import Explainer
from stnet.model.operating_points import OperatingPoints
from stnet.video import ArraySource
from tests.kernels.resampling import resampled


@pytest.mark.parametrize("target", [0, 2])
def test_points_are_those_that_the_model_sampled(small_model, make_frames, target):
    engine = Engine(small_model, EngineOptions(device="cpu"))
    seen, outputs = {}, {"encoder": [], "decoder": []}
    for part in ("encoder", "decoder"):
        attention = getattr(engine.model, part).layers[-1].attention
        attention.register_forward_pre_hook(lambda _, call, part=part: seen.update({f"{part} value": call[2:4]}))
        attention.output_proj.register_forward_pre_hook(lambda _, call, part=part: outputs[part].append(call[0]))
    clip = InspectedClip(engine, list(make_frames(engine.config.frames)), target)
    # An encoder on a processor takes one frame after the other.
    sampled = seen | {part: torch.cat(taken, dim=1) for part, taken in outputs.items()}
    box = (0.2, 0.3, 0.7, 0.8)
    found = {"decoder": (clip.decoder_points(3), sampled["decoder"][:, :1, 3:4])}
    inside, start = [], 0
    for height, width in sampled["encoder value"][1]:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = (rows.flatten() + 0.5) / height, (columns.flatten() + 0.5) / width
        under = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
        inside.append(start + under.nonzero().flatten())
        start += height * width
    whole = torch.cat(inside[:2])  # those of the coarse levels may lie beside the box
    points = clip.encoder_points(box)
    found["encoder"] = (points, sampled["encoder"][:, target : target + 1])
    for part, (points, output) in found.items():
        value, shapes = sampled[f"{part} value"]
        again = resampled(points, value, shapes)
        if part == "encoder":
            again, output = again[:, :, : len(whole)], output[:, :, whole]
        torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-5)
        assert (points.frames[0, points.own] == target).all() and (points.frames[0, ~points.own] != target).all()
    logits, boxes = engine.detect([level.unsqueeze(0) for level in engine.extract(_images(engine, make_frames))])
    torch.testing.assert_close(clip.logits, logits[0, target], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.boxes, boxes[0, target], rtol=1e-4, atol=1e-5)


def _images(engine, make_frames):
    frames = list(make_frames(engine.config.frames))
    return engine.images(frames, engine.size_of(*frames[0].shape[:2]))


@pytest.fixture(params=[None, (2.0, -1.0)], ids=["as they are", "calibrated"])
def detector(small_model, request):
    """One whose scores are the model's own, or calibrated by a slope and an offset."""
    if request.param is not None:
        slope, offset = ((value, value) for value in request.param)
        thresholds = {"sensitive": 0.01, "balanced": 0.05, "specific": 0.5}
        small_model.operating_points = OperatingPoints(
            class_names=("benign", "malignant"), slopes=slope, offsets=offset, chosen_on="made-up stills", **thresholds
        )
    yield VideoDetector(small_model, device="cpu")
    small_model.operating_points = None


def test_lesions_are_explained_in_the_frame_that_shows_them_best(detector, make_frames):
    frames = np.repeat(make_frames(1), 7, axis=0)
    (video,) = detector.videos(frames, score_threshold=0.01)
    best = max(video.lesions, key=lambda lesion: lesion.score)
    (found,) = Explainer(detector, 1)(ArraySource(frames, "video"), len(frames), video.lesions)
    assert (found.lesion, found.frame, found.label) == (best.number, best.best_frame, best.label)
    assert found.score == pytest.approx(best.scores[best.best, best.label - 1], abs=1e-5)
    own, *others = found.frames
    assert own.own and own.frame == best.best_frame and not any(frame.own for frame in others)
    assert [frame.frame for frame in others] == sorted({frame.frame for frame in others})
    assert own.box == pytest.approx(best.boxes[best.best])
    for part in ("decoder", "encoder"):
        points = [getattr(frame, part) for frame in found.frames]
        assert 0 < sum(rows[:, 2].sum() for rows in points) <= 1.0001
        for rows in points:
            assert (rows[:, :2] >= 0).all() and (rows[:, :2] <= [48, 40]).all() and (rows[:, 2] > 0).all()


@pytest.fixture
def command(checkpoint, make_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "clip.mp4", frames=5)
    command = ["clip.mp4", "--checkpoint", str(checkpoint), "--device", "cpu", "--no-video"]
    return [*command, "--score-threshold", "0.05", "--output", "out"]


def test_the_command_explains(command, tmp_path):
    assert cli.main([*command, "--explain", "2", "--report"]) == 0
    (block,) = re.findall(r'id="video-0">(.*?)</script>', (tmp_path / "out/report.html").read_text())
    cards = json.loads(block)["lesions"]
    explained = [card for card in cards if "looked" in card]
    assert explained == cards[:2] and len(cards) > 2
    pictures = sorted(path.name for path in (tmp_path / "out/clip/explained").iterdir())
    assert pictures == sorted(f"lesion-{card['number']}.png" for card in explained)
    for card in explained:
        looked = card["looked"]
        assert [frame["own"] for frame in looked["frames"]] == [True] + [False] * (len(looked["frames"]) - 1)
        assert looked["frames"][0]["number"] == card["best"]["number"] and looked["frames"][0]["image"] is None
        for part in ("decoder", "encoder"):
            assert len(looked[part]) == len(looked["frames"])
            weights = [weight for frame in looked[part] for weight in frame["points"][2::3]]
            assert max(weights) == 1000 and min(weights) >= 1
    with Image.open(tmp_path / "out/clip/explained" / pictures[0]) as picture:
        assert picture.width >= 820


def test_what_cannot_be_explained_costs_no_other_result(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explainer, "REPEATED", -1.0)  # as if the video gave another result when read again
    assert cli.main([*command, "--explain", "1"]) == 1
    assert "cannot be explained" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/clip/detections.json").read_text())["lesions"]
    assert list((tmp_path / "out/clip/explained").iterdir()) == []
    assert cli.main([*command, "--explain", "1", "--live"]) == 2 and "--explain" in capsys.readouterr().err
