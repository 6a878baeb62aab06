"""Video in, lesions out: `VideoDetector` and `LiveDetector`, their results, and how they are written and drawn."""

from stnet.lazy import lazy

_HOMES = {
    "EngineOptions": "stnet.execution.engine",
    "FrameResult": "stnet.inference.frame_results",
    "LiveDetector": "stnet.inference.live",
    "VideoDetector": "stnet.inference.detector",
    "VideoResult": "stnet.inference.video_results",
    "draw_detections": "stnet.inference.draw",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
