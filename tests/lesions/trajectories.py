"""Made videos of lesions that cross, leave and return, and the findings of an imperfect detector in them."""

from dataclasses import dataclass

import numpy as np

from stnet.lesions import Findings

WIDTH, HEIGHT = 320, 240


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True boxes by frame: `boxes[t]` `[n, 4]` of the lesions `ids[t]` `[n]`, whose class is `labels[id]`."""

    boxes: list[np.ndarray]
    ids: list[np.ndarray]
    labels: np.ndarray


def made_video(seed: int, frames: int = 150) -> Truth:
    """One or two lesions (by turns); two cross each other, and each leaves the picture and comes back."""
    rng = np.random.default_rng([7, seed])
    count = 1 + seed % 2
    extents = rng.uniform([28, 22], [60, 44], (count, 2))
    if count == 2:
        extents[1] *= rng.choice([0.8, 1.0, 1.25])  # as large as the other one, or not quite
    labels = rng.integers(1, 3, count)
    t = np.arange(frames) / frames
    paths = []
    for lesion in range(count):
        # To and fro over the picture and beyond both borders: two lesions meet each other half-way and at the end.
        reach = rng.uniform(0.62, 0.72) * WIDTH
        side = 1 if lesion == 0 else -1
        x = WIDTH / 2 + side * reach * np.sin(2 * np.pi * (t + 0.06 + rng.uniform(-0.03, 0.03)))
        y = HEIGHT / 2 + rng.uniform(-25, 25) + rng.uniform(5, 25) * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * t))
        paths.append(np.stack([x, y], axis=1))
    boxes, ids = [], []
    for frame in range(frames):
        rows = []
        for lesion in range(count):
            centre = paths[lesion][frame]
            box = np.concatenate([centre - extents[lesion] / 2, centre + extents[lesion] / 2])
            cut = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
            if np.prod(cut[2:] - cut[:2]) > 0.5 * extents[lesion].prod():
                rows.append((lesion, cut))
        boxes.append(np.array([box for _, box in rows]).reshape(-1, 4))
        ids.append(np.array([lesion for lesion, _ in rows], dtype=int))
    return Truth(boxes=boxes, ids=ids, labels=labels)


def detected(
    truth: Truth, seed: int, *, missed: float = 0.1, false: float = 0.1, noise: float = 3.0, classes: int = 2
) -> list[Findings]:
    """What a detector finds that misses some boxes, adds false ones (a share of the true ones), and is not exact."""
    rng = np.random.default_rng([11, seed])
    video = []
    for frame, (boxes, ids) in enumerate(zip(truth.boxes, truth.ids, strict=True)):
        kept = rng.random(len(boxes)) >= missed
        found = boxes[kept] + rng.normal(0, noise, (int(kept.sum()), 4))
        labels = truth.labels[ids[kept]]
        wrong = rng.binomial(max(len(boxes), 1), false)
        corners = rng.uniform(0, [WIDTH - 60, HEIGHT - 44], (wrong, 2))
        more = np.concatenate([corners, corners + rng.uniform([20, 16], [60, 44], (wrong, 2))], axis=1)
        scores = rng.uniform(0.02, 0.2, (len(found) + wrong, classes))
        scores[np.arange(len(found)), labels - 1] = rng.uniform(0.4, 0.95, len(found))
        scores[len(found) + np.arange(wrong), rng.integers(0, classes, wrong)] = rng.uniform(0.4, 0.8, wrong)
        every = np.concatenate([found, more])
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        order = rng.permutation(len(every))
        video.append(
            Findings(frame=frame, time=frame / 25, boxes=every[order], scores=scores[order], rows=np.arange(len(every)))
        )
    return video
