"""Lesions instead of boxes: detections of a video linked into tracks, measured, and told to other programs."""

from stnet.lesions.findings import Findings, findings_of
from stnet.lesions.lesion import Lesion
from stnet.lesions.linking import LinkSettings
from stnet.lesions.live import LiveLesion, LiveLinker
from stnet.lesions.tracking import find_lesions

__all__ = ["Findings", "Lesion", "LinkSettings", "LiveLesion", "LiveLinker", "find_lesions", "findings_of"]
