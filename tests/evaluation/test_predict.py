"""Every annotated frame is predicted exactly once, by the protocol asked for."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.data.index import DatasetIndex, Frame, Video
from stnet.errors import ConfigError, StnetError
from stnet.evaluation.coco import evaluate_frames
from stnet.evaluation.predict import PredictionOptions, predict_frames
from stnet.evaluation.protocol import planned_clips
from stnet.execution.engine import Engine, EngineOptions
from stnet.inference import VideoDetector
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="resnet10",
        backbone_width=8,
        backbone_norm="group",
        hidden_dim=64,
        heads=2,
        feedforward_dim=32,
        dropout=0.0,
        encoder_layers=1,
        decoder_layers=1,
        queries=4,
        image_size=40,
        max_image_size=80,
    )
    return Detector(config).eval()


def index_of(folder: Path, lengths: list[int], unannotated: tuple[int, ...] = ()) -> DatasetIndex:
    """Videos of noise; image ids count through all videos, as in the BUV files."""
    generator = np.random.default_rng(0)
    videos, identity = [], 0
    for number, length in enumerate(lengths):
        frames = []
        for position in range(length):
            identity += 1
            path = folder / f"{identity}.png"
            Image.fromarray(generator.integers(0, 255, (30, 44), dtype=np.uint8)).save(path)
            boxes = np.array([[4, 5, 20, 18]] if position % 2 else [], dtype=np.float32).reshape(-1, 4)
            frames.append(
                Frame(
                    path=path,
                    image_id=identity,
                    frame_id=position,
                    height=30,
                    width=44,
                    boxes=boxes,
                    labels=np.ones(len(boxes), dtype=np.int64),
                    annotated=identity not in unannotated,
                )
            )
        videos.append(Video(name=f"v{number}", video_id=number + 1, frames=tuple(frames)))
    return DatasetIndex(
        root=folder,
        annotation_file=folder / "val.json",
        class_names=("benign", "malignant"),
        videos=tuple(videos),
        repairs=(),
    )


@pytest.mark.parametrize("targets", [1, 3])
def test_every_annotated_frame_exactly_once(model, tmp_path, targets):
    index = index_of(tmp_path, [1, 2, 3, 7, 11], unannotated=(3, 9))
    advanced = []
    scored = predict_frames(model, index, PredictionOptions(targets=targets), advance=advanced.append)
    assert [frame.image_id for frame in scored] == [i for i in range(1, 25) if i not in (3, 9)]
    assert sum(advanced) == len(scored)
    assert all(len(frame.boxes) == 8 for frame in scored)


def test_what_is_no_number_is_no_prediction(model, tmp_path):
    broken = deepcopy(model)
    with torch.no_grad():
        for head in broken.decoder.class_heads:
            head.weight.fill_(3e38)
    index = index_of(tmp_path, [3])
    for predictor in (broken, Engine(broken, EngineOptions(device="cpu"))):
        with pytest.raises(StnetError, match="v0: the model gives values that are not finite"):
            predict_frames(predictor, index)


def test_batches_and_shares_change_nothing(model, tmp_path):
    index = index_of(tmp_path, [8, 5, 9])
    together = predict_frames(model, index, PredictionOptions(clips_per_batch=4))
    single = predict_frames(model, index, PredictionOptions(clips_per_batch=1, threads=1))
    shares = [frame for video in (0, 1, 2) for frame in predict_frames(model, index, videos=[video])]
    for one, two, three in zip(together, single, shares, strict=True):
        assert one.image_id == two.image_id == three.image_id
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
        np.testing.assert_array_equal(one.scores, three.scores)


def test_cached_features_give_what_whole_clips_give(model, tmp_path):
    from stnet.data.clips.transforms import prepare_frames
    from stnet.data.frames import FrameReader
    from stnet.model.postprocess import select_detections

    index = index_of(tmp_path, [9])
    scored = predict_frames(model, index)
    clip = planned_clips(index, "all", 6)[0][1]
    stack = FrameReader(0).read_clip(index.videos[0], clip.frames)
    images = prepare_frames(stack.frames, model.config.image_size, model.config.max_image_size)
    with torch.no_grad():
        out = model(images[None], targets=3)
    for target in clip.targets:
        expected = select_detections(out.logits[0, target][None], out.boxes[0, target][None], 30, 44)[0]
        found = scored[clip.frames[target]]
        np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes.numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", torch.bfloat16)]
    + [pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in (None, torch.bfloat16, torch.float16)],
)
def test_devices_and_precisions_agree(model, tmp_path, device, precision):
    index = index_of(tmp_path, [7, 2])
    wanted = predict_frames(model, index, PredictionOptions())
    found = predict_frames(deepcopy(model).to(device), index, PredictionOptions(precision=precision))
    for one, other in zip(found, wanted, strict=True):
        # Near ties may change places.
        np.testing.assert_allclose(np.sort(one.scores), np.sort(other.scores), atol=1e-2)
        np.testing.assert_allclose(np.sort(one.boxes, axis=0), np.sort(other.boxes, axis=0), atol=1.0)


@pytest.fixture(scope="module")
def overlapping(model):
    """The model with boxes so large that they overlap."""
    wide = deepcopy(model)
    with torch.no_grad():
        for head in wide.decoder.box_heads:
            head.layers[-1].bias[2:] = 3.0
    return wide


def test_duplicates_are_dropped_as_the_model_says(overlapping, tmp_path):
    model = overlapping
    index = index_of(tmp_path, [4])
    strict = deepcopy(model)
    strict.config = replace(model.config, duplicate_iou=0.001)
    pairs = zip(predict_frames(model, index), predict_frames(strict, index), strict=True)
    counts = [(len(dropped.scores), len(everything.scores)) for everything, dropped in pairs]
    assert all(0 < few < many for few, many in counts), counts


def test_published_protocol_counts_across_video_borders(tmp_path):
    index = index_of(tmp_path, [4, 3, 6])
    planned = planned_clips(index, "published", 6)
    centres = [
        video.frames[clip.frames[0]].image_id
        for video, clips in zip(index.videos, planned, strict=True)
        for clip in clips
    ]
    assert centres == list(range(1, 14))[1::3] == [2, 5, 8, 11]
    for video, clips in zip(index.videos, planned, strict=True):
        for clip in clips:
            centre = clip.frames[0]
            last = len(video.frames) - 1
            assert clip.targets == (0,)
            assert clip.frames[1:3] == (max(centre - 1, 0), min(centre + 1, last))


def test_published_protocol_scores_those_frames_only(model, tmp_path):
    index = index_of(tmp_path, [4, 3, 6])
    scored = predict_frames(model, index, PredictionOptions(protocol="published"))
    assert [frame.image_id for frame in scored] == [2, 5, 8, 11]


def test_unknown_protocol_is_refused(tmp_path):
    with pytest.raises(ValueError, match="protocol 'thirds'"):
        planned_clips(index_of(tmp_path, [3]), "thirds", 6)


def test_videos_nobody_annotated_need_no_prediction(model, tmp_path):
    index = index_of(tmp_path, [3, 4], unannotated=(1, 2, 3))
    assert planned_clips(index, "all", 6)[0] == []
    assert [frame.video for frame in predict_frames(model, index)] == ["v1"] * 4


def test_frames_of_another_size_keep_their_own_pixels(model, tmp_path):
    index = index_of(tmp_path, [3])
    video = index.videos[0]
    Image.fromarray(np.zeros((60, 88), dtype=np.uint8)).save(tmp_path / "2.png")
    larger = replace(video.frames[1], height=60, width=88)
    index = replace(index, videos=(replace(video, frames=(video.frames[0], larger, video.frames[2])),))
    scored = predict_frames(model, index)
    centres = [np.abs(frame.boxes).max() for frame in scored]
    assert len(scored) == 3 and centres[1] > 1.5 * centres[0]


@pytest.mark.parametrize("targets", [1, 3])
def test_evaluation_measures_what_users_run(model, tmp_path, targets):
    """The engine under the dataset's frames, a plain model, and the detector on a folder find the same."""
    index = index_of(tmp_path, [11])
    options = PredictionOptions(targets=targets)
    engine = Engine(model, EngineOptions(device="cpu"), targets)
    by_engine, by_model = (predict_frames(one, index, options) for one in (engine, model))
    by_user = list(VideoDetector(model, device="cpu", targets=targets, batch=4)(tmp_path))
    assert len(by_engine) == len(by_model) == len(by_user) == 11
    for measured, plain, user in zip(by_engine, by_model, by_user, strict=True):
        np.testing.assert_allclose(measured.scores, user.detections.scores, atol=1e-5)
        np.testing.assert_allclose(measured.boxes, user.detections.boxes, atol=1e-3)
        np.testing.assert_array_equal(measured.labels, user.detections.labels)
        np.testing.assert_allclose(measured.scores, plain.scores, atol=1e-4)
    truth, names = ("benign", "malignant"), 0.3
    metrics = [evaluate_frames(frames, truth, names) for frames in (by_engine, by_model)]
    assert metrics[0].overall.ap == pytest.approx(metrics[1].overall.ap, abs=1e-6)


def test_duplicates_are_an_option_and_no_change_of_the_model(overlapping, tmp_path):
    model = overlapping
    index, before = index_of(tmp_path, [4]), model.config
    found = predict_frames(model, index, PredictionOptions(duplicate_iou=0.01))
    assert sum(len(frame.scores) for frame in found) < sum(len(frame.scores) for frame in predict_frames(model, index))
    assert model.config is before
    with pytest.raises(ConfigError, match="duplicate_iou is 2"):
        PredictionOptions(duplicate_iou=2)
