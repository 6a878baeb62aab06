"""Pseudo-videos of stills: a hand-held camera looks at each still, drifts, zooms and turns slowly; boxes follow.

The tissue gives, gain and speckle change. Where the still has room for it, the view of some videos wanders to a
stretch without any lesion. A lesion that is cut off by the edge of the view keeps the box of what is left; where less
than a third is left, the frame counts as not annotated.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from stnet.data.index import Frame
from stnet.data.synthetic.smooth import SmoothField, wander

# A lesion keeps its box while this share of it is in view; frames that show less (but something) are not
# annotated.
MIN_VISIBLE_SHARE = 0.35
LESION_FREE_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoVideo:
    """A rendered pseudo-video.

    Attributes:
        frames: uint8 `[F, H, W]`.
        boxes: per frame float32 `[n, 4]`, x0 y0 x1 y1 in pixels.
        labels: per frame int64 `[n]`.
        instances: per frame int64 `[n]`, which box of the still.
        annotated: per frame.
    """

    frames: np.ndarray
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    instances: tuple[np.ndarray, ...]
    annotated: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """A window on the still: its centre and width in pixels of the still, and its turn in radians."""

    x: float
    y: float
    width: float
    turn: float


def render_still(
    pixels: np.ndarray, still: Frame, rng: np.random.Generator, *, frames: int, height: int, width: int
) -> PseudoVideo:
    """Render a pseudo-video of a still with gray `pixels` uint8 `[h, w]` and the boxes of `still`."""
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    views = _draw_path(rng, still, height / width, time)
    tissue = _Tissue(rng, still)
    display = _Display(rng, height, width)
    rendered, marks = [], []
    for view, moment in zip(views, time, strict=True):
        rows, columns = tissue.coordinates(view, moment, height, width)
        blurred = gaussian_filter(pixels.astype(np.float32), max(0.0, 0.45 * (view.width / width - 1)))
        frame = map_coordinates(blurred, (rows - 0.5, columns - 0.5), order=1, mode="mirror")
        rendered.append(display.show(frame, moment))
        marks.append(_visible_boxes(still, view, rows, columns))
    return PseudoVideo(
        frames=np.stack(rendered),
        boxes=tuple(np.array([box for _, box in seen], dtype=np.float32).reshape(-1, 4) for seen, _ in marks),
        labels=tuple(np.array([still.labels[i] for i, _ in seen], dtype=np.int64) for seen, _ in marks),
        instances=tuple(np.array([i for i, _ in seen], dtype=np.int64) for seen, _ in marks),
        annotated=tuple(annotated and still.annotated for _, annotated in marks),
    )


def _draw_path(rng: np.random.Generator, still: Frame, aspect: float, time: np.ndarray) -> list[View]:
    """Return a slow way from one view to another, with the tremor of a hand."""
    first, second = _view_of_lesions(rng, still, aspect), _view_of_lesions(rng, still, aspect)
    if rng.random() < LESION_FREE_SHARE:
        second = _view_without_lesions(rng, still, aspect) or second
    # From the first view to the second, back, or there and back.
    way = rng.integers(3)
    progress = (time, 1 - time, 1 - np.abs(2 * time - 1))[way]
    progress = progress * progress * (3 - 2 * progress)
    largest = min(still.width, still.height / aspect)
    tremor = [0.008 * largest * wander(rng, time) for _ in range(2)]
    turn = np.deg2rad(rng.uniform(-4, 4) + 1.5 * wander(rng, time))
    views = []
    for i, share in enumerate(progress):
        width = first.width + share * (second.width - first.width)
        x = first.x + share * (second.x - first.x) + tremor[0][i]
        y = first.y + share * (second.y - first.y) + tremor[1][i]
        views.append(_inside(still, View(x=x, y=y, width=width, turn=turn[i]), aspect))
    return views


def _view_of_lesions(rng: np.random.Generator, still: Frame, aspect: float) -> View:
    """Return a view that holds one of the lesions whole, where it fits; any view of a still without lesions."""
    largest = min(still.width, still.height / aspect)
    width = largest * rng.uniform(0.6, 0.95)
    if not len(still.boxes):
        x, y = rng.uniform(0, still.width), rng.uniform(0, still.height)
        return _inside(still, View(x=x, y=y, width=width, turn=0.0), aspect)
    x0, y0, x1, y1 = (float(value) for value in still.boxes[rng.integers(len(still.boxes))])
    width = min(largest, max(width, 1.15 * (x1 - x0), 1.15 * (y1 - y0) / aspect))
    room_x, room_y = (max(0.0, room / 2) for room in (width - (x1 - x0), width * aspect - (y1 - y0)))
    x = (x0 + x1) / 2 + rng.uniform(-room_x, room_x)
    y = (y0 + y1) / 2 + rng.uniform(-room_y, room_y)
    return _inside(still, View(x=x, y=y, width=width, turn=0.0), aspect)


def _view_without_lesions(rng: np.random.Generator, still: Frame, aspect: float) -> View | None:
    """Return a view that no lesion reaches into, or None where the tries find none."""
    largest = min(still.width, still.height / aspect)
    for _ in range(60):
        width = largest * rng.uniform(0.38, 0.6)
        x, y = rng.uniform(0, still.width), rng.uniform(0, still.height)
        view = _inside(still, View(x=x, y=y, width=width, turn=0.0), aspect)
        reach = np.array([width, width * aspect]) * 0.58
        low, high = np.array([view.x, view.y]) - reach, np.array([view.x, view.y]) + reach
        if ((still.boxes[:, 2:] < low) | (still.boxes[:, :2] > high)).any(axis=1).all():
            return view
    return None


def _inside(still: Frame, view: View, aspect: float) -> View:
    """Return the view moved so that (turned or not) it hardly leaves the still."""
    half_x, half_y = view.width / 2, view.width * aspect / 2
    x = min(max(view.x, half_x), max(half_x, still.width - half_x))
    y = min(max(view.y, half_y), max(half_y, still.height - half_y))
    return View(x=x, y=y, width=view.width, turn=view.turn)


class _Tissue:
    """The still under a probe that presses: a smooth displacement that changes with time."""

    def __init__(self, rng: np.random.Generator, still: Frame):
        size = max(still.height, still.width)
        self._shift = [SmoothField(rng, (size / 4, size / 4, 0.7)) for _ in range(2)]
        self._amount = size * rng.uniform(0.002, 0.01)

    def coordinates(self, view: View, moment: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel [H, W] of a view looks in the still: rows and columns, pixel centres at halves."""
        scale = view.width / width
        dy, dx = np.mgrid[:height, :width] + 0.5
        dx, dy = (dx - width / 2) * scale, (dy - height / 2) * scale
        columns = view.x + dx * np.cos(view.turn) - dy * np.sin(view.turn)
        rows = view.y + dx * np.sin(view.turn) + dy * np.cos(view.turn)
        when = np.full(rows.shape, moment)
        across, down = (shift.sample(columns, rows, when, stride=6) for shift in self._shift)
        return rows + self._amount * down, columns + self._amount * across


