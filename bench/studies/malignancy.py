"""How well scores tell malignant from benign: of whole videos and of lesions, on phantoms and on stills.

    python -m bench.studies.malignancy --stills busbra/val.json busi/val.json breast/val.json

By frames (`stnet.evaluation.video_level`), a video's score for a class is the mean of its strongest tenth of frame
maxima, and a lesion has the score of its video. By lesions, a lesion has the mean score of its own track; a video that
of its most suspicious lesion, or of the one with the highest score. A still is held as a video of three equal frames.
What was not found has no track: its score by frames stands for it under every rule, so that rules are compared on the
same lesions.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.studies.phantoms import CLASSES, check_classes, study_parser, unseen_phantoms, write_study
from bench.studies.seen import Seen, look
from stnet.command_line import run
from stnet.data.frames import FrameReader
from stnet.data.still_sets.stills import Stills
from stnet.devices import resolve_device
from stnet.evaluation.scored_stills import read_still_files
from stnet.evaluation.video_level import frame_maxima, positive_share, video_scores
from stnet.evaluation.video_metrics import rank_auc
from stnet.inference.detector import VideoDetector
from stnet.lesions import Lesion, find_lesions
from stnet.lesions.findings import overlap
from stnet.lesions.linking import LinkSettings, link_settings

OUTPUT = Path("runs/bench/malignancy.json")
SOURCE = 5
"""Of the phantoms, see `unseen_phantoms`."""

MALIGNANT = 2
HELD = 3
"""Frames of a still that is held: as many as a lesion needs findings."""

IOU = 0.5


def held_stills(detector: VideoDetector, stills: Stills, settings: LinkSettings) -> Iterator[Seen]:
    """Run the model over stills, each held as a constant video."""
    reader = FrameReader(0)
    for video in stills.index.videos:
        (still,) = video.frames
        frames = np.repeat(reader.read(still)[None], HELD, axis=0)
        marked = (still.boxes, still.labels, np.arange(len(still.boxes)))
        yield look(detector, settings, frames, *([column] * HELD for column in marked))


def malignancy(videos: Sequence[Seen], settings: LinkSettings) -> dict[str, dict[str, float | int | None]]:
    """Return areas under the ROC curve, malignant against benign, by every rule.

    Args:
        videos: those without a lesion are left out.
        settings: of the lesions.

    Returns:
        For "videos" and "lesions": how many there are, how many of them are malignant, in how many something was found
        (of lesions: they themselves), and the areas by the name of the rule.
    """
    of_videos, of_lesions = _Column(), _Column()
    for video in videos:
        if not any(map(len, video.labels)):
            continue
        lesions = find_lesions(video.findings, settings)
        by_frames = _frames_share(video)
        shares = [_share(lesion) for lesion in lesions]
        best = _share(max(lesions, key=lambda lesion: lesion.score)) if lesions else by_frames
        rules = {
            "by frames": by_frames,
            "most suspicious lesion": max(shares, default=by_frames),
            "lesion with the highest score": best,
        }
        of_videos.add(rules, MALIGNANT in np.concatenate(video.labels), bool(lesions))
        for instance, label in _true_lesions(video).items():
            own = _found_of(instance, video, lesions)
            rules = {"score of their video": by_frames, "own track": by_frames if own is None else _share(own)}
            of_lesions.add(rules, label == MALIGNANT, own is not None)
    return {"videos": of_videos.areas(), "lesions": of_lesions.areas()}


class _Column:
    """Scores of videos or of lesions by rule, and what they are."""

    def __init__(self) -> None:
        self._scores: dict[str, list[float]] = {}
        self._malignant: list[bool] = []
        self._found = 0

    def add(self, scores: dict[str, float], malignant: bool, found: bool) -> None:
        for rule, score in scores.items():
            self._scores.setdefault(rule, []).append(score)
        self._malignant.append(bool(malignant))
        self._found += found

    def areas(self) -> dict[str, float | int | None]:
        malignant = np.array(self._malignant, dtype=bool)
        counts = {"count": len(malignant), "malignant": int(malignant.sum()), "found": self._found}
        return counts | {rule: rank_auc(np.array(scores), malignant) for rule, scores in self._scores.items()}


def _frames_share(video: Seen) -> float:
    found = [result.detections for result in video.results]
    maxima = [frame_maxima(one.scores.numpy(), one.labels.numpy(), len(CLASSES)) for one in found]
    return positive_share(video_scores(np.stack(maxima)), MALIGNANT - 1)


def _share(lesion: Lesion) -> float:
    return positive_share(lesion.class_scores, MALIGNANT - 1)


def _true_lesions(video: Seen) -> dict[int, int]:
    """Return the class of every lesion of a video."""
    instances, labels = (np.concatenate(rows).tolist() for rows in (video.instances, video.labels))
    return dict(zip(instances, labels, strict=True))


def _found_of(instance: int, video: Seen, lesions: Sequence[Lesion]) -> Lesion | None:
    """Return the lesion that covers a true one in most frames."""
    counts = []
    for lesion in lesions:
        covered = 0
        for frame, box in zip(lesion.frames.tolist(), lesion.boxes, strict=True):
            own = video.boxes[frame][video.instances[frame] == instance]
            covered += len(own) > 0 and overlap(own, box[None])[0, 0] >= IOU
        counts.append(covered)
    return lesions[int(np.argmax(counts))] if counts and max(counts) > 0 else None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = study_parser("bench.studies.malignancy", __doc__, videos=40, output=OUTPUT)
    parser.add_argument("--stills", type=Path, nargs="+", default=[], metavar="FILE", help="COCO files of stills")
    options = parser.parse_args(arguments)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    detector = VideoDetector(options.checkpoint, device=str(resolve_device(options.device)))
    check_classes(options.checkpoint, detector.class_names)
    settings = link_settings(detector.score_threshold)
    sets = read_still_files(options.stills, CLASSES) if options.stills else {}
    results = {}
    phantoms = unseen_phantoms(options, SOURCE)
    seen = [look(detector, settings, one.frames, one.boxes, one.labels, one.instances) for one in phantoms]
    results["phantoms"] = malignancy(seen, settings)
    stills = {name: list(held_stills(detector, found, settings)) for name, found in sets.items()}
    results |= {name: malignancy(found, settings) for name, found in stills.items()}
    if len(stills) > 1:
        results["all stills"] = malignancy([video for found in stills.values() for video in found], settings)
    for name, parts in results.items():
        for what, found in parts.items():
            texts = [f"{key} {_text(value)}" for key, value in found.items()]
            print(f"{name}, {what}: {', '.join(texts)}", flush=True)
    write_study(options, {"score_threshold": detector.score_threshold, "results": results})


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
