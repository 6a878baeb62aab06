"""A data set in numbers and in one picture."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stnet.console import printable
from stnet.data.annotations.box_repair import repair_box
from stnet.data.annotations.entries import Annotations
from stnet.data.quality.findings import Split
from stnet.figures import write_png
from stnet.files import replacing

BINS = 10
GRID = 8


def fingerprint(split: Split) -> dict:
    """Return counts and histograms of what the repairs leave of a split, as plain JSON types.

    Box sizes are the square root of the area relative to that of the image; positions count box centres in an
    8 x 8 grid, rows from the top.
    """
    annotations = split.repaired
    boxes = annotations.boxes_of_images()
    lengths = [len(images) for images in annotations.images_of_videos().values()]
    annotated = [image for image in annotations.images if image.annotated]
    corners, ratios, names = _boxes(annotations)
    sizes = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    centres = np.clip((corners[:, :2] + corners[:, 2:]) / 2, 0, 1 - 1e-6)
    positions = np.zeros((GRID, GRID), dtype=int)
    np.add.at(positions, tuple((centres[:, ::-1] * GRID).astype(int).T), 1)
    return {
        "file": split.file.name,
        "sha256": hashlib.sha256(split.file.read_bytes()).hexdigest(),
        "videos": len(annotations.videos),
        "frames": len(annotations.images),
        "frames_annotated": len(annotated),
        "frames_without_lesion": sum(not boxes[image.id] for image in annotated),
        "boxes": len(corners),
        "boxes_per_class": dict(sorted(Counter(names).items())),
        "boxes_per_frame": _counts(len(boxes[image.id]) for image in annotated),
        "video_lengths": _counts(lengths),
        "frame_sizes": _counts(f"{image.width}x{image.height}" for image in annotations.images),
        "box_size_histogram": np.histogram(sizes, BINS, (0, 1))[0].tolist(),
        "box_aspects": _aspects(ratios),
        "box_positions": positions.tolist(),
    }


def draw_fingerprint(prints: dict[str, dict], file: Path) -> None:
    """Draw the fingerprints of the splits (name -> fingerprint) into one PNG."""
    figure = Figure(figsize=(13, 3.1 * len(prints)), layout="constrained")
    rows = figure.subplots(len(prints), 5, squeeze=False)
    for axes, (name, facts) in zip(rows, prints.items(), strict=True):
        title = f"{name}: {facts['videos']} videos, {facts['frames']} frames"
        _bars(axes[0], facts["boxes_per_class"], f"{title}\nboxes per class")
        _bars(axes[1], facts["boxes_per_frame"], "boxes per annotated frame")
        lengths = np.repeat([int(k) for k in facts["video_lengths"]], list(facts["video_lengths"].values()))
        axes[2].hist(lengths, bins=20)
        axes[2].set_title("frames per video", fontsize=9)
        edges = np.linspace(0, 1, BINS + 1)
        axes[3].bar(edges[:-1], facts["box_size_histogram"], width=1 / BINS, align="edge", edgecolor="white")
        axes[3].set_title("box size (root of area, image = 1)", fontsize=9)
        axes[4].imshow(facts["box_positions"], cmap="magma", extent=(0, 1, 1, 0))
        axes[4].set_title("box centres", fontsize=9)
        for axis in axes:
            axis.tick_params(labelsize=8)
    with replacing(file) as temporary:
        write_png(figure, temporary)


def _bars(axis, counts: dict, title: str) -> None:
    axis.bar(range(len(counts)), list(counts.values()))
    axis.set_xticks(range(len(counts)), list(map(printable, counts)))  # set once more at the drawing
    axis.set_title(title, fontsize=9)


def _counts(values) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _boxes(annotations: Annotations) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return boxes [n, 4] relative to their images, height over width in pixels [n], and the names of the classes."""
    images = {image.id: image for image in annotations.images}
    corners, ratios, names = [], [], []
    for box in annotations.boxes:
        image = images[box.image_id]
        kept, _ = repair_box(box.bbox, image.height, image.width)
        if kept is None:  # in files that nothing can be done about
            continue
        corners.append(np.array(kept) / [image.width, image.height, image.width, image.height])
        ratios.append((kept[3] - kept[1]) / (kept[2] - kept[0]))
        names.append(annotations.categories[box.category_id])
    return np.array(corners).reshape(-1, 4), np.array(ratios), names


def _aspects(ratios: np.ndarray) -> dict[str, int]:
    """Return how many boxes are wider than tall, about square, taller than wide."""
    wide, tall = int((ratios < 0.8).sum()), int((ratios > 1.25).sum())
    return {"wide": wide, "square": len(ratios) - wide - tall, "tall": tall}
