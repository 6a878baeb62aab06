"""STNet: breast-lesion detection in ultrasound video, and fast deformable attention.

    model = stnet.load("lite0")                  # or a checkpoint file
    for result in stnet.VideoDetector()("clip.mp4"): ...

The operators are in `stnet.kernels`. Not a medical device.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Detector", "ModelConfig", "VideoDetector", "load", "save"]

# Imported on first use: the operators alone need neither torchvision nor a video library.
_HOMES = {
    "Detector": "stnet.model.detector",
    "ModelConfig": "stnet.model.config",
    "VideoDetector": "stnet.inference",
    "load": "stnet.model.checkpoint",
    "save": "stnet.model.checkpoint",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'stnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
