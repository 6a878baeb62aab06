"""What options offer, and their defaults: known before anything that computes is imported."""

from fractions import Fraction

DEFAULT_MODEL = "lite0"
"""The shipped model that is used where none is named."""

OPERATING_POINTS = ("sensitive", "balanced", "specific")
"""Score thresholds that validation data chose for a model, from finding most to fewest false alarms."""

DEFAULT_POINT = "balanced"
"""The operating point used where none is named."""

SCORE_THRESHOLD = 0.4
"""From this score on something counts as found where a model has no operating points."""

DTYPE_NAMES = ("float32", "tf32", "float16", "bfloat16")
"""Precisions of inference."""

DEFAULT_FPS = Fraction(25)
"""Frame rate assumed where the input states none (images, arrays, broken headers), in frames per second."""

FEED_PATIENCE = 10.0
"""Seconds that a feed which is not there is waited for where nothing else is said."""

LOOPBACK = "127.0.0.1"
"""Where the page of the live mode is served, for this machine alone."""

PROTOCOLS = ("all", "published")
"""Which frames an evaluation scores: every annotated one, or the centre frames of STNet's own script."""

CLASS_LOSSES = ("focal", "quality")

DEFENCE_GROUPS = ("marks", "pasting", "free", "machines", "screens")
"""Groups of defences against what stills tell falsely, compared with one another by these names."""

ANNOTATION_FORMATS = ("coco", "cvat", "label-studio", "labelme", "voc", "yolo")
"""Annotations of other tools that are read."""

PROGRAM_FILES = {"safetensors": ("model.safetensors", "README.md"), "torch": ("model.pt2",), "onnx": ("model.onnx",)}
"""What a model is exported to, and the files of each format."""

KERNELS = ("stda_forward", "msda_forward", "stda_backward", "msda_backward")
"""Kernels with a launch table."""

TUNED_DTYPES = ("float16", "bfloat16", "float32")
"""Element types that launch tables tell apart."""
