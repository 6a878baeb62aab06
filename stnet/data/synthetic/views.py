"""Motion that a still never had: windows on it that drift, zoom and turn as a hand-held probe does.

A view either holds a lesion nearly whole or does not touch it, so that every frame drawn this way is annotated
completely: no frame shows half a lesion whose box nobody could agree on.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stnet.data.clips.planning import LOCAL_FRAMES
from stnet.data.clips.transforms import FrameStack, map_images, with_boxes

WHOLE = 0.85
"""A lesion counts as in view from this share of its box on; below, the view must not touch it at all."""

WHOLE_SHARE = 0.3
"""Share of the clips that show the whole still, as validation does."""

NARROWEST = 0.2
"""Beside lesions a stretch is looked at from this share of the still's side on."""

MOST_ASPECT = 2.2
TRIES = 16
HALVINGS = 3
SAMPLES_PER_PIXEL = 1.2
"""Pixels of the source per pixel of a turned view after it was shrunk; 1 would blur, much more would alias."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A window on a still: centre and sides in pixels of the still, turned clockwise by `turn` radians."""

    x: float
    y: float
    width: float
    height: float
    turn: float = 0.0

    @property
    def box(self) -> np.ndarray:
        """The window before it is turned, x0 y0 x1 y1."""
        half_x, half_y = self.width / 2, self.height / 2
        return np.array([self.x - half_x, self.y - half_y, self.x + half_x, self.y + half_y])


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How views of a still are drawn.

    Attributes:
        lesion_free: share of the stills with lesions whose view is looked for where no lesion is.
        constant: share of the clips without any motion.
        smallest: least side of a view, as a share of the still's; views beside lesions may be smaller.
        stretch: height against width by a factor 2^u, |u| <= stretch.
        rotation: degrees either way.
        drift: way of the window until the farthest frame of the clip, as a share of its sides.
        zoom: change of its sides until then by a factor 2^u, |u| <= zoom.
    """

    lesion_free: float = 0.15
    constant: float = 0.25
    smallest: float = 0.45
    stretch: float = 0.15
    rotation: float = 6.0
    drift: float = 0.12
    zoom: float = 0.1


def draw_view(rng: np.random.Generator, boxes: np.ndarray, height: int, width: int, motion: Motion) -> View:
    """Draw a view of a still of `height` x `width` pixels with lesions `boxes` `[n, 4]`.

    Returns:
        A view in which every lesion is nearly whole or absent; the whole still where none is found.
    """
    whole = View(x=width / 2, y=height / 2, width=width, height=height)
    if len(boxes) and rng.random() < motion.lesion_free:
        return _view_without(rng, boxes, height, width) or whole
    if rng.random() < WHOLE_SHARE:
        return whole
    for _ in range(TRIES):
        view = _view_with(rng, boxes, height, width, motion)
        if _complete(_shares(boxes, view)):
            return view
    return whole


def draw_path(rng: np.random.Generator, view: View, boxes: np.ndarray, frames: int, motion: Motion) -> list[View]:
    """Draw one view per frame of a clip, beginning with `view`.

    Local frames lie close to the first in time, global ones anywhere. Turn and way are halved until all frames show the
    lesions that `view` shows; where that does not help, all frames show `view`.
    """
    turn = np.deg2rad(rng.uniform(-motion.rotation, motion.rotation)) if rng.random() < 0.5 else 0.0
    seen = _shares(boxes, view) > 0
    time = _times(rng, frames)
    reach = 0.0 if rng.random() < motion.constant else 1.0
    speed = reach * rng.uniform(-1, 1, 4) * (motion.drift, motion.drift, motion.zoom, np.deg2rad(motion.rotation) / 2)
    tremor = reach * 0.008 * rng.standard_normal((frames, 2))
    for _ in range(HALVINGS):
        path = [
            View(
                x=view.x + (speed[0] * t + shake_x) * view.width,
                y=view.y + (speed[1] * t + shake_y) * view.height,
                width=view.width * 2 ** (speed[2] * t),
                height=view.height * 2 ** (speed[2] * t),
                turn=turn + speed[3] * t,
            )
            for t, (shake_x, shake_y) in zip(time, tremor, strict=True)
        ]
        shares = [_shares(boxes, step) for step in path]
        if all(_complete(share) and ((share > 0) == seen).all() for share in shares):
            return path
        speed, tremor, turn = speed / 2, tremor / 2, turn / 2
    return [view] * frames


def render_views(stack: FrameStack, path: list[View], height: int, width: int) -> FrameStack:
    """Render one view per frame of a stack, or all of a stack's only frame; outside the image is black."""
    first = path[0]
    if first.turn == 0 and all(view == first for view in path[1:]):
        return _render_constant(stack, first, len(path), height, width)
    shrink = max(1.0, min(first.width / width, first.height / height) / SAMPLES_PER_PIXEL)
    size = tuple(max(1, round(side / shrink)) for side in (stack.width, stack.height))
    scale = np.array(size) / (stack.width, stack.height)
    shrunk = map_images(stack.frames, lambda image: image.resize(size, Image.Resampling.BILINEAR))
    frames, boxes = [], []
    for number, view in enumerate(path):
        forward, centre = _matrix(view, height, width), np.array([view.x, view.y])
        backward = np.linalg.inv(forward)
        start = centre - backward @ (width / 2, height / 2)
        rows = np.concatenate((backward, start[:, None]), axis=1) * scale[:, None]
        source = shrunk[number if len(shrunk) > 1 else 0][None]
        frames.append(
            map_images(
                source,
                lambda image, rows=rows: image.transform(
                    (width, height), Image.Transform.AFFINE, rows.ravel().tolist(), Image.Resampling.BILINEAR
                ),
            )
        )
        of_frame = stack.boxes[number if len(shrunk) > 1 else 0]
        boxes.append(_mapped(of_frame, forward, centre, height, width))
    return _stacked(stack, np.concatenate(frames), boxes)


