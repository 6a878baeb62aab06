"""What is wrong with annotations but can be put right, and the known errata of the BUV dataset.

Every repair is reported: a dataset that changed on its way in says so.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Errata published by the authors of BUV, by video name.
BUV_DUPLICATES = {"benign/x66ef02e7f1b9a0ef": "malignant/x3b88488853e8b7d1"}
BUV_MALIGNANT = frozenset(
    {
        "benign/x63c9ba1377f35bf6",
        "benign/x5a1c46ec6377e946",
        "malignant/2390fbea047347b",
        "malignant/7a39ab5d4970bf89",
    }
)
# Not an erratum of the authors and left in place: 106 of 110 frames are shared across the official split.
BUV_LEAK = ("benign/x1282311c38f808f", "malignant/x9c1c965d274c457")


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One change made to what the annotation file says: `kind` groups alike repairs, `entry` says where."""

    kind: str
    entry: str
    what: str

    def __str__(self) -> str:
        return f"{self.entry}: {self.what}"


def repair_box(
    bbox: tuple[float, float, float, float], height: int, width: int
) -> tuple[tuple[float, float, float, float] | None, list[tuple[str, str]]]:
    """Turns (x, y, w, h) into corners (x0, y0, x1, y1) inside the image, in pixels.

    Returns the corners, or None where nothing of the box is left, and the (kind, description) of what was
    done. A negative width or height means that the box was drawn right to left or bottom to top.
    """
    x, y, w, h = bbox
    written = f"box {_short(bbox)}"
    done = []
    if w < 0 or h < 0:
        done.append(("reversed box", f"{written} drawn right to left or upwards: corners put in order"))
    x0, x1 = sorted((x, x + w))
    y0, y1 = sorted((y, y + h))
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        done.append(("empty box", f"{written} covers nothing of the {width}x{height} image: dropped"))
        return None, done
    if clipped != (x0, y0, x1, y1):
        done.append(("clipped box", f"{written} reaches beyond the {width}x{height} image: clipped"))
    return clipped, done


def summarize_repairs(repairs: Iterable[Repair]) -> list[str]:
    """One line per kind of repair: how often, and the first example."""
    repairs = list(repairs)
    first: dict[str, Repair] = {}
    for repair in repairs:
        first.setdefault(repair.kind, repair)
    counts = Counter(repair.kind for repair in repairs)
    return [f"{kind}: {count} ({first[kind]})" for kind, count in counts.items()]


def _short(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
