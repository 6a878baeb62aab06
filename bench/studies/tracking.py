"""Lesions against ByteTrack and OC-SORT: the identities that a model's detections get, on unseen phantoms.

    pip install trackers trackeval
    python -m bench.studies.tracking --videos 40 --frames 60

The model runs once; stnet, with the whole video in sight and live, and both trackers of the package `trackers` link
the same findings. Of each tracker the settings with the best IDF1 count. `trackeval` tells IDF1, identity switches
and HOTA.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.studies.phantoms import study_parser, unseen_phantoms, write_study
from bench.studies.seen import Seen, look
from stnet.command_line import run
from stnet.devices import resolve_device
from stnet.errors import ConfigError
from stnet.inference.detector import VideoDetector
from stnet.lesions import LiveLinker, find_lesions
from stnet.lesions.findings import overlap
from stnet.lesions.linking import LinkSettings, link_settings

OUTPUT = Path("runs/bench/tracking.json")
SOURCE = 4
"""Of the phantoms, see `unseen_phantoms`."""

TRIED = tuple(itertools.product((0.05, 0.1, 0.2, 0.3), (30, 250)))
"""Least overlaps, and frames that a lost lesion is remembered for; of these the compared trackers get the best."""

Linked = tuple[list[np.ndarray], list[np.ndarray]]
"""Boxes `[n, 4]` and numbers `[n]` of every frame."""


def offline(video: Seen, settings: LinkSettings) -> Linked:
    """Link with the whole video in sight."""
    boxes: list[list[np.ndarray]] = [[] for _ in video.findings]
    numbers: list[list[int]] = [[] for _ in video.findings]
    for lesion in find_lesions(video.findings, settings):
        for frame, box in zip(lesion.frames.tolist(), lesion.boxes, strict=True):
            boxes[frame].append(box)
            numbers[frame].append(lesion.number)
    return _arrays(boxes, numbers)


def live(video: Seen, settings: LinkSettings) -> Linked:
    """Link by the past alone."""
    linker = LiveLinker(settings)
    answers = [linker.update(findings) for findings in video.findings]
    return _arrays([[one.box for one in row] for row in answers], [[one.number for one in row] for row in answers])


def byte_track(video: Seen, settings: LinkSettings, least_iou: float, buffer: int) -> Linked:
    """Link by ByteTrack (Zhang et al., ECCV 2022)."""
    from trackers import ByteTrackTracker

    tracker = ByteTrackTracker(
        lost_track_buffer=buffer,
        track_activation_threshold=settings.start_score,
        high_conf_det_threshold=settings.start_score,
        minimum_iou_threshold=least_iou,
    )
    return _tracked(tracker, video)


def oc_sort(video: Seen, settings: LinkSettings, least_iou: float, buffer: int) -> Linked:
    """Link by OC-SORT (Cao et al., CVPR 2023)."""
    from trackers import OCSORTTracker

    tracker = OCSORTTracker(
        lost_track_buffer=buffer, high_conf_det_threshold=settings.start_score, minimum_iou_threshold=least_iou
    )
    return _tracked(tracker, video)


def _tracked(tracker: Any, video: Seen) -> Linked:
    from supervision import Detections

    boxes, numbers = [], []
    for findings in video.findings:
        best = findings.scores.max(1, initial=0.0)
        given = Detections(xyxy=findings.boxes, confidence=best, class_id=np.zeros(len(best), dtype=int))
        told = tracker.update(given)
        known = np.ones(0, dtype=bool) if told.tracker_id is None else told.tracker_id >= 0
        boxes.append(list(told.xyxy[known]))
        numbers.append([] if told.tracker_id is None else told.tracker_id[known].tolist())
    return _arrays(boxes, numbers)


def _arrays(boxes: list[list[np.ndarray]], numbers: list[list[int]]) -> Linked:
    return [np.array(rows).reshape(-1, 4) for rows in boxes], [np.array(row, dtype=int) for row in numbers]


def identity(videos: Sequence[Seen], link: Callable[[Seen], Linked]) -> dict[str, float]:
    """Return IDF1, identity switches and HOTA (mean over its thresholds) of all videos together."""
    from trackeval import metrics

    quiet = {"PRINT_CONFIG": False}
    measures = {"idf1": metrics.Identity(quiet), "switches": metrics.CLEAR(quiet), "hota": metrics.HOTA()}
    rows = [_sequence(video, *link(video)) for video in videos]
    found = {
        name: measure.combine_sequences({str(number): measure.eval_sequence(row) for number, row in enumerate(rows)})
        for name, measure in measures.items()
    }
    return {
        "idf1": float(found["idf1"]["IDF1"]),
        "switches": int(found["switches"]["IDSW"]),
        "hota": float(np.mean(found["hota"]["HOTA"])),
    }


def _sequence(truth: Seen, boxes: list[np.ndarray], numbers: list[np.ndarray]) -> dict[str, Any]:
    """Return a video as `trackeval` takes it: identities counted from 0."""
    true, told = (
        {name: row for row, name in enumerate(sorted(set(np.concatenate(ids).tolist())))}
        for ids in (truth.instances, numbers)
    )
    return {
        "num_timesteps": len(boxes),
        "gt_ids": [np.array([true[int(i)] for i in frame], dtype=int) for frame in truth.instances],
        "tracker_ids": [np.array([told[int(i)] for i in frame], dtype=int) for frame in numbers],
        "similarity_scores": [overlap(b, other) for b, other in zip(truth.boxes, boxes, strict=True)],
        "num_gt_dets": sum(map(len, truth.instances)),
        "num_tracker_dets": sum(map(len, numbers)),
        "num_gt_ids": len(true),
        "num_tracker_ids": len(told),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = study_parser("bench.studies.tracking", __doc__, videos=40, output=OUTPUT)
    parser.set_defaults(frames=60)
    parser.add_argument("--score-threshold", type=float, help="default: the model's own")
    options = parser.parse_args(arguments)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    try:
        import trackers  # noqa: F401  looked for before the model runs
        from trackeval import metrics  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install trackers trackeval") from error
    detector = VideoDetector(options.checkpoint, device=str(resolve_device(options.device)))
    threshold = detector.score_threshold if options.score_threshold is None else options.score_threshold
    settings = link_settings(threshold)
    videos = [
        look(detector, settings, one.frames, one.boxes, one.labels, one.instances)
        for one in unseen_phantoms(options, SOURCE)
    ]
    results: dict[str, dict[str, Any]] = {}
    for name, own in (("stnet", offline), ("stnet, live", live)):
        results[name] = identity(videos, lambda video, link=own: link(video, settings))
    for name, other in (("ByteTrack", byte_track), ("OC-SORT", oc_sort)):
        tried = [
            identity(videos, lambda video, link=other, chosen=chosen: link(video, settings, *chosen))
            | {"least_iou": chosen[0], "buffer": chosen[1]}
            for chosen in TRIED
        ]
        results[name] = max(tried, key=lambda found: found["idf1"])
    for name, found in results.items():
        print(f"{name:12} IDF1 {found['idf1']:.3f}, {found['switches']} switches, HOTA {found['hota']:.3f}", flush=True)
    write_study(options, {"score_threshold": threshold, "results": results})


if __name__ == "__main__":
    sys.exit(main())
