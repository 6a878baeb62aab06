"""Identity metrics, small and plain: IDF1 (Ristani et al., ECCVW 2016) and identity switches, at IoU 0.5."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from stnet.lesions.findings import overlap

IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Frames in which the right identity was there, true and told boxes, and how often a lesion changed its number."""

    matched: int
    true: int
    told: int
    switches: int

    @property
    def idf1(self) -> float:
        return 2 * self.matched / max(self.true + self.told, 1)


def identities(true_boxes, true_ids, boxes, ids) -> Identities:
    """Compare boxes with numbers, frame by frame (lists of arrays `[n, 4]` and `[n]`)."""
    number = {name: row for row, name in enumerate(sorted({int(i) for frame in true_ids for i in frame}))}
    told = {name: row for row, name in enumerate(sorted({int(i) for frame in ids for i in frame}))}
    together, last, switches = np.zeros((len(number), len(told))), {}, 0
    for frame in range(len(true_boxes)):
        if not len(true_boxes[frame]) or not len(boxes[frame]):
            continue
        iou = overlap(np.asarray(true_boxes[frame]), np.asarray(boxes[frame]))
        for row, column in np.argwhere(iou >= IOU):
            together[number[int(true_ids[frame][row])], told[int(ids[frame][column])]] += 1
        # As in CLEAR MOT: who was matched before stays matched where the overlap allows it.
        stays = np.array([[last.get(int(i)) == int(j) for j in ids[frame]] for i in true_ids[frame]])
        gain = np.where(iou >= IOU, iou + 10 * stays, 0)
        for row, column in zip(*linear_sum_assignment(-gain), strict=True):
            if iou[row, column] >= IOU:
                lesion, now = int(true_ids[frame][row]), int(ids[frame][column])
                switches += last.get(lesion, now) != now
                last[lesion] = now
    matched = int(together[linear_sum_assignment(-together)].sum())
    return Identities(matched=matched, true=sum(map(len, true_ids)), told=sum(map(len, ids)), switches=switches)


def by_frame(lesions, frames: int):
    """The boxes and numbers of lesions, frame by frame."""
    boxes, ids = [[] for _ in range(frames)], [[] for _ in range(frames)]
    for lesion in lesions:
        for frame, box in zip(lesion.frames.tolist(), lesion.boxes, strict=True):
            boxes[frame].append(box)
            ids[frame].append(lesion.number)
    return [np.array(rows).reshape(-1, 4) for rows in boxes], [np.array(rows, dtype=int) for rows in ids]
