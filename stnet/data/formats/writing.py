"""The formats that detections and lesions are written in, for annotation tools."""

from collections.abc import Callable

from stnet.data.formats.coco import write_coco
from stnet.data.formats.cvat import write_cvat
from stnet.data.formats.label_studio import write_label_studio
from stnet.data.formats.marks import VideoBoxes
from stnet.data.formats.yolo import write_yolo

EXPORTS: dict[str, Callable[[VideoBoxes], dict[str, str]]] = {
    "coco-vid": write_coco,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "yolo": write_yolo,
}
"""By name of the format: from the boxes of a video to texts by relative path, which `stnet.data.convert` reads back."""
