"""What a model found in videos whose lesions are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stnet.inference.detector import VideoDetector
from stnet.inference.frame_results import FrameResult
from stnet.inference.lesion_collector import frame_findings
from stnet.lesions import Findings
from stnet.lesions.linking import LinkSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A video, and what the model found in it.

    Attributes:
        boxes, labels, instances: true ones of every frame, `[n, 4]` in pixels, `[n]` from 1, `[n]` which lesion it is.
        results: of every frame.
        findings: of every frame, that lesions are made of.
    """

    boxes: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    instances: Sequence[np.ndarray]
    results: Sequence[FrameResult]
    findings: Sequence[Findings]


def look(
    detector: VideoDetector,
    settings: LinkSettings,
    frames: np.ndarray,
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    instances: Sequence[np.ndarray],
) -> Seen:
    """Run the model over a video, uint8 `[F, H, W, 3]`; see `Seen` for its lesions."""
    results = list(detector(frames))
    classes = len(detector.class_names)
    findings = [frame_findings(result, classes, settings.keep_score) for result in results]
    return Seen(boxes=boxes, labels=labels, instances=instances, results=results, findings=findings)
