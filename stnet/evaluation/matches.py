"""Which detections find which lesions, as flat arrays that many figures are computed from quickly.

The matching is COCO's (`run_coco`): detections of an image, best first, each take the free lesion they overlap most.
A detection above some threshold therefore matches the same lesion whatever the threshold is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from stnet.evaluation.coco import ALL_AREAS, ScoredFrame, run_coco

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Detections and lesions of one class (or of all taken as one) in N images.

    Attributes:
        images: N.
        ious: overlaps `[T]` that count as found, one after another.
        scores, image, rank, hits: of the detections, best first: `[D]`, number of its image `[D]`, its place among the
            detections of its image `[D]`, whether it finds a lesion bool `[T, D]`.
        lesion_image: `[L]`, number of the image of every lesion.
        found_at: `[T, L]`, score of the detection that finds it; -1 where none does.
        found_by: `[T, L]`, place of that detection among those of its image; -1 where none does.
    """

    images: int
    ious: np.ndarray
    scores: np.ndarray
    image: np.ndarray
    rank: np.ndarray
    hits: np.ndarray
    lesion_image: np.ndarray
    found_at: np.ndarray
    found_by: np.ndarray


def match(
    frames: Sequence[ScoredFrame],
    category: int,
    *,
    ious: Sequence[float],
    area: tuple[float, float] = ALL_AREAS,
) -> Matches:
    """Match the detections of one category.

    Args:
        frames: in the order that decides between equal scores.
        category: the id whose lesions and detections count; after `merge_classes` 1 is everything.
        ious: overlaps to match at.
        area: share of the frame that a lesion covers to count; detections of others are left out, as COCO does.
    """
    evaluation = run_coco(frames, [category], areas=(area,), ious=ious)
    return _flattened(evaluation, len(frames), np.array(ious, dtype=float))


def average_precision(matches: Matches, row: int, weights: np.ndarray | None = None) -> float | None:
    """COCO's average precision at one of the overlaps, every image counted with a weight; None without lesions.

    Args:
        matches: of one category.
        row: of `matches.ious`.
        weights: `[N]` float, how often each image counts (default: once).
    """
    weights = np.ones(matches.images) if weights is None else weights
    lesions = weights[matches.lesion_image].sum()
    if not lesions:
        return None
    hits = np.flatnonzero(matches.hits[row])
    if not len(hits):
        return 0.0
    # What follows the last hit changes no precision at a recall that is reached.
    weight, hit = weights[matches.image[: hits[-1] + 1]], matches.hits[row, : hits[-1] + 1]
    found = np.cumsum(weight * hit)
    precision = found / np.maximum(np.cumsum(weight), 1e-12)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / lesions, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())


def _flattened(evaluation: COCOeval, images: int, ious: np.ndarray) -> Matches:
    scores, image, rank, hits, lesion_image, found_at, found_by = [], [], [], [], [], [], []
    for number, result in enumerate(evaluation.evalImgs):
        if result is None:
            continue
        of_image = np.asarray(result["dtScores"], dtype=float)
        place_of = {identifier: place for place, identifier in enumerate(result["dtIds"])}
        ignored = np.asarray(result["dtIgnore"], dtype=bool).reshape(len(ious), -1)
        counted = ~ignored.all(axis=0)
        scores.append(of_image[counted])
        image.append(np.full(counted.sum(), number))
        rank.append(np.arange(len(of_image))[counted])
        matched = np.asarray(result["dtMatches"]).reshape(len(ious), -1) > 0
        hits.append((matched & ~ignored)[:, counted])
        kept = ~np.asarray(result["gtIgnore"], dtype=bool)
        partners = np.asarray(result["gtMatches"]).reshape(len(ious), -1)[:, kept]
        lesion_image.append(np.full(kept.sum(), number))
        places = [place_of.get(int(partner), -1) for partner in partners.ravel()]
        found_by.append(np.array(places, dtype=int).reshape(partners.shape))
        found_at.append(np.append(of_image, -1.0)[found_by[-1]])
    joined = np.concatenate([np.zeros(0), *scores])
    order = np.argsort(-joined, kind="stable")
    rows = np.zeros((len(ious), 0))
    return Matches(
        images=images,
        ious=ious,
        scores=joined[order],
        image=np.concatenate([np.zeros(0), *image]).astype(int)[order],
        rank=np.concatenate([np.zeros(0), *rank]).astype(int)[order],
        hits=np.concatenate([rows, *hits], axis=1).astype(bool)[:, order],
        lesion_image=np.concatenate([np.zeros(0), *lesion_image]).astype(int),
        found_at=np.concatenate([rows, *found_at], axis=1),
        found_by=np.concatenate([rows, *found_by], axis=1).astype(int),
    )
