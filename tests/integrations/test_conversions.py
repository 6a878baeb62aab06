"""Results as tables of pandas and detections of supervision."""

import numpy as np
import pytest

from stnet.inference import VideoDetector
from stnet.inference.video_results import VideoResult
from tests.inference.conftest import SMALL, noise, scrambled

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def video() -> VideoResult:
    (video,) = VideoDetector(scrambled(SMALL), device="cpu").videos(
        np.repeat(noise(1), 6, axis=0), score_threshold=0.05
    )
    return video


def test_detections_and_lesions_as_tables(video, tmp_path):
    pandas = pytest.importorskip("pandas")
    table, lesions = video.to_pandas(), video.lesions_to_pandas()
    assert len(table) == sum(len(frame.visible.scores) for frame in video.frames) and len(lesions) == len(video.lesions)
    assert set(table["lesion"].dropna()) == set(lesions["lesion"]) and table["width_mm"].isna().all()
    for row, lesion in zip(lesions.itertuples(), video.lesions, strict=True):
        at_best = table[(table["frame"] == row.best_frame) & (table["lesion"] == row.lesion)]
        assert at_best["score"].max() == pytest.approx(lesion.scores[lesion.best].max(), abs=1e-6)
        assert (row.frames, row.score) == (lesion.frame_count, lesion.score)
    lesions.to_csv(tmp_path / "a.csv", index=False)
    assert pandas.read_csv(tmp_path / "a.csv").columns.tolist() == lesions.columns.tolist()


def test_tables_of_a_video_in_which_nothing_is_found_have_the_same_types(video):
    pytest.importorskip("pandas")
    nothing = VideoResult(name="a", frames=(), lesions=(), class_names={})
    assert (nothing.to_pandas().dtypes == video.to_pandas().dtypes).all()
    assert (nothing.lesions_to_pandas().dtypes == video.lesions_to_pandas().dtypes).all()


def test_detections_of_supervision(video):
    pytest.importorskip("supervision")
    frame = video.frames[2]
    found = frame.to_supervision(video.class_names)
    assert np.array_equal(found.xyxy, frame.visible.boxes.numpy()) and (np.diff(found.confidence) <= 0).all()
    assert [video.class_names[label] for label in found.class_id] == found.data["class_name"].tolist()
    numbers = {seen.number: seen for seen in frame.lesions if seen.found}
    assert set(found.tracker_id) - {-1} == set(numbers)
    for box, number in zip(found.xyxy, found.tracker_id, strict=True):
        if number in numbers:
            assert np.abs(box - np.clip(numbers[number].box, 0, [48, 40, 48, 40])).max() < 3
    assert len(found[found.tracker_id == -1]) + len(found[found.tracker_id > 0]) == len(found)
    (plain,) = list(VideoDetector(scrambled(SMALL), device="cpu")(noise(1)))
    assert plain.to_supervision().tracker_id is None
