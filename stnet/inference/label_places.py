"""Places for labels in a picture: near their boxes, inside of the picture, never one over another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDEST = 0.6
"""Share of the picture's width that a text may take where a shorter one says nearly the same."""

Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1; the last column and row do not belong to it."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What may be written beside a box.

    Attributes:
        box: x0 y0 x1 y1 that it belongs to.
        sizes: width, height of each of its texts, the one that says most first.
    """

    box: Rectangle
    sizes: Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a label is written: which of its texts, and the corner."""

    text: int
    x: int
    y: int


def placed(labels: Sequence[Label], width: int, height: int) -> list[Place | None]:
    """Return a place for each label, None where the picture has no room for it.

    Labels are taken in their order; each has the first free one of the places around its box, then of those farther
    above and below it, then the same for its shorter texts.

    Args:
        labels: the most important first.
        width: of the picture.
        height: of the picture.
    """
    taken: list[Rectangle] = []
    places: list[Place | None] = []
    for label in labels:
        place = _place(label, taken, width, height)
        places.append(place)
        if place is not None:
            wide, high = label.sizes[place.text]
            taken.append((place.x, place.y, place.x + wide, place.y + high))
    return places


def _place(label: Label, taken: Sequence[Rectangle], width: int, height: int) -> Place | None:
    for text, (wide, high) in enumerate(label.sizes):
        widest = width if text == len(label.sizes) - 1 else WIDEST * width
        if wide > widest or high > height:
            continue
        for x, y in _candidates(label.box, wide, high, width, height):
            x, y = max(0, min(x, width - wide)), max(0, min(y, height - high))
            if not any(x < x1 and x0 < x + wide and y < y1 and y0 < y + high for x0, y0, x1, y1 in taken):
                return Place(text=text, x=x, y=y)
    return None


def _candidates(box: Rectangle, wide: int, high: int, width: int, height: int) -> Iterator[tuple[int, int]]:
    x0, y0, x1, y1 = box
    if y0 >= high:
        yield x0, y0 - high
    yield x0, y0
    if y1 + high <= height:
        yield x0, y1
    yield x0, y1 - high
    if x1 + wide <= width:
        yield x1, y0
    if x0 >= wide:
        yield x0 - wide, y0
    for step in range(2, height // high + 1):
        for y in (y0 - step * high, y1 + (step - 1) * high):
            if 0 <= y <= height - high:
                yield x0, y
