"""What pictures show: marks with numbers of lesions, labels that never cover each other, small frames enlarged."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stnet.errors import VideoError
from stnet.inference import FrameResult
from stnet.inference.annotated_video import AnnotatedVideo
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.draw import colour, draw_marks, readable_scale
from stnet.inference.frame_marks import in_frame, listed, marks_of
from stnet.inference.label_places import Label, placed
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.lesions import Lesion
from stnet.model.postprocess import Detections
from stnet.video import ArraySource, open_source

NAMES = {1: "benign", 2: "malignant"}
FRAMES, HEIGHT, WIDTH = 6, 120, 160


def result(frame: int, *rows: tuple[float, ...], origin: tuple[int, int] = (0, 0)) -> FrameResult:
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    detections = Detections(table[:, :4], table[:, 4], table[:, 5].long())
    size = (HEIGHT, WIDTH)
    return FrameResult(video="v", index=frame, time=frame / 25, detections=detections, size=size, origin=origin)


def lesion(number: int, frames: list[int], rows: list[int], box=(40, 30, 90, 80)) -> Lesion:
    found = np.array(rows) >= 0
    return Lesion(
        number=number,
        frames=np.array(frames),
        times=np.array(frames) / 25,
        boxes=np.tile(np.array(box, float), (len(frames), 1)),
        found=found,
        rows=np.array(rows),
        scores=np.where(found[:, None], [[0.2, 0.9]], 0.0),
        class_scores=np.array([0.2, 0.9]),
    )


def test_a_box_of_several_classes_is_one_mark_with_the_number_of_its_lesion():
    rows = [(40, 30, 90, 80, 0.9, 2), (100, 5, 120, 20, 0.6, 1), (40, 30, 90, 80, 0.5, 1)]
    marks = marks_of(listed(result(0, *rows), 0.4), in_frame([lesion(3, [0], [0])], 0), 0.4)
    assert [mark.texts(NAMES) for mark in marks] == [
        ("#3 malignant 0.90, benign 0.50", "#3 malignant 0.90", "#3 0.90", "#3"),
        ("benign 0.60", "0.60"),
    ]
    assert [mark.sure for mark in marks] == [True, True]


@pytest.mark.parametrize("row", [-1, 0])
def test_a_lesion_that_was_missed_or_weak_is_marked_where_it_should_be(row):
    weak = result(4, (140, 130, 190, 180, 0.3, 2), origin=(100, 100))
    found = in_frame([lesion(1, [4], [row], box=(140, 130, 190, 280))], 4)
    (mark,) = marks_of(listed(weak, 0.4), found, 0.4)
    assert (mark.box, mark.score, mark.sure) == ((40, 30, 90, 120), None, False)  # cut at the border
    assert mark.texts(NAMES) == ("#1 malignant", "#1")
    assert marks_of(listed(weak, 0.4), in_frame([lesion(1, [4], [-1], box=(0, 0, 50, 50))], 4)) == []


def test_boxes_beyond_the_frame_do_not_shift_the_numbers_of_others():
    rows = [(300, 300, 400, 400, 0.95, 1), (40, 30, 90, 80, 0.9, 2)]
    (mark,) = marks_of(listed(result(0, *rows), 0.4), in_frame([lesion(7, [0], [1])], 0), 0.4)
    assert mark.lesion == 7


corners = st.tuples(st.integers(0, 199), st.integers(0, 149))
label = st.builds(
    lambda first, second, sizes: Label(
        box=(*np.minimum(first, second).tolist(), *(np.maximum(first, second) + 1).tolist()), sizes=sizes
    ),
    corners,
    corners,
    st.lists(st.tuples(st.integers(1, 260), st.integers(8, 20)), min_size=1, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(labels=st.lists(label, max_size=25))
def test_labels_lie_in_the_picture_and_never_on_each_other(labels):
    taken = np.zeros((150, 200), int)
    for one, place in zip(labels, placed(labels, 200, 150), strict=True):
        if place is not None:
            wide, high = one.sizes[place.text]
            assert 0 <= place.x <= 200 - wide and 0 <= place.y <= 150 - high
            taken[place.y : place.y + high, place.x : place.x + wide] += 1
    assert taken.max(initial=0) <= 1


def test_labels_of_equal_boxes_stand_beside_each_other_and_say_less_where_room_ends():
    same = [Label(box=(50, 60, 100, 90), sizes=[(60, 20), (20, 20)])] * 4
    places = placed(same, 200, 150)
    assert [place.text for place in places] == [0] * 4 and len({(p.x, p.y) for p in places}) == 4
    tight = placed(same, 120, 20)
    assert [None if place is None else place.text for place in tight] == [0, 1, None, None]
    assert [place.text for place in placed(same[:1], 99, 20)] == [
        1
    ]  # of most of the width only where nothing is shorter
    assert [place.text for place in placed([Label(box=(0, 0, 9, 9), sizes=[(60, 20)])], 70, 20)] == [0]
    assert [place.text for place in placed(same[:1], 30, 20)] == [1]


@pytest.mark.parametrize(
    ("size", "scale"),
    [((128, 160), 4), ((208, 300), 2), ((386, 400), 1), ((1080, 1920), 1), ((3, 200), 9), ((1, 1), 480)],
)
def test_small_frames_are_enlarged(size, scale):
    assert readable_scale(*size) == scale


def test_marks_are_drawn_where_they_are_in_enlarged_frames():
    frame = listed(result(0, (40, 30, 90, 80, 0.9, 2)), 0.4)
    image = np.full((HEIGHT, WIDTH, 3), 50, np.uint8)
    drawn = draw_marks(image, marks_of(frame, (), 0.4), NAMES, 4)
    assert drawn.shape == (HEIGHT * 4, WIDTH * 4, 3)
    there = (drawn == colour(2)).all(axis=2)
    assert there[120, 160:361].all() and there[320, 160:361].all() and there[120:321, 160].all()
    assert not there[330:].any()
    (missed,) = in_frame([lesion(1, [0], [-1], box=(40, 30, 90, 80))], 0)
    dashed = (draw_marks(image, marks_of(listed(result(0), 0.4), [missed], 0.4), NAMES, 4) == colour(2)).all(axis=2)
    assert 0.3 < dashed[320, 160:361].mean() < 0.7


def video_facts(tmp_path, source) -> VideoFacts:
    return VideoFacts(name="clip", folder=tmp_path, source=source, origin="clip", frames=FRAMES)


@pytest.fixture
def sink(tmp_path):
    run = RunFacts(output=tmp_path, videos=1, class_names=NAMES, score_threshold=0.4, model={}, shown={})
    return AnnotatedVideo(run)


def end(error: Exception | None = None) -> VideoEnd:
    return VideoEnd(key=0, name="clip", status="ok", problems=(), frames=FRAMES, error=error)


def test_the_video_shows_lesions_that_are_known_only_at_its_end(sink, tmp_path):
    source = ArraySource(np.full((FRAMES, HEIGHT, WIDTH, 3), 50, np.uint8), "clip", Fraction(25))
    sink.begin(video_facts(tmp_path, source))
    for frame in range(FRAMES):
        sink.write(result(frame, *([] if frame == 2 else [(40, 30, 90, 80, 0.9, 2)])))
    sink.lesions([lesion(1, list(range(5)), [0, 0, -1, 0, 0])])
    sink.end(end())
    frames = [frame.image.astype(int) for frame in open_source(tmp_path / "annotated.mp4")]
    assert len(frames) == FRAMES and frames[0].shape == (HEIGHT * 4, WIDTH * 4, 3)
    orange = [(np.abs(image - colour(2)).sum(axis=2) < 120) for image in frames]
    below = [image[318:323, 160:361].any(axis=0).mean() for image in orange]
    assert below[0] > 0.9 and 0.2 < below[2] < 0.8  # dashed where it was missed
    widths = [image[60:120].any(axis=0).sum() for image in orange]
    assert widths[0] > widths[5] > 0  # "#1 malignant 0.90" and, without a lesion, "malignant 0.90"


def test_a_video_that_cannot_be_read_again_is_said(sink, tmp_path):
    source = ArraySource(np.zeros((FRAMES - 1, HEIGHT, WIDTH, 3), np.uint8), "clip", Fraction(25))
    sink.begin(video_facts(tmp_path, source))
    for frame in range(FRAMES):
        sink.write(dataclasses.replace(result(frame)))
    with pytest.raises(VideoError, match="1 of its frames could not be read again"):
        sink.end(end())
    sink.abandon(VideoError("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["annotated.mp4.partial"]
