"""Which frames make a clip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stnet.data.clips.planning import plan_clips, sample_clip

shapes = st.integers(1, 9).flatmap(lambda f: st.tuples(st.just(f), st.integers(1, f)))


@given(length=st.integers(1, 60), shape=shapes)
def test_every_frame_is_predicted_exactly_once(length, shape):
    frames_per_clip, targets = shape
    clips = plan_clips(length, frames_per_clip, targets)
    assert sorted(frame for clip in clips for frame in clip.predicted) == list(range(length))
    assert len(clips) == -(-length // targets)
    for clip in clips:
        assert len(clip.frames) == frames_per_clip and all(0 <= frame < length for frame in clip.frames)
        assert all(position < targets for position in clip.targets)


@given(length=st.integers(1, 60), shape=shapes)
def test_global_frames_are_fixed_and_spread(length, shape):
    frames_per_clip, targets = shape
    locals_ = min(frames_per_clip, max(3, targets))
    spreads = {clip.frames[locals_:] for clip in plan_clips(length, frames_per_clip, targets)}
    (spread,) = spreads
    gaps = np.diff(spread)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@given(length=st.integers(1, 60), shape=shapes)
def test_local_frames_repeat_only_when_the_video_leaves_no_choice(length, shape):
    frames_per_clip, targets = shape
    for clip in plan_clips(length, frames_per_clip, targets):
        kept = [clip.frames[position] for position in range(targets)]
        assert len(set(kept)) == min(length, targets)


def test_plan_by_example():
    clips = plan_clips(8, 6)
    assert [clip.frames[:3] for clip in clips] == [(1, 0, 2), (4, 3, 5), (6, 5, 7)]
    assert [clip.targets for clip in clips] == [(0, 1, 2), (0, 1, 2), (0, 2)]
    assert {clip.frames[3:] for clip in clips} == {(1, 4, 6)}
    assert plan_clips(1, 6)[0].frames == (0,) * 6 and plan_clips(1, 6)[0].targets == (0,)
    assert [clip.frames[:3] for clip in plan_clips(3, 6, targets=1)] == [(0, 0, 1), (1, 0, 2), (2, 1, 2)]
    assert plan_clips(6, 6, targets=6)[0].frames == (2, 1, 3, 4, 0, 5)
    assert plan_clips(9, 6, targets=5)[0].frames == (2, 1, 3, 4, 0, 4)


@given(length=st.integers(1, 60), shape=shapes, seed=st.integers(0, 2**32), data=st.data())
def test_sampled_clips_follow_the_published_recipe(length, shape, seed, data):
    frames_per_clip, targets = shape
    centre = data.draw(st.integers(0, length - 1))
    frames = sample_clip(length, centre, frames_per_clip, np.random.default_rng(seed), targets)
    assert frames == sample_clip(length, centre, frames_per_clip, np.random.default_rng(seed), targets)
    assert len(frames) == frames_per_clip and all(isinstance(frame, int) for frame in frames)
    assert frames[:3] == (centre, max(centre - 1, 0), min(centre + 1, length - 1))[:frames_per_clip]
    drawn = frames[max(3, targets) :]
    if length > 2:
        assert centre not in drawn and length - 1 not in drawn
    if length - 2 >= len(drawn):
        assert len(set(drawn)) == len(drawn)


def test_sampled_globals_reach_the_whole_video_and_the_neighbours():
    rng = np.random.default_rng(0)
    drawn = {frame for _ in range(200) for frame in sample_clip(10, 4, 6, rng)[3:]}
    assert drawn == set(range(9)) - {4}


@pytest.mark.parametrize("length, frames, targets", [(0, 6, 3), (5, 6, 0), (5, 6, 7), (5, 0, 1)])
def test_arguments_out_of_range(length, frames, targets):
    with pytest.raises(ValueError, match="frames"):
        plan_clips(length, frames, targets)
    with pytest.raises(ValueError, match="frames"):
        sample_clip(length, 0, frames, np.random.default_rng(0), targets)


def test_centre_out_of_range():
    with pytest.raises(ValueError, match="centre 5"):
        sample_clip(5, 5, 6, np.random.default_rng(0))
