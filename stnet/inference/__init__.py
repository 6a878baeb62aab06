"""Video in, lesions out: `VideoDetector`, its results, and how they are written and drawn."""

from stnet.execution.engine import EngineOptions
from stnet.inference.detector import VideoDetector
from stnet.inference.draw import draw_detections
from stnet.inference.frame_results import FrameResult
from stnet.inference.video_results import VideoResult

__all__ = ["EngineOptions", "FrameResult", "VideoDetector", "VideoResult", "draw_detections"]
