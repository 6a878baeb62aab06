"""LabelMe files: JSON, one per image, also as X-AnyLabeling writes them."""

import math
from pathlib import Path, PurePosixPath

from stnet.data.annotations.entries import load_json
from stnet.data.formats import json_file
from stnet.data.formats.marks import Box, FrameMarks, ImageMarks, Mark, MarksFile
from stnet.data.shapes import around
from stnet.errors import DataError

_CORNERS = {"rectangle": "box", "polygon": "polygon", "mask": "mask", "rotation": "rotated box"}
"""Shapes whose points span the box around them, and what summaries call them."""


def read_labelme(file: Path, folder: str = "") -> MarksFile:
    """Read the marks of one image.

    Args:
        file: the JSON file.
        folder: where it lies below the folder that is converted; its image is there, too.

    Raises:
        DataError: naming the file and the shape.
    """
    return parse_labelme(load_json(file), file, folder)


def parse_labelme(document: dict, file: Path, folder: str = "") -> MarksFile:
    """Read a LabelMe file that is loaded already; see `read_labelme`."""
    written = json_file.text(document, "imagePath", str(file)).replace("\\", "/")
    name = PurePosixPath(*(part for part in PurePosixPath(written).parts if part not in ("..", "/")))
    if len(name.parts) == 1 and folder:
        name = PurePosixPath(folder) / name
    shapes = json_file.objects(document, "shapes", str(file))
    frame = FrameMarks(
        where=f"{file}: {str(name)!r:.80}",
        marks=tuple(_mark(shape, f"{file}: shapes[{position}]") for position, shape in enumerate(shapes)),
        size=json_file.size(document, "imageWidth", "imageHeight", str(file)),
    )
    image = ImageMarks(name=str(name), frame=frame)
    return MarksFile.of_image(file, image, statement="imagePath")


def _mark(shape: dict, where: str) -> Mark:
    label = json_file.text(shape, "label", where)
    points = json_file.points(shape, "points", where)
    kind = "polygon" if shape.get("shape_type") is None else json_file.text(shape, "shape_type", where)
    if shape.get("shape_type") is None and len(points) < 3:
        raise DataError(f"{where}: {len(points)} points without a shape_type, no polygon; state what it is")
    group = json_file.whole(shape, "group_id", where) if shape.get("group_id") is not None else None
    if json_file.flag(shape, "difficult", where, False):  # X-AnyLabeling writes it into VOC files, too
        return Mark(label=label, box=None, shape="difficult object", instance=group)
    if kind == "circle":
        if len(points) != 2:
            raise DataError(f"{where}: a circle of {len(points)} points, expected its centre and one on it")
        return Mark(label=label, box=_around_circle(*points), shape=kind, instance=group)
    if kind not in _CORNERS:
        return Mark(label=label, box=None, shape=kind[:40], instance=group)
    box = around(points)
    if box is None:
        raise DataError(f"{where}: a {kind} that encloses nothing; remove it")
    return Mark(label=label, box=box, shape=_CORNERS[kind], instance=group)


def _around_circle(centre: tuple[float, float], edge: tuple[float, float]) -> Box:
    radius = math.dist(centre, edge)
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius
