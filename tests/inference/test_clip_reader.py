"""Clips from videos: complete, in order, with few frames held, whatever the video claims about itself."""

import numpy as np
import pytest

from stnet.errors import VideoError
from stnet.inference.clip_reader import ClipTask, VideoEnd, VideoStart, _ClipReader, read_clips
from stnet.video import ArraySource

FRAMES = 6


class Unreliable(ArraySource):
    """Declares one length, shows another in the first pass and a third in the second."""

    def __init__(self, declared: int, scanned: int, streamed: int):
        super().__init__(np.arange(max(scanned, streamed), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2))
        self.declared_frames, self._scanned, self._streamed = declared, scanned, streamed

    def scan(self, keep=()):
        found = super().scan(keep)
        return type(found)(length=self._scanned, frames={i: f for i, f in found.frames.items() if i < self._scanned})

    def __iter__(self):
        for index in range(self._streamed):
            yield self._frame(index)
        self._conclude("ok", [])


def read(*sources, targets: int = 3):
    return list(read_clips([(source.name, lambda source=source: source) for source in sources], FRAMES, targets))


def array(length: int) -> ArraySource:
    return ArraySource(np.arange(length, dtype=np.uint8)[:, None, None].repeat(3, 1).repeat(4, 2))


@pytest.mark.parametrize("targets", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 8, 20, 61])
def test_every_frame_once_in_order_with_what_it_needs(length, targets):
    start, *tasks, end = read(array(length), targets=targets)
    assert isinstance(start, VideoStart) and start.length == length
    assert isinstance(end, VideoEnd) and (end.status, end.frames, end.error) == ("ok", length, None)
    predicted = [frame.index for task in tasks for _, frame in task.predicted]
    assert predicted == list(range(length))
    held = set()
    for task in tasks:
        assert not held & set(task.new_frames)  # each frame is sent once
        held |= set(task.new_frames)
        assert set(task.clip.frames) <= held
        assert all(image[0, 0, 0] == index for index, image in task.new_frames.items())
        for position, frame in task.predicted:
            assert task.clip.frames[position] == frame.index
        assert held >= set(task.last_uses)
        held -= set(task.last_uses)
        assert len(held) <= 2 * FRAMES
    assert not held


def test_few_frames_are_held(monkeypatch):
    most = 0
    original = _ClipReader._task

    def counting(self, *arguments):
        nonlocal most
        task = original(self, *arguments)
        most = max(most, len(self._recent))
        return task

    monkeypatch.setattr(_ClipReader, "_task", counting)
    read(array(250))
    assert 0 < most <= 4


@pytest.mark.parametrize(
    ("declared", "scanned", "streamed"),
    [(5, 20, 20), (90, 20, 20), (None, 20, 20), (20, 20, 20), (20, 20, 13), (20, 20, 1), (20, 20, 30), (2, 2, 1)]
    + [(-5, 20, 20), (10**12, 20, 20)],
)
def test_wrong_lengths_are_survived(declared, scanned, streamed):
    _, *tasks, end = read(Unreliable(declared, scanned, streamed))
    predicted = [frame.index for task in tasks for _, frame in task.predicted]
    assert predicted == list(range(min(scanned, streamed)))
    assert end.frames == len(predicted)
    known = set()
    for task in tasks:
        known |= set(task.new_frames)
        assert set(task.clip.frames) <= known


def test_a_count_that_never_settles_is_refused():
    class Restless(Unreliable):
        def scan(self, keep=()):
            self._scanned += 1
            return super().scan(keep)

    (end,) = read(Restless(5, 5, 40))
    assert "differs from pass to pass" in str(end.error)


def test_unusable_videos_do_not_stop_the_others():
    def fail():
        raise VideoError("bad.mp4: no frame")

    good = array(4)
    events = list(read_clips([("a", lambda: good), ("bad", fail), ("b", lambda: good)], FRAMES, 3))
    ends = [event for event in events if isinstance(event, VideoEnd)]
    assert [(end.key, end.status, end.frames) for end in ends] == [(0, "ok", 4), (1, "unreadable", 0), (2, "ok", 4)]
    assert str(ends[1].error) == "bad.mp4: no frame"
    assert sum(isinstance(event, VideoStart) for event in events) == 2
    assert {event.video for event in events if isinstance(event, ClipTask)} == {0, 2}