class _Display:
    """Gain that wanders, a gamma, and grain that changes slowly; black stays black."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self._rng = rng
        self._gamma = 2.0 ** rng.uniform(-0.25, 0.25)
        self._gain = rng.uniform(0.85, 1.15)
        self._sway = 0.05 * rng.standard_normal(3)
        self._strength = rng.uniform(0.05, 0.16)
        self._memory = rng.uniform(0.5, 0.8)
        self._shape = (height, width)
        self._grain = self._fresh_grain()

    def show(self, frame: np.ndarray, moment: float) -> np.ndarray:
        sway = self._sway[0] * np.sin(2 * np.pi * (self._sway[1] * 10 + moment)) + self._sway[2] * moment
        fresh = self._fresh_grain()
        self._grain = self._memory * self._grain + np.sqrt(1 - self._memory**2) * fresh
        bright = 255 * (np.clip(frame, 0, 255) / 255) ** self._gamma * self._gain * (1 + sway)
        return np.clip(bright * np.exp(self._strength * self._grain) + 0.5, 0, 255).astype(np.uint8)

    def _fresh_grain(self) -> np.ndarray:
        grain = gaussian_filter(self._rng.standard_normal(self._shape), (0.7, 1.1))
        return grain / grain.std()


def _visible_boxes(
    still: Frame, view: View, rows: np.ndarray, columns: np.ndarray
) -> tuple[list[tuple[int, np.ndarray]], bool]:
    """Return the (number, box) of the lesions in view, and whether the frame is annotated.

    A lesion is the ellipse inscribed in its box: the pixels that look into it make its new box.
    """
    seen, annotated = [], True
    pixel_area = (view.width / rows.shape[1]) ** 2
    for number, (x0, y0, x1, y1) in enumerate(still.boxes.astype(float)):
        across, down = (columns - (x0 + x1) / 2) / (x1 - x0), (rows - (y0 + y1) / 2) / (y1 - y0)
        inside = across**2 + down**2 <= 0.25
        if not inside.any():
            continue
        share = inside.sum() * pixel_area / (np.pi / 4 * (x1 - x0) * (y1 - y0))
        lines, places = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
        box = np.array([places[0], lines[0], places[-1] + 1, lines[-1] + 1], dtype=np.float32)
        if share < MIN_VISIBLE_SHARE or (box[2:] - box[:2]).min() < 4:
            annotated = False
            continue
        seen.append((number, box))
    # A frame is annotated as a whole or not at all.
    return (seen, True) if annotated else ([], False)
