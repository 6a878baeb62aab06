"""What Python hands over, and what it sees: pictures and arrays of any type, and a line for every thing."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import stnet
from stnet.data.index import load_index
from stnet.data.phantom import render_phantom, write_phantoms
from stnet.errors import VideoError
from stnet.inference import VideoDetector
from stnet.inference.inputs import open_videos
from stnet.inference.live import LiveDetector
from stnet.video import open_source


@pytest.mark.parametrize(
    ("frames", "count"),
    [
        (torch.zeros(3, 8, 10, dtype=torch.uint8), 1),  # one frame in colour, as torchvision has it
        (torch.zeros(2, 3, 8, 10, dtype=torch.uint8), 2),
        (torch.zeros(3, 8, 10, 1, dtype=torch.uint8), 3),
        (torch.zeros(4, 8, 10, dtype=torch.uint8), 4),
        (np.zeros((3, 8, 10), np.uint8), 3),
    ],
)
def test_shapes_mean_what_the_documentation_says(frames, count):
    ((_, opened),) = open_videos(frames, Fraction(25))
    source = opened()
    assert (source.declared_frames, source.height, source.width) == (count, 8, 10)


def boxes_of(results) -> list[list]:
    return [result.detections.boxes.tolist() for result in results]


def test_pictures_floats_and_deep_values_equal_the_same_bytes(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu")
    frames = make_frames(4)
    grey = np.ascontiguousarray(frames[..., 0])
    expected, expected_grey = boxes_of(detector(frames)), boxes_of(detector(grey))
    floats = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    assert boxes_of(detector(floats, value_range=(0, 1))) == expected
    assert boxes_of(detector(grey.astype(np.uint16) * 257, value_range=(0, 65535))) == expected_grey
    pictures = [Image.fromarray(frame) for frame in frames]
    for same in (pictures, iter(pictures), [picture.convert("RGBA") for picture in pictures]):
        assert boxes_of(detector(same)) == expected
    deep = [Image.fromarray(picture.astype(np.uint16) * 16) for picture in grey]
    (found,) = detector.videos(deep, value_range=(0, 255 * 16))
    assert boxes_of(found.frames) == expected_grey
    assert len(list(detector(pictures[0]))) == 1
    turned = pictures[0].transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # "turn it by 90 degrees clockwise to see it"
    assert boxes_of(detector(turned)) == boxes_of(detector(pictures[0]))
    live = LiveDetector(detector, policy="wait")
    assert boxes_of(live(pictures)) == boxes_of(live(frames)) == boxes_of(live(floats, value_range=(0, 1)))


@pytest.mark.parametrize(
    ("videos", "value_range", "message"),
    [
        ([Image.new("I;16", (8, 8))], None, "pass value_range"),
        ([Image.new("F", (8, 8))], None, "pass value_range"),
        (np.zeros((2, 8, 8), np.float16), None, "pass value_range"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), None, "pass value_range"),
        ([np.full((8, 8), 256, np.uint16)], (0, 255), "state the range that they have"),
        ("clip.mp4", (0, 1), "a file says itself what is white"),
    ],
)
def test_what_states_no_range_is_refused(small_model, make_clip, tmp_path, monkeypatch, videos, value_range, message):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "clip.mp4", frames=2)
    with pytest.raises(VideoError, match=message):
        list(VideoDetector(small_model, device="cpu")(videos, value_range=value_range))


def test_pictures_that_hold_several_are_refused(small_model, tmp_path):
    pictures = [Image.new("L", (16, 16), value) for value in (0, 200)]
    pictures[0].save(tmp_path / "two.gif", save_all=True, append_images=pictures[1:])
    with Image.open(tmp_path / "two.gif") as image, pytest.raises(VideoError, match="holds 2"):
        list(VideoDetector(small_model, device="cpu")(image))


def test_everything_says_in_a_line_what_it_is(small_model, make_frames, make_clip, tmp_path):
    detector = VideoDetector(small_model, device="cpu")
    (found,) = detector.videos(make_frames(5), score_threshold=0.2)
    write_phantoms(tmp_path / "phantoms", 1, 1, 0, frames=2, height=64, width=64)
    index = load_index(tmp_path / "phantoms", "train")
    live = LiveDetector(detector, policy="wait")
    source = open_source(make_clip(tmp_path / "clip.mp4", frames=3))
    things = {
        "VideoDetector(resnet10 on cpu in float32: benign, malignant from score 0.4)": detector,
        "Detector(resnet10, ": small_model,
        f"VideoResult(array, 5 frames, {len(found.lesions)} lesions: ": found,
        "FrameResult(frame 0 of array at 0.00 s, Detections(": found.frames[0],
        "Detections(14, best score ": found.frames[0].detections,
        "Lesion(1: class ": found.lesions[0],
        "LesionInFrame(1: class ": found.frames[found.lesions[0].first_frame].lesions[0],
        "LiveDetector(VideoDetector(": live,
        "LiveResult(frame 0 of live at ": next(live(make_frames(1))),
        "VideoFile(clip: 3 frames of 48 x 40 pixels, 25 frames/s, unread)": source,
        "VideoFrame(index=0, ": next(iter(source)),
        "ModelConfig(backbone='resnet10', ": small_model.config,
        "ModelConfig()": stnet.ModelConfig(),
        "TrainConfig(epochs=3)": stnet.TrainConfig(epochs=3),
        f"DatasetIndex({tmp_path}/phantoms/train.json: 1 videos, 2 frames of benign, malignant)": index,
        "Video(benign/phantom_train_0000, 2 frames)": index.videos[0],
        "PhantomVideo(2 frames of 64 x 64 pixels, ": render_phantom(0, frames=2, height=64, width=64),
    }
    for begins, thing in things.items():
        text = repr(thing)
        assert text.startswith(begins) and "\n" not in text and len(text) < 400, text
        assert not any(noise in text for noise in ("array([", "tensor(", " at 0x")), text
    assert eval(repr(small_model.config), {"ModelConfig": stnet.ModelConfig}) == small_model.config
