"""Training clips from stills: boxes follow in every frame, defences never touch them, each can be switched off."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stnet.data.clips.dataset import ClipDataset
from stnet.data.clips.transforms import FrameStack
from stnet.data.index import DatasetIndex, Frame, Video
from stnet.data.phantom import render_phantom
from stnet.data.synthetic.machines import Shadow
from stnet.data.synthetic.marks import imagined_lesion, paint_marks, paint_over
from stnet.data.synthetic.pasting import Donors, PasteLesions
from stnet.data.synthetic.screens import cut_sector, draw_layout, place_on_screen
from stnet.data.synthetic.still_clips import DEFENCES, Defences, StillClips, still_training_transform
from stnet.errors import ConfigError
from stnet.training.clips import training_clips
from stnet.training.config import TrainConfig

NONE = Defences().without(*DEFENCES)
BOX = (60, 40, 110, 80)


def ellipse(height: int, width: int, box, *, inside: int = 230, outside: int = 90) -> np.ndarray:
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    rank = ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2
    return np.where(rank <= 0.25, inside, outside).astype(np.uint8)


def held(pixels: np.ndarray, boxes, frames: int = 4, channels: int = 1) -> FrameStack:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return FrameStack(
        frames=np.repeat(np.repeat(pixels[None, :, :, None], frames, axis=0), channels, axis=3),
        boxes=(boxes,) * frames,
        labels=(np.arange(len(boxes)) % 2 + 1,) * frames,
    )


def clips(defences: Defences, seeds=range(60), **changes):
    still = held(ellipse(140, 180, BOX), [BOX])
    for seed in seeds:
        transform = StillClips(size=120, longest=200, defences=defences, **changes)
        yield transform(still, np.random.default_rng(seed))


def seen_boxes(frame: np.ndarray, threshold: int = 165) -> np.ndarray:
    rows, columns = np.nonzero(frame[..., 0] > threshold)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_boxes_follow_the_pixels_in_every_frame():
    moved = still = 0
    for clip in clips(NONE):
        assert {len(boxes) for boxes in clip.boxes} == {1}
        for frame, boxes in zip(clip.frames, clip.boxes, strict=True):
            np.testing.assert_allclose(boxes[0], seen_boxes(frame), atol=3)
        shift = np.ptp(np.stack([boxes[0] for boxes in clip.boxes]), axis=0).max()
        moved += shift > 1
        still += bool((clip.frames == clip.frames[:1]).all())
    assert moved > 20 and still > 4


def test_lesion_free_views_hold_no_part_of_a_lesion():
    free = list(clips(Defences(lesion_free=1.0, shadows=0.0).without("marks", "machines", "screens"), range(40)))
    assert all(clip.frames.max() < 130 and not any(map(len, clip.boxes)) for clip in free)


def test_the_same_seed_gives_the_same_clip():
    for first, second in zip(clips(Defences(), range(12)), clips(Defences(), range(12)), strict=True):
        np.testing.assert_array_equal(first.frames, second.frames)
        np.testing.assert_array_equal(np.concatenate(first.boxes), np.concatenate(second.boxes))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    frames=st.integers(1, 6),
    lesions=st.integers(0, 3),
    channels=st.sampled_from((1, 3)),
    seed=st.integers(0, 2**32),
)
def test_any_still_gives_a_complete_clip(height, width, frames, lesions, channels, seed):
    rng = np.random.default_rng(seed)
    boxes = [imagined_lesion(rng, height, width) for _ in range(lesions)]
    pixels = rng.integers(0, 256, (height, width), dtype=np.uint8)
    clip = StillClips(size=64, longest=96, defences=Defences())(held(pixels, boxes, frames, channels), rng)
    assert clip.frames.dtype == np.uint8 and clip.frames.shape[0] == frames and clip.frames.shape[3] == channels
    assert min(clip.height, clip.width) >= 1 and max(clip.height, clip.width) <= 96
    for found, labels in zip(clip.boxes, clip.labels, strict=True):
        assert len(found) == len(labels) == len(clip.boxes[0]) <= lesions
        assert (found >= 0).all() and (found <= (clip.width, clip.height) * 2).all()
        assert (found[:, 2:] > found[:, :2]).all()


def test_a_moving_video_keeps_its_motion():
    video = render_phantom(3, frames=3, height=64, width=80, lesions=("benign",))
    stack = FrameStack(frames=video.frames, boxes=video.boxes, labels=video.labels)
    same = StillClips(size=64, longest=80, defences=NONE)
    for seed in range(8):
        clip = same(stack, np.random.default_rng(seed))
        assert len(clip.frames) == 3 and (clip.frames[0] != clip.frames[1]).mean() > 0.2


def test_every_setting_belongs_to_one_defence_and_can_be_switched_off():
    grouped = [name for group in DEFENCES.values() for name in group]
    assert sorted(grouped) == sorted(known.name for known in fields(Defences))
    assert all(getattr(NONE, name) == 0 for name in grouped)
    for name in DEFENCES:
        assert Defences().without(name) != Defences()
    with pytest.raises(ValueError, match="defence 'mark' is none of marks"):
        Defences().without("mark")


def test_marks_are_painted_where_no_lesion_is_and_painted_over():
    plain = np.full((140, 180, 1), 80, dtype=np.uint8)
    assert (paint_over(plain, np.random.default_rng(0)) == plain).all()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        marked = paint_marks(plain, rng, [BOX])
        strokes = np.abs(marked.astype(int) - plain).max(axis=2) > 0
        assert 10 < strokes.sum() < 0.2 * strokes.size
        if marked.max() > 190:
            cleaned = paint_over(marked, rng)
            assert (cleaned > 170).sum() < 0.35 * (marked > 170).sum()
    painted = clips(Defences(false_marks=1.0).without("pasting", "free", "machines", "screens"), range(20))
    assert all(len(boxes) == 1 for clip in painted for boxes in clip.boxes)


def test_painting_over_keeps_lesions_and_grain():
    rng = np.random.default_rng(0)
    tissue = np.clip(ellipse(140, 180, BOX, inside=40, outside=120) + rng.normal(0, 12, (140, 180)), 0, 255)
    tissue = tissue.astype(np.uint8)[..., None]
    marked = tissue.copy()
    marked[60, 20:160] = 255
    cleaned = paint_over(marked, rng)
    assert np.abs(cleaned[:50].astype(int) - tissue[:50]).max() == 0
    row = cleaned[60, :, 0].astype(float)
    assert abs(row[70:100].mean() - 40) < 10 and abs(row[20:50].mean() - 120) < 10 and row[20:50].std() > 5


def test_screens_move_boxes_with_the_scan():
    scan = held(ellipse(60, 90, (20, 10, 50, 40)), [(20, 10, 50, 40)])
    for seed in range(30):
        rng = np.random.default_rng(seed)
        layout = draw_layout(rng, 120, 160)
        assert 0 <= layout.top <= 120 - layout.rows and 0 <= layout.left <= 160 - layout.columns
        layout = replace(layout, top=layout.top % 60, left=layout.left % 70, rows=60, columns=90)
        placed = place_on_screen(scan, layout, rng)
        assert placed.frames.shape == (4, 120, 160, 1)
        for frame, boxes in zip(placed.frames, placed.boxes, strict=True):
            x0, y0, x1, y1 = boxes[0].astype(int)
            assert (frame[y0:y1, x0:x1] == scan.frames[0, 10:40, 20:50]).all()


def test_sectors_and_shadows_leave_lesions_alone():
    stack = held(ellipse(100, 140, BOX), [BOX])
    changed = 0
    for seed in range(60):
        for result in (
            cut_sector(stack, np.random.default_rng(seed)),
            Shadow(probability=1.0)(stack, np.random.default_rng(seed)),
        ):
            changed += bool((result.frames != stack.frames).any())
            bright = stack.frames > 200
            assert (result.frames[bright] >= 225).all()
            assert result.boxes is stack.boxes
    assert changed > 30


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    """Stills with one dark lesion each, one with a large one, one without any."""
    root = tmp_path_factory.mktemp("donors")
    places = [(30 + 3 * i, 30, 62 + 3 * i, 55) for i in range(5)] + [(5, 5, 175, 135), None]
    videos = []
    for number, place in enumerate(places):
        pixels = ellipse(140, 180, place, inside=30, outside=110) if place else np.full((140, 180), 110, np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        boxes = np.array([place] if place else [], dtype=np.float32).reshape(-1, 4)
        frame = Frame(
            path=root / f"{number}.png",
            image_id=number,
            frame_id=0,
            height=140,
            width=180,
            boxes=boxes,
            labels=np.full(len(boxes), 2, dtype=np.int64),
            annotated=True,
        )
        videos.append(Video(name=f"v{number}", video_id=number, frames=(frame,)))
    return DatasetIndex(
        root=root, annotation_file=Path("x.json"), class_names=("benign", "malignant"), videos=tuple(videos), repairs=()
    )


def test_pasted_lesions_have_boxes_and_decoys_have_none(index):
    donors = Donors(index)
    assert len(donors) == 5
    target = held(np.full((140, 180), 120, dtype=np.uint8), [(120, 90, 170, 130)], frames=1)
    pasted = decoys = 0
    for seed in range(30):
        paste = PasteLesions(donors=donors, probability=1.0, decoys=0.0)
        result = paste(target, np.random.default_rng(seed))
        (frame,), (boxes,), (labels,) = result.frames, result.boxes, result.labels
        assert len(boxes) == len(labels) and boxes[0].tolist() == [120, 90, 170, 130]
        for x0, y0, x1, y1 in boxes[1:]:
            rows, columns = slice(round(y0), round(y1)), slice(round(x0), round(x1))
            assert frame[rows, columns].min() < 60 and not (x1 > 120 and y1 > 90)
            pasted += 1
        assert (labels[1:] == 2).all()
        result = PasteLesions(donors=donors, probability=0.0, decoys=1.0)(target, np.random.default_rng(seed))
        assert len(result.boxes[0]) == 1
        decoys += bool(result.frames.min() > 80)
    assert pasted > 20 and decoys == 30
    moving = replace(index.videos[0], frames=index.videos[0].frames * 2)
    nobody = Donors(replace(index, videos=(index.videos[-1], moving)))
    assert PasteLesions(donors=nobody, probability=1.0, decoys=1.0)(target, np.random.default_rng(0)) is target


def test_a_recipe_leaves_defences_out(index):
    config = TrainConfig.preset("lite0").replace(without_defences=("marks", "screens"))
    assert TrainConfig.from_json(config.to_json()) == config
    assert training_clips(index, config).transform.defences == Defences().without("marks", "screens")
    with pytest.raises(ConfigError, match="without_defences is 'mark'"):
        config.replace(without_defences=("mark",))


def test_a_data_set_draws_clips_with_it(index):
    data = ClipDataset(index, 3, still_training_transform(96, 128, index=index), targets=3, seed=1)
    first, again = data[0], data[0]
    assert first.images.shape[:2] == (3, 3) and (first.images == again.images).all()
    assert max(first.images.shape[2:]) <= 128
    assert len({tuple(data[7 * n].images.shape) for n in range(8)}) > 2
