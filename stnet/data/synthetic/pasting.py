"""Further lesions, pasted from other stills, and pieces without a lesion pasted the same way.

Public stills show one lesion each, most of them large, so a detector learns that there is one and that it is large.
Pasted lesions are smaller and come in addition. The pieces without a lesion keep the seam from betraying anything.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from stnet.data.clips.transforms import FrameStack
from stnet.data.frames import FrameReader
from stnet.data.index import DatasetIndex, Frame

TRIES = 12
DARK = 40
"""Mean gray level below which a place shows too little tissue for a lesion to be seen."""

CONTRAST = 0.3
"""A pasted lesion differs from its surroundings by at least this share of their gray level."""

AROUND = 0.35
"""What of its surroundings a piece keeps on every side, as a share of its box."""

LARGEST = 0.5
"""No lesion is a donor whose box is longer than this share of its still."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A cut-out, uint8 `[H, W]`, the box that its lesion fills in it, and the label (0: no lesion)."""

    pixels: np.ndarray
    box: tuple[float, float, float, float]
    label: int


class Donors:
    """Lesions of the stills of an index to paste elsewhere, each cut out when it is first asked for, and kept.

    Videos give none: a phantom's lesion in real tissue would look like nothing there is.
    """

    def __init__(self, index: DatasetIndex):
        self._lesions = [
            (video.frames[0], number)
            for video in index.videos
            for number in range(len(video.frames[0].boxes))
            if len(video.frames) == 1 and video.frames[0].annotated and _is_donor(video.frames[0], number)
        ]
        self._reader = FrameReader(0)
        self._kept: dict[tuple[int, bool], Piece] = {}

    def __len__(self) -> int:
        return len(self._lesions)

    def piece(self, rng: np.random.Generator, *, lesion: bool) -> Piece | None:
        """Draw a lesion, or a piece of the same size without any; None where a still has no room for that."""
        number = int(rng.integers(len(self._lesions)))
        if (number, lesion) not in self._kept:
            frame, box = self._lesions[number]
            place = frame.boxes[box] if lesion else _free_place(frame, box)
            if place is None:
                return None
            pixels = self._reader.read(frame)[..., 0]
            self._kept[number, lesion] = _cut(pixels, place, int(frame.labels[box]) if lesion else 0)
        return self._kept[number, lesion]


@dataclass(frozen=True, kw_only=True, eq=False)
class PasteLesions:
    """Paste lesions of `donors` into stills where no lesion is.

    Attributes:
        donors: where they come from.
        probability: share of the stills that get one; a quarter of these get two.
        decoys: share of the stills that get a piece without a lesion.
        smallest, largest: side of a pasted lesion relative to what it has in its own still.
    """

    donors: Donors
    probability: float
    decoys: float
    smallest: float = 0.4
    largest: float = 1.1

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Paste into a stack of one frame; longer ones are returned as they are."""
        if len(stack.frames) != 1 or not len(self.donors):
            return stack
        lesions = (rng.random() < self.probability) * (1 + int(rng.random() < 0.25))
        for lesion in [False] * int(rng.random() < self.decoys) + [True] * lesions:
            piece = self.donors.piece(rng, lesion=lesion)
            if piece is not None:
                stack = _paste(stack, piece, rng.uniform(self.smallest, self.largest), rng)
        return stack


def _paste(stack: FrameStack, piece: Piece, scale: float, rng: np.random.Generator) -> FrameStack:
    pixels, box = _scaled(piece, scale, rng.random() < 0.5)
    height, width = pixels.shape
    room_y, room_x = stack.height - height, stack.width - width
    if min(room_y, room_x) < 0 or min(box[2] - box[0], box[3] - box[1]) < 8:
        return stack
    (taken,) = stack.boxes
    gray = stack.frames[0].max(axis=2)
    for _ in range(TRIES):
        top, left = int(rng.integers(room_y + 1)), int(rng.integers(room_x + 1))
        clear = (taken[:, 2:] < (left, top)) | (taken[:, :2] > (left + width, top + height))
        under = gray[top : top + height, left : left + width]
        if clear.any(axis=1).all() and under.mean() > DARK:
            break
    else:
        return stack
    frames = stack.frames.copy()
    target = frames[0, top : top + height, left : left + width]
    target[:] = _blended(target, pixels, box, rng)
    if piece.label and not _stands_out(target.mean(axis=2), box):
        return stack
    if not piece.label:
        return FrameStack(frames=frames, boxes=stack.boxes, labels=stack.labels)
    placed = (np.array(box) + (left, top, left, top)).astype(np.float32)
    return FrameStack(
        frames=frames,
        boxes=(np.concatenate((taken, placed[None])),),
        labels=(np.append(stack.labels[0], piece.label),),
    )


def _blended(target: np.ndarray, pixels: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the piece inside a soft, uneven ellipse about its box, as bright as what it is pasted onto."""
    height, width = pixels.shape
    y, x = np.mgrid[:height, :width] + 0.5
    rank = np.hypot((x - (box[0] + box[2]) / 2) / (box[2] - box[0]), (y - (box[1] + box[3]) / 2) / (box[3] - box[1]))
    # The outline of the lesion has rank 0.5; the border of the piece lies beyond 0.85.
    border = rng.uniform(0.62, 0.72) + 0.25 * gaussian_filter(rng.standard_normal(rank.shape), 4)
    share = np.clip((border - rank) / 0.12, 0, 1)[..., None]
    ring = share[..., 0] < 0.5
    under, own = target.mean(axis=2)[ring].mean(), pixels[ring].mean()
    gain = np.clip(under / max(own, 1.0), 0.5, 1.8)
    mixed = target * (1 - share) + np.minimum(pixels * gain, 255)[..., None] * share
    return (mixed + 0.5).astype(np.uint8)


