"""The names of the formats that results are written in; what writes them is in `formats.py`."""

FORMAT_NAMES = ("json", "csv", "lesions", "video", "picture", "report")

EXPORT_NAMES = ("coco-vid", "cvat", "label-studio", "yolo")
"""For annotation tools."""

EXPLAINED, DICOM = "explained", "dicom"
"""What `--explain` and `--dicom-results` write."""

DEFAULT_FORMATS = ("json", "csv", "lesions", "video")
STILL_FORMATS = ("json", "csv", "lesions", "picture")
"""What is written by default, of videos and of stills."""

DRAWN = ("video", "picture")
"""What `--no-video` leaves out."""
