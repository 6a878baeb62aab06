"""Lesions instead of boxes: detections of a video linked into tracks, measured, and told to other programs."""

from stnet.lesions.findings import Findings, findings_of
from stnet.lesions.lesion import Lesion, LesionInFrame
from stnet.lesions.linking import SCORE_THRESHOLD, LinkSettings
from stnet.lesions.live import LiveLinker
from stnet.lesions.tracking import LesionFinder, find_lesions

__all__ = [
    "SCORE_THRESHOLD",
    "Findings",
    "Lesion",
    "LesionFinder",
    "LesionInFrame",
    "LinkSettings",
    "LiveLinker",
    "find_lesions",
    "findings_of",
]
