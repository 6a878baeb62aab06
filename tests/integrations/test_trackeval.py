"""Lesion tracks by the identity metrics of `trackeval`."""

import numpy as np
import pytest

from stnet.lesions import LinkSettings, find_lesions
from stnet.lesions.findings import overlap
from tests.lesions.identity import by_frame, identities
from tests.lesions.trajectories import detected, made_video

pytestmark = pytest.mark.integration


def _sequence(video, boxes, ids) -> dict:
    lesions = {name: row for row, name in enumerate(sorted({int(i) for frame in ids for i in frame}))}
    return {
        "num_timesteps": len(boxes),
        "gt_ids": list(video.ids),
        "tracker_ids": [np.array([lesions[int(i)] for i in frame], dtype=int) for frame in ids],
        "similarity_scores": [overlap(true, told) for true, told in zip(video.boxes, boxes, strict=True)],
        "num_gt_dets": sum(map(len, video.ids)),
        "num_tracker_dets": sum(map(len, ids)),
        "num_gt_ids": len(video.labels),
        "num_tracker_ids": len(lesions),
    }


def test_identities_of_made_videos():
    metrics = pytest.importorskip("trackeval.metrics")
    quiet = {"PRINT_CONFIG": False}
    identity, clear, hota = metrics.Identity(quiet), metrics.CLEAR(quiet), metrics.HOTA()
    by_video: dict[str, dict] = {"identity": {}, "clear": {}, "hota": {}}
    for seed in range(20):
        video = made_video(seed)
        boxes, ids = by_frame(find_lesions(detected(video, seed), LinkSettings(start_score=0.4)), len(video.boxes))
        data, own = _sequence(video, boxes, ids), identities(video.boxes, video.ids, boxes, ids)
        for name, metric in (("identity", identity), ("clear", clear), ("hota", hota)):
            by_video[name][str(seed)] = metric.eval_sequence(data)
        assert by_video["identity"][str(seed)]["IDF1"] == pytest.approx(own.idf1)
        assert by_video["clear"][str(seed)]["IDSW"] == own.switches
    assert identity.combine_sequences(by_video["identity"])["IDF1"] >= 0.95
    assert clear.combine_sequences(by_video["clear"])["IDSW"] <= 1
    assert hota.combine_sequences(by_video["hota"])["HOTA"].mean() >= 0.75