def _stands_out(pixels: np.ndarray, box: np.ndarray) -> bool:
    """Return whether the middle of a box differs from what surrounds the box."""
    x0, y0, x1, y1 = box
    inset_x, inset_y = (x1 - x0) / 4, (y1 - y0) / 4
    inside = pixels[int(y0 + inset_y) : int(y1 - inset_y) + 1, int(x0 + inset_x) : int(x1 - inset_x) + 1].mean()
    outside = np.ones(pixels.shape, dtype=bool)
    outside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = False
    around = pixels[outside].mean() if outside.any() else inside
    return bool(abs(around - inside) >= CONTRAST * around)


def _scaled(piece: Piece, scale: float, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    height, width = piece.pixels.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.asarray(Image.fromarray(piece.pixels).resize(size, Image.Resampling.BILINEAR))
    box = np.array(piece.box) * ([size[0] / width, size[1] / height] * 2)
    if mirror:
        pixels, box = pixels[:, ::-1], box[[2, 1, 0, 3]] * (-1, 1, -1, 1) + (size[0], 0, size[0], 0)
    return pixels, box


def _cut(pixels: np.ndarray, place: np.ndarray, label: int) -> Piece:
    x0, y0, x1, y1 = (float(value) for value in place)
    reach_x, reach_y = AROUND * (x1 - x0), AROUND * (y1 - y0)
    left, top = max(0, round(x0 - reach_x)), max(0, round(y0 - reach_y))
    part = pixels[top : round(y1 + reach_y), left : round(x1 + reach_x)].copy()
    return Piece(pixels=part, box=(x0 - left, y0 - top, x1 - left, y1 - top), label=label)


def _is_donor(frame: Frame, number: int) -> bool:
    """Neither so large that it fills its still, nor cut off, nor next to another lesion that would come along."""
    x0, y0, x1, y1 = frame.boxes[number]
    w, h = x1 - x0, y1 - y0
    if max(w / frame.width, h / frame.height) > LARGEST or min(w, h) < 8:
        return False
    reach = AROUND * np.array([w, h])
    low, high = np.array([x0, y0]) - reach, np.array([x1, y1]) + reach
    if (low < -reach / 2).any() or (high > np.array([frame.width, frame.height]) + reach / 2).any():
        return False
    others = np.delete(frame.boxes, number, axis=0)
    return bool(((others[:, 2:] < low) | (others[:, :2] > high)).any(axis=1).all())


def _free_place(frame: Frame, number: int) -> np.ndarray | None:
    """Return a box of the size of a lesion whose surroundings hold no lesion, or None."""
    x0, y0, x1, y1 = frame.boxes[number]
    size = np.array([x1 - x0, y1 - y0])
    rng = np.random.default_rng((frame.image_id, number))
    room = np.array([frame.width, frame.height]) - size
    for _ in range(TRIES):
        low = rng.uniform(0, 1, 2) * room
        near_low, near_high = low - AROUND * size, low + (1 + AROUND) * size
        if ((frame.boxes[:, 2:] < near_low) | (frame.boxes[:, :2] > near_high)).any(axis=1).all():
            return np.concatenate((low, low + size)).astype(np.float32)
    return None
