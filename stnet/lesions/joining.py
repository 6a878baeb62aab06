"""Tracklets of the same lesion before and after it was out of sight.

A lesion that leaves the view comes back near to where it went, about as large, and of the same class. For a short
absence it has moved on with its velocity; the longer it is away, the less that says, and the farther it may have moved,
up to its own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stnet.lesions.linking import CLASS_WEIGHT, LinkSettings, Tracklet, assigned, class_difference
from stnet.lesions.motion import CENTRE_NOISE, Motion, first_motion

GATE = 16.0
"""Largest distance of two tracklets of one lesion, in squared standard deviations."""

WANDER = 0.06
"""Standard deviation of where a lesion is after it was away, in sizes for each frame of absence."""

FARTHEST = 0.75
"""The same after a long absence, in sizes."""

RESIZED = 0.25
"""Standard deviation of the logarithm of its width or height before and after."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ends:
    """What of N tracklets says which are the same lesion.

    Attributes:
        first: int64 `[N]`, the frame each begins in.
        last: int64 `[N]`, the frame it ends in.
        coming: `[N, 5]`, centre, velocity and size at its beginning, as all its findings tell.
        leaving: `[N, 5]`, the same at its end.
        extent: `[N, 2]`, its usual width and height in pixels.
        classes: `[N, classes]`, its mean class scores.
        count: int64 `[N]`, in how many frames it was found.
    """

    first: np.ndarray
    last: np.ndarray
    coming: np.ndarray
    leaving: np.ndarray
    extent: np.ndarray
    classes: np.ndarray
    count: np.ndarray


def ends_of(tracklets: Sequence[Tracklet]) -> Ends:
    """Return the ends of tracklets, at least one."""
    return Ends(
        first=np.array([tracklet.frames[0] for tracklet in tracklets]),
        last=np.array([tracklet.last for tracklet in tracklets]),
        coming=np.array([_row(_beginning(tracklet)) for tracklet in tracklets]),
        leaving=np.array([_row(tracklet.motion) for tracklet in tracklets]),
        extent=np.array([np.median(np.diff(np.reshape(t.boxes, (-1, 2, 2)), axis=1)[:, 0], axis=0) for t in tracklets]),
        classes=np.array([np.mean(tracklet.scores, axis=0) for tracklet in tracklets]),
        count=np.array([len(tracklet.frames) for tracklet in tracklets]),
    )


def joined(tracklets: Sequence[Tracklet], settings: LinkSettings) -> list[list[Tracklet]]:
    """Return tracklets in groups, each one lesion in the order of time; groups in the order they appear.

    The sum of the distances at all joints is the least possible (an assignment of ends to beginnings).
    """
    order = sorted(tracklets, key=lambda tracklet: (tracklet.frames[0], tracklet.last, -tracklet.best))
    if not order:
        return []
    follower = _followers(ends_of(order), settings)
    groups = []
    for start in sorted(set(range(len(order))) - set(follower.values())):
        group, position = [order[start]], start
        while position in follower:
            position = follower[position]
            group.append(order[position])
        groups.append(group)
    return groups


def distances(before: Ends, number: int, after: Ends, which: slice, settings: LinkSettings) -> np.ndarray:
    """Return how unlikely it is that tracklets are a former one's lesion come back; infinite where they cannot be.

    In squared standard deviations: of the place, of width and height, and of the classes.

    Args:
        before: tracklets.
        number: the former one of them.
        after: tracklets.
        which: those of them that may be its lesion.
        settings: how long it may have been away.

    Returns:
        `[those]`.
    """
    leaving, coming = before.leaving[number], after.coming[which]
    steps = after.first[which] - before.last[number]
    size = np.sqrt(leaving[4] * coming[:, 4])
    fading = np.exp(-np.maximum(0, steps - settings.brief) / max(settings.brief, 1))
    expected = (leaving[2:4] + coming[:, 2:4]) / 2 * (steps * fading)[:, None]
    deviation = np.minimum(WANDER * steps, FARTHEST) ** 2 + 2 * CENTRE_NOISE**2
    off = (coming[:, :2] - leaving[:2] - expected) / size[:, None]
    change = np.log(after.extent[which] / before.extent[number])
    classes = class_difference(before.classes[number], after.classes[which])
    total = (off**2).sum(1) / deviation + (change**2).sum(1) / RESIZED**2 + CLASS_WEIGHT * classes
    possible = (steps >= 1) & (steps <= settings.absence + 1)
    # A few false alarms, far apart in time, would make up a lesion.
    few = np.minimum(before.count[number], after.count[which]) < settings.least_findings
    return np.where(possible & ~(few & (steps > 2 * settings.brief)), total, np.inf)


def _followers(ends: Ends, settings: LinkSettings) -> dict[int, int]:
    """Return the best pairs of tracklets that follow each other (sorted by `first`), by position.

    Tracklets that cannot follow each other, directly or by others, are assigned apart: many of them cost little more
    than few.
    """
    pairs: list[tuple[int, int, float]] = []
    for number, last in enumerate(ends.last):
        begin, stop = np.searchsorted(ends.first, [last + 1, last + settings.absence + 2])
        costs = distances(ends, number, ends, slice(begin, stop), settings)
        pairs += [(number, int(begin + j), float(costs[j])) for j in np.flatnonzero(costs < GATE)]
    if not pairs:
        return {}
    count = len(ends.last)
    rows, columns, costs = (np.array(values) for values in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(rows)), (rows, columns + count)), shape=(2 * count, 2 * count))
    part = connected_components(graph, directed=False)[1][rows]
    follower: dict[int, int] = {}
    for name in np.unique(part):
        here = part == name
        (before, i), (after, j) = (np.unique(values[here], return_inverse=True) for values in (rows, columns))
        table = np.full((len(before), len(after)), np.inf)
        table[i, j] = costs[here]
        follower |= {int(before[row]): int(after[column]) for row, column in assigned(table, GATE)}
    return follower


def _beginning(tracklet: Tracklet) -> Motion:
    """Return the motion at the beginning of a tracklet, as all its findings tell."""
    motion = first_motion(-tracklet.last, tracklet.boxes[-1])  # time runs backwards
    for frame, box in zip(tracklet.frames[-2::-1], tracklet.boxes[-2::-1], strict=True):
        motion = motion.predicted(-frame).corrected(box)
    return motion.reversed()


def _row(motion: Motion) -> np.ndarray:
    return np.array([*motion.centre, *motion.velocity, motion.size])
