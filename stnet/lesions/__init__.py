"""Lesions instead of boxes: detections of a video linked into tracks, measured, and told to other programs."""

from stnet.lazy import lazy

_HOMES = {
    "Findings": "stnet.lesions.findings",
    "Lesion": "stnet.lesions.lesion",
    "LesionFinder": "stnet.lesions.tracking",
    "LesionInFrame": "stnet.lesions.lesion",
    "LinkSettings": "stnet.lesions.linking",
    "LiveLinker": "stnet.lesions.live",
    "SCORE_THRESHOLD": "stnet.choices",
    "find_lesions": "stnet.lesions.tracking",
    "findings_of": "stnet.lesions.findings",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
