"""Lesions against ByteTrack and OC-SORT: the identities that a model's detections get, on unseen phantoms.

    pip install trackers trackeval
    python -m bench.studies.tracking --checkpoint tiny --videos 40 --frames 60

The model runs once; stnet, with the whole video in sight and live, and both trackers of the package `trackers` link
the same findings. Of each tracker the settings with the best IDF1 count. `trackeval` tells IDF1, identity switches
and HOTA. By the way it tells how well scores of lesions and of whole videos set malignant ones apart (AUC).
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stnet.command_line import run
from stnet.data.phantom import LESION_PATTERN, PhantomVideo, render_phantom
from stnet.environment import describe
from stnet.errors import ConfigError
from stnet.evaluation.video_level import frame_maxima, positive_share, video_scores
from stnet.evaluation.video_metrics import rank_auc
from stnet.files import write_json
from stnet.inference.detector import VideoDetector
from stnet.inference.frame_results import FrameResult
from stnet.inference.lesion_collector import frame_findings
from stnet.lesions import Findings, Lesion, LiveLinker, find_lesions
from stnet.lesions.findings import overlap
from stnet.lesions.linking import LinkSettings, link_settings

OUTPUT = Path("runs/bench/tracking.json")
UNSEEN = 4  # phantoms of data sets, the demo and the study of accuracy come from other numbers
MALIGNANT = 2
IOU = 0.5

TRIED = tuple(itertools.product((0.05, 0.1, 0.2, 0.3), (30, 250)))
"""Least overlaps, and frames that a lost lesion is remembered for; of these the compared trackers get the best."""

Linked = tuple[list[np.ndarray], list[np.ndarray]]
"""Boxes `[n, 4]` and numbers `[n]` of every frame."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A phantom, and what the model found in it."""

    truth: PhantomVideo
    results: list[FrameResult]
    findings: list[Findings]


def look(detector: VideoDetector, phantoms: Sequence[PhantomVideo], settings: LinkSettings) -> Iterator[Seen]:
    """Run the model over phantoms."""
    for truth in phantoms:
        results = list(detector(truth.frames))
        classes = len(detector.class_names)
        findings = [frame_findings(result, classes, settings.keep_score) for result in results]
        yield Seen(truth=truth, results=results, findings=findings)


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
    rows = [_sequence(video.truth, *link(video)) for video in videos]
    found = {
        name: measure.combine_sequences({str(number): measure.eval_sequence(row) for number, row in enumerate(rows)})
        for name, measure in measures.items()
    }
    return {
        "idf1": float(found["idf1"]["IDF1"]),
        "switches": int(found["switches"]["IDSW"]),
        "hota": float(np.mean(found["hota"]["HOTA"])),
    }


def _sequence(truth: PhantomVideo, boxes: list[np.ndarray], numbers: list[np.ndarray]) -> dict[str, Any]:
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


def malignancy(videos: Sequence[Seen], settings: LinkSettings) -> dict[str, float | None]:
    """Return how well scores tell malignant from benign: of videos by both rules, and of lesions.

    A lesion that was not found, or a video in which none was, speaks for neither class.
    """
    by_frames, by_lesions, positive = [], [], []
    lesion_scores, of_their_video, lesion_positive = [], [], []
    for video in videos:
        lesions = find_lesions(video.findings, settings)
        instances, classes = (np.concatenate(rows).tolist() for rows in (video.truth.instances, video.truth.labels))
        labels = dict(zip(instances, classes, strict=True))
        if not labels:
            continue
        maxima = [frame_maxima(r.detections.scores.numpy(), r.detections.labels.numpy(), 2) for r in video.results]
        by_frames.append(positive_share(video_scores(np.stack(maxima)), MALIGNANT - 1))
        by_lesions.append(max((_share(lesion) for lesion in lesions), default=0.5))
        positive.append(MALIGNANT in labels.values())
        for instance, label in labels.items():
            lesion_scores.append(_share(_found_of(instance, video.truth, lesions)))
            of_their_video.append(by_frames[-1])
            lesion_positive.append(label == MALIGNANT)
    positive, lesion_positive = np.array(positive), np.array(lesion_positive)
    return {
        "videos, mean of strongest frames": rank_auc(np.array(by_frames), positive),
        "videos, most suspicious lesion": rank_auc(np.array(by_lesions), positive),
        "lesions, score of their video": rank_auc(np.array(of_their_video), lesion_positive),
        "lesions, own score": rank_auc(np.array(lesion_scores), lesion_positive),
    }


def _share(lesion: Lesion | None) -> float:
    return 0.5 if lesion is None else positive_share(lesion.class_scores, MALIGNANT - 1)


def _found_of(instance: int, truth: PhantomVideo, lesions: Sequence[Lesion]) -> Lesion | None:
    """Return the lesion that covers a true one in most frames."""
    counts = []
    for lesion in lesions:
        covered = 0
        for frame, box in zip(lesion.frames.tolist(), lesion.boxes, strict=True):
            own = truth.boxes[frame][truth.instances[frame] == instance]
            covered += len(own) > 0 and overlap(own, box[None])[0, 0] >= IOU
        counts.append(covered)
    return lesions[int(np.argmax(counts))] if counts and max(counts) > 0 else None


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="tiny", help="default: %(default)s")
    parser.add_argument("--videos", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=60, help="of each (default: %(default)s)")
    parser.add_argument("--score-threshold", type=float, help="default: the model's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    options = parser.parse_args(arguments)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    try:
        import trackers  # noqa: F401  looked for before the model runs
        from trackeval import metrics  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install trackers trackeval") from error
    detector = VideoDetector(options.checkpoint, device=options.device)
    threshold = detector.score_threshold if options.score_threshold is None else options.score_threshold
    settings = link_settings(threshold)
    phantoms = [
        render_phantom(
            (options.seed, UNSEEN, number), frames=options.frames, lesions=LESION_PATTERN[number % len(LESION_PATTERN)]
        )
        for number in range(options.videos)
    ]
    videos = list(look(detector, phantoms, settings))
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
    auc = malignancy(videos, settings)
    for name, value in auc.items():
        print(f"AUC of {name}: {'none' if value is None else format(value, '.3f')}")
    report = {
        "machine": describe(options.device),
        "checkpoint": options.checkpoint,
        "videos": options.videos,
        "frames": options.frames,
        "score_threshold": threshold,
        "results": results,
        "auc": auc,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)


if __name__ == "__main__":
    sys.exit(main())
