"""Findings linked into lesions: through gaps, crossings, absences and false alarms, offline and live."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stnet.errors import ConfigError
from stnet.lesions import Findings, LinkSettings, LiveLinker, find_lesions, live
from stnet.lesions.motion import smoothed
from tests.lesions.identity import by_frame, identities
from tests.lesions.trajectories import detected, made_video

SETTINGS = LinkSettings(start_score=0.4)
VIDEOS = 20


def found(frame: int, *boxes, score: float = 0.8) -> Findings:
    """Findings of one class, or of class scores where a box has six numbers."""
    rows = np.array([box[:4] for box in boxes], dtype=float).reshape(-1, 4)
    scores = np.array([box[4:] if len(box) > 4 else (score, 0.1) for box in boxes], dtype=float).reshape(-1, 2)
    return Findings(frame=frame, time=frame / 25, boxes=rows, scores=scores, rows=np.arange(len(rows)))


def moving(frame: int, x: float = 20.0, speed: float = 2.0) -> tuple[float, ...]:
    return (x + speed * frame, 30, x + speed * frame + 40, 60)


def test_lesions_that_cross_leave_and_return_keep_their_identity():
    matched = true = told = switches = 0
    for seed in range(VIDEOS):
        video = made_video(seed)
        boxes, ids = by_frame(find_lesions(detected(video, seed), SETTINGS), len(video.boxes))
        one = identities(video.boxes, video.ids, boxes, ids)
        matched, true, told = matched + one.matched, true + one.true, told + one.told
        switches += one.switches
    assert 2 * matched / (true + told) >= 0.95
    assert switches <= 1


@pytest.mark.parametrize(("seed", "first"), [(27, 141), (63, 138), (71, 67), (79, 64), (93, 139), (117, 63)])
def test_lesions_that_cross_in_the_first_frames_are_told_apart(seed, first):
    """Videos that begin where two lesions of a class meet; their ways are known only from what follows."""
    video, frames = made_video(seed), slice(first, first + 32)
    findings = detected(video, seed)[frames]
    boxes, ids = by_frame(find_lesions(findings, SETTINGS), first + 32)
    one = identities(video.boxes[frames], video.ids[frames], boxes[frames], ids[frames])
    assert one.switches == 0 and one.idf1 > 0.9


def test_live_numbers_stay_with_their_lesion():
    switches = 0
    for seed in range(1, 12, 2):  # two lesions each
        video, linker = made_video(seed), LiveLinker(SETTINGS)
        answers = [linker.update(findings) for findings in detected(video, seed)]
        boxes = [np.array([lesion.box for lesion in frame]).reshape(-1, 4) for frame in answers]
        one = identities(video.boxes, video.ids, boxes, [np.array([x.number for x in frame]) for frame in answers])
        switches += one.switches
        assert one.idf1 > 0.85  # a lesion has no number in its first frames
    assert switches <= 1


def test_crossing_lesions_of_different_classes_are_told_apart_by_their_way():
    frames = range(60)
    video = [
        found(t, (4 * t, 30, 4 * t + 40, 60, 0.8, 0.1), (240 - 4 * t, 34, 280 - 4 * t, 64, 0.1, 0.8)) for t in frames
    ]
    first, second = find_lesions(video, SETTINGS)
    assert [first.frame_count, second.frame_count] == [60, 60]
    assert np.allclose(first.boxes[:, 0], 4 * np.arange(60), atol=1.5)
    assert (first.label, second.label) == (1, 2)


def test_brief_misses_are_filled_in_and_marked():
    video = [found(t, moving(t)) if t not in (7, 8, 15) else found(t) for t in range(24)]
    (lesion,) = find_lesions(video, SETTINGS)
    assert lesion.frames.tolist() == list(range(24))
    assert np.flatnonzero(~lesion.found).tolist() == [7, 8, 15]
    assert lesion.rows[[6, 7]].tolist() == [0, -1]
    assert np.allclose(lesion.boxes[:, 0], 20 + 2 * np.arange(24), atol=0.5)
    assert lesion.frame_count == 21 and (lesion.first_frame, lesion.last_frame) == (0, 23)


def test_an_absence_has_no_boxes_but_the_same_number():
    video = [found(t, (100, 30, 140, 60)) if not 20 <= t < 60 else found(t) for t in range(80)]
    (lesion,) = find_lesions(video, SETTINGS)
    assert lesion.frames.tolist() == [*range(20), *range(60, 80)]
    assert lesion.in_frame(40) is None
    assert lesion.in_frame(60).box.tolist() == lesion.boxes[20].tolist()
    assert lesion.in_frame(80) is None
    apart = find_lesions(video, LinkSettings(start_score=0.4, absence=10))
    assert [(one.number, one.first_frame) for one in apart] == [(1, 0), (2, 60)]


def test_what_appears_elsewhere_or_in_another_size_is_another_lesion():
    def elsewhere(t: int) -> Findings:
        return found(t, (20, 20, 60, 50) if t < 20 else (220, 150, 260, 180)) if t < 20 or t >= 30 else found(t)

    def larger(t: int) -> Findings:
        return found(t, (100, 100, 140, 130) if t < 20 else (60, 60, 180, 160)) if t < 20 or t >= 30 else found(t)

    for video in (elsewhere, larger):
        assert len(find_lesions([video(t) for t in range(50)], SETTINGS)) == 2


def test_false_alarms_are_no_lesions():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 250, (200, 2))
    alarms = [found(t, (*corner, *(corner + 30))) if t % 4 == 0 else found(t) for t, corner in enumerate(corners)]
    assert find_lesions(alarms, SETTINGS) == []


def test_low_scores_continue_a_lesion_and_never_make_one():
    weak = [found(t, moving(t), score=0.25) for t in range(20)]
    assert find_lesions(weak, SETTINGS) == []
    (lesion,) = find_lesions([*weak, found(20, moving(20), score=0.9)], SETTINGS)
    assert lesion.frame_count == 21
    assert lesion.best_frame == 20
    assert find_lesions([found(t, moving(t), score=0.1) for t in range(20)], LinkSettings(start_score=0.2)) == []


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_very_short_videos(frames):
    lesions = find_lesions([found(t, moving(t)) for t in range(frames)], SETTINGS)
    assert [lesion.frame_count for lesion in lesions] == [frames] * (frames > 0)
    assert find_lesions([found(t) for t in range(frames)], SETTINGS) == []


def test_frames_that_were_skipped_have_no_box():
    (lesion,) = find_lesions([found(t, moving(t)) for t in range(0, 20, 2)], SETTINGS)
    assert lesion.frames.tolist() == list(range(0, 20, 2))


def test_frames_have_to_come_in_order():
    with pytest.raises(ValueError, match="frame 3 comes after frame 3"):
        find_lesions([found(3, moving(3)), found(3, moving(3))], SETTINGS)


@pytest.mark.parametrize("wrong", [{"keep_score": 0.5}, {"start_score": 1.5}, {"least_findings": 0}, {"brief": -1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LinkSettings(**({"start_score": 0.4} | wrong))


@settings(max_examples=15, deadline=None)
@example(seed=217, shift=(0, 0), scale=0.25)  # two begin and end together
@given(
    seed=st.integers(0, 1000),
    shift=st.tuples(st.integers(-500, 500), st.integers(-500, 500)),
    scale=st.sampled_from([0.25, 2.0, 8.0]),
)
def test_lesions_do_not_depend_on_place_scale_and_order(seed, shift, scale):
    video = detected(made_video(seed, frames=40), seed)
    rng = np.random.default_rng(seed)
    offset, orders = np.tile(shift, 2), [rng.permutation(len(frame.boxes)) for frame in video]
    changed = [
        Findings(
            frame=frame.frame + 100,
            time=frame.time,
            boxes=(frame.boxes * scale + offset)[order],
            scores=frame.scores[order],
            rows=frame.rows[order],
        )
        for frame, order in zip(video, orders, strict=True)
    ]
    lesions, others = find_lesions(video, SETTINGS), find_lesions(changed, SETTINGS)
    assert [one.frames.tolist() for one in lesions] == [(one.frames - 100).tolist() for one in others]
    for one, other in zip(lesions, others, strict=True):
        assert np.allclose(one.boxes * scale + offset, other.boxes, atol=1e-6 * max(scale, 1))
        assert one.rows.tolist() == other.rows.tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), missed=st.sampled_from([0.0, 0.3]), false=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_finding_belongs_to_one_lesion_at_most(seed, missed, false):
    video = detected(made_video(seed, frames=40), seed, missed=missed, false=false)
    owned = set()
    for number, lesion in enumerate(find_lesions(video, SETTINGS), start=1):
        assert lesion.number == number
        assert (np.diff(lesion.frames) > 0).all()
        assert (lesion.boxes[:, 2:] > lesion.boxes[:, :2]).all() and np.isfinite(lesion.boxes).all()
        assert lesion.found[[0, -1]].all() and lesion.found[lesion.best]
        assert lesion.score == lesion.class_scores[lesion.label - 1] <= 1
        here = {(int(f), int(r)) for f, r in zip(lesion.frames, lesion.rows, strict=True) if r >= 0}
        assert len(here) == lesion.frame_count and not here & owned
        owned |= here


def test_a_live_lesion_keeps_its_number_when_it_comes_back():
    linker = LiveLinker(SETTINGS)
    video = [found(t, (100, 30, 140, 60)) if not 200 <= t < 260 else found(t) for t in range(300)]
    answers = [linker.update(findings) for findings in video]
    assert answers[0] == []  # not yet seen often enough
    assert [lesion.number for lesion in answers[1]] == [1]
    assert answers[200] == answers[230] == []
    assert answers[260] == answers[261] == []  # it might be another one than that which left
    assert [lesion.number for lesion in answers[262]] == [1]
    (last,) = answers[-1]
    assert (last.number, last.found, last.row, last.label) == (1, True, 0, 1)
    assert last.score == pytest.approx(0.8)
    fresh = LiveLinker(LinkSettings(start_score=0.4, absence=20))
    assert [lesion.number for lesion in [fresh.update(findings) for findings in video][-1]] == [2]


def test_a_live_lesion_that_is_missed_in_passing_keeps_its_number_where_none_returns_from_an_absence():
    linker = LiveLinker(LinkSettings(start_score=0.4, absence=0))
    answers = [linker.update(found(t, *[moving(t)] * (t not in (10, 11)))) for t in range(20)]
    assert [[lesion.number for lesion in answer] for answer in answers] == [[], *[[1]] * 9, [], [], *[[1]] * 8]


def test_a_live_lesion_may_need_more_findings_than_are_remembered_of_one():
    linker = LiveLinker(LinkSettings(start_score=0.4, least_findings=live.HISTORY + 5))
    answers = [linker.update(found(t, moving(t, speed=0), score=0.4)) for t in range(live.HISTORY + 6)]
    assert [len(answer) for answer in answers] == [*[0] * (live.HISTORY + 4), 1, 1]


def test_a_live_lesion_with_low_scores_waits_for_its_third_finding():
    linker = LiveLinker(SETTINGS)
    answers = [linker.update(found(t, moving(t), score=0.45)) for t in range(4)]
    assert [len(answer) for answer in answers] == [0, 0, 1, 1]


@pytest.mark.parametrize("step", [1, 3])  # of a feed whose frames come too fast, most are dropped
def test_a_live_lesion_is_told_in_frames_that_miss_it_once_it_was_missed_in_passing(step):
    linker, missed = LiveLinker(SETTINGS), {10, 20, 21}
    answers = [linker.update(found(step * t, *[moving(step * t)] * (t not in missed))) for t in range(30)]
    assert answers[10] == answers[21] == []
    (held,) = answers[20]
    assert (held.number, held.found, held.row) == (1, False, -1)
    assert np.allclose(held.box, moving(step * 20), atol=2)
    assert [lesion.number for lesion in answers[-1]] == [1]


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    start=st.tuples(*[st.floats(-100, 100)] * 2),
    speed=st.tuples(*[st.floats(-5, 5)] * 2),
)
def test_smoothing_keeps_a_straight_way_through_gaps(gaps, start, speed):
    frames = np.cumsum(gaps)

    def way(at: np.ndarray) -> np.ndarray:
        corner = np.array(start) + at[:, None] * np.array(speed)
        return np.concatenate([corner, corner + [30, 20]], axis=1)

    every, boxes = smoothed(frames, way(frames), np.ones(len(frames)))
    assert every.tolist() == list(range(frames[0], frames[-1] + 1))
    assert np.allclose(boxes, way(every), atol=1e-6)


def test_smoothing_brings_boxes_nearer_to_the_truth():
    rng, at = np.random.default_rng(3), np.arange(100)
    corner = np.stack([100 + 60 * np.sin(at / 15), 50 + 20 * np.cos(at / 20)], axis=1)
    true = np.concatenate([corner, corner + [45, 30]], axis=1)
    _, boxes = smoothed(at, true + rng.normal(0, 3, true.shape), np.ones(100))
    assert np.abs(boxes - true).mean() < 0.6 * 3 * np.sqrt(2 / np.pi)
