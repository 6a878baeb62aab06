"""STNet: breast-lesion detection in ultrasound video, and fast deformable attention.

    model = stnet.load("lite0")                  # or a checkpoint file
    for result in stnet.VideoDetector()("clip.mp4"): ...
    run = stnet.train("tiny", data="my_set", output="runs/a")
    report = stnet.evaluate(run.weights, data="my_set")

The operators are in `stnet.kernels`. Not a medical device.
"""

from stnet.lazy import lazy

__version__ = "0.1.0"

# Imported on first use: the operators alone need neither torchvision nor a video library.
_HOMES = {
    "Detector": "stnet.model.detector",
    "ModelConfig": "stnet.model.config",
    "VideoDetector": "stnet.inference",
    "Callback": "stnet.training.callbacks",
    "TensorBoard": "stnet.training.callbacks",
    "TrainConfig": "stnet.training.config",
    "evaluate": "stnet.training.runs",
    "load": "stnet.model.checkpoint",
    "save": "stnet.model.checkpoint",
    "train": "stnet.training.runs",
}

__all__ = ["__version__", *_HOMES]
__getattr__, _ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
