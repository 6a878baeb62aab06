"""STNet: breast-lesion detection in ultrasound video, and fast deformable attention.

    model = stnet.load("tiny")                   # or a checkpoint file
    for result in stnet.VideoDetector("tiny")("clip.mp4"): ...

The operators are in `stnet.kernels`. Not a medical device.
"""

from stnet.lazy import lazy

__version__ = "0.1.0"

# Imported on first use: the operators alone need neither torchvision nor a video library.
_HOMES = {
    "Detector": "stnet.model.detector",
    "ModelConfig": "stnet.model.config",
    "VideoDetector": "stnet.inference",
    "load": "stnet.model.checkpoint",
    "save": "stnet.model.checkpoint",
}

__all__ = ["__version__", *_HOMES]
__getattr__, _ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