def _render_constant(stack: FrameStack, view: View, count: int, height: int, width: int) -> FrameStack:
    """Return the exact resize that validation uses, of a window."""
    box = np.clip(view.box, 0, (stack.width, stack.height) * 2)
    frames = map_images(
        stack.frames, lambda image: image.resize((width, height), Image.Resampling.BILINEAR, box=tuple(box))
    )
    ratio = np.array([width / (box[2] - box[0]), height / (box[3] - box[1])] * 2)
    boxes = [((old - box[[0, 1, 0, 1]]) * ratio).astype(np.float32) for old in stack.boxes]
    if len(frames) == 1:
        frames, boxes = np.repeat(frames, count, axis=0), boxes * count
    return _stacked(stack, frames, boxes)


def _stacked(stack: FrameStack, frames: np.ndarray, boxes: list[np.ndarray]) -> FrameStack:
    labels = stack.labels if len(stack.labels) == len(frames) else stack.labels * len(frames)
    return with_boxes(FrameStack(frames=frames, boxes=tuple(boxes), labels=labels), frames, boxes)


def _matrix(view: View, height: int, width: int) -> np.ndarray:
    """Return what maps differences of positions in the still to differences in the view."""
    sine, cosine = np.sin(view.turn), np.cos(view.turn)
    scale = np.diag((width / view.width, height / view.height))
    return scale @ np.array([[cosine, sine], [-sine, cosine]])


def _mapped(boxes: np.ndarray, forward: np.ndarray, centre: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes in a view: around the mapped ellipses that fill them, as lesions do."""
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre) @ forward.T + (width / 2, height / 2)
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (forward**2).T)
    return np.concatenate((middle - half, middle + half), axis=1).astype(np.float32)


def _shares(boxes: np.ndarray, view: View) -> np.ndarray:
    """How much of every box `[n, 4]` a view holds, in [0, 1]; its turn moves the borders, so boxes are turned back."""
    if not len(boxes):
        return np.zeros(0)
    placed = _mapped(boxes, _matrix(view, 1, 1), np.array([view.x, view.y]), 1, 1)
    size = placed[:, 2:] - placed[:, :2]
    inside = np.clip(np.minimum(placed[:, 2:], 1) - np.maximum(placed[:, :2], 0), 0, None)
    return (inside / np.maximum(size, 1e-9)).prod(axis=1)


def _complete(shares: np.ndarray) -> bool:
    return bool(((shares >= WHOLE) | (shares == 0)).all())


def _view_with(rng: np.random.Generator, boxes: np.ndarray, height: int, width: int, motion: Motion) -> View:
    """Return a view around one of the lesions, or anywhere where there is none."""
    share, lean = rng.uniform(motion.smallest, 1), 2 ** rng.uniform(-motion.stretch, motion.stretch)
    view_width, view_height = width * min(1.0, share * lean), height * min(1.0, share / lean)
    x0, y0, x1, y1 = boxes[rng.integers(len(boxes))].astype(float) if len(boxes) else (width, height, 0.0, 0.0)
    view_width = min(width, max(view_width, 1.1 * (x1 - x0)))
    view_height = min(height, max(view_height, 1.1 * (y1 - y0)))
    left = _between(rng, max(0.0, x1 - view_width), min(x0, width - view_width))
    top = _between(rng, max(0.0, y1 - view_height), min(y0, height - view_height))
    return View(x=left + view_width / 2, y=top + view_height / 2, width=view_width, height=view_height)


def _view_without(rng: np.random.Generator, boxes: np.ndarray, height: int, width: int) -> View | None:
    """Return a view to one side of all lesions, or None where none of the sides has room."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    sides = [(0, 0, low[0], height), (high[0], 0, width, height), (0, 0, width, low[1]), (0, high[1], width, height)]
    limits = NARROWEST * np.array([width, height])
    sides = [side for side in sides if side[2] - side[0] >= limits[0] and side[3] - side[1] >= limits[1]]
    if not sides:
        return None
    x0, y0, x1, y1 = (float(value) for value in sides[rng.integers(len(sides))])
    view_width, view_height = (x1 - x0) * rng.uniform(0.6, 0.98), (y1 - y0) * rng.uniform(0.6, 0.98)
    view_width = min(view_width, MOST_ASPECT * view_height)
    view_height = min(view_height, MOST_ASPECT * view_width)
    left, top = rng.uniform(x0, x1 - view_width), rng.uniform(y0, y1 - view_height)
    return View(x=left + view_width / 2, y=top + view_height / 2, width=view_width, height=view_height)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return rng.uniform(low, high) if low < high else (low + high) / 2


def _times(rng: np.random.Generator, frames: int) -> np.ndarray:
    """When the frames of a clip were taken, the first at 0, none later than 1 or earlier than -1."""
    step = 10 ** rng.uniform(-2, -0.5)
    neighbours = np.array([0, -1, 1][:LOCAL_FRAMES]) * step
    return np.concatenate((neighbours, rng.uniform(-1, 1, max(0, frames - LOCAL_FRAMES))))[:frames]
