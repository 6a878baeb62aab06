"""JSON of other tools that is not read, told by its keys, so that messages can name it for what it is."""

from collections.abc import Callable
from typing import Any

_READ = "export COCO, CVAT, Label Studio, LabelMe, Pascal VOC or YOLO instead"


def foreign_format(document: Any) -> str | None:
    """Return what a JSON document is that is not read, with the remedy; None where that is not known.

    A document with `images` is COCO, whatever else it holds.
    """
    if isinstance(document, dict) and "images" in document:
        return None
    sample = document if isinstance(document, dict) else _first(document)
    for name, is_it, remedy in _KNOWN:
        if sample is not None and is_it(document, sample):
            return f"is {name}, which is not read; {remedy}"
    return None


def _first(document: Any) -> dict | None:
    """Return the first object of a list of nothing but objects."""
    if not isinstance(document, list) or not document or not all(isinstance(item, dict) for item in document):
        return None
    return document[0]


def _has(*keys: str) -> Callable[[Any, dict], bool]:
    return lambda document, sample: all(key in sample for key in keys)


def _is_coco_results(document: Any, sample: dict) -> bool:
    is_result = "bbox" in sample or "segmentation" in sample or "keypoints" in sample
    return isinstance(document, list) and "image_id" in sample and is_result and "category_id" in sample


def _is_via(document: Any, sample: dict) -> bool:
    if {"_via_img_metadata", "_via_settings"} & sample.keys() or {"project", "file", "metadata"} <= sample.keys():
        return True
    values = list(sample.values()) if isinstance(document, dict) else []
    return bool(values) and all(isinstance(value, dict) and {"filename", "regions"} <= value.keys() for value in values)


def _is_supervisely(document: Any, sample: dict) -> bool:
    of_image = "objects" in sample and isinstance(sample.get("size"), dict)
    return of_image or ("classTitle" in sample and "points" in sample)


def _is_geojson(document: Any, sample: dict) -> bool:
    return sample.get("type") in ("FeatureCollection", "Feature", "GeometryCollection")


_KNOWN: tuple[tuple[str, Callable[[Any, dict], bool], str], ...] = (
    (
        "a list of COCO results (detections without images and classes)",
        _is_coco_results,
        "give the annotation file that they belong to, or put them into its `annotations`",
    ),
    ("GeoJSON", _is_geojson, _READ),
    ("a file of the VGG Image Annotator (VIA)", _is_via, "export it as COCO there"),
    ("a file of Supervisely", _is_supervisely, "export it as COCO there"),
    ("a file of VoTT", _has("asset", "regions"), _READ),
    ("a file of CreateML", _has("image", "annotations"), _READ),
    ("an export of Labelbox", _has("data_row", "projects"), _READ),
    ("OpenLABEL", _has("openlabel"), _READ),
)
