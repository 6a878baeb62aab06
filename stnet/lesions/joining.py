"""Tracklets of the same lesion before and after it was out of sight.

A lesion that leaves the view comes back near to where it went, about as large, and of the same class. For a short
absence it has moved on with its velocity; the longer it is away, the less that says, and the farther it may have moved,
up to its own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    """What of a tracklet says which others are the same lesion.

    Attributes:
        coming: where it was and how it moved in its first frame, as all its findings tell.
        leaving: the same in its last frame.
        extent: its usual width and height, `[2]` in pixels.
        classes: its mean class scores `[classes]`.
        count: in how many frames it was found.
    """

    coming: Motion
    leaving: Motion
    extent: np.ndarray
    classes: np.ndarray
    count: int


def ends_of(tracklet: Tracklet) -> Ends:
    """Return the ends of a tracklet."""
    boxes = np.array(tracklet.boxes)
    coming = first_motion(-tracklet.last, tracklet.boxes[-1])  # time runs backwards
    for frame, box in zip(tracklet.frames[-2::-1], tracklet.boxes[-2::-1], strict=True):
        coming = coming.predicted(-frame).corrected(box)
    return Ends(
        coming=coming.reversed(),
        leaving=tracklet.motion,
        extent=np.median(boxes[:, 2:] - boxes[:, :2], axis=0),
        classes=np.mean(tracklet.scores, axis=0),
        count=len(tracklet.frames),
    )


def joined(tracklets: Sequence[Tracklet], settings: LinkSettings) -> list[list[Tracklet]]:
    """Return tracklets in groups, each one lesion in the order of time; groups in the order they appear.

    The sum of the distances at all joints is the least possible (an assignment of ends to beginnings).
    """
    order = sorted(tracklets, key=lambda tracklet: (tracklet.frames[0], tracklet.last))
    if not order:
        return []
    ends = [ends_of(tracklet) for tracklet in order]
    costs = np.array([[distance(before, after, settings) for after in ends] for before in ends])
    follower = dict(assigned(costs, GATE))
    groups = []
    for start in sorted(set(range(len(order))) - set(follower.values())):
        group, position = [order[start]], start
        while position in follower:
            position = follower[position]
            group.append(order[position])
        groups.append(group)
    return groups


def distance(before: Ends, after: Ends, settings: LinkSettings) -> float:
    """Return how unlikely it is that a tracklet is a former one's lesion come back; infinite where it cannot be.

    In squared standard deviations: of the place, of width and height, and of the classes.
    """
    leaving, coming = before.leaving, after.coming
    steps = coming.frame - leaving.frame
    if not 1 <= steps <= settings.absence + 1:
        return np.inf
    if steps > 2 * settings.brief and min(before.count, after.count) < settings.least_findings:
        return np.inf  # a few false alarms, far apart in time, would make up a lesion
    size = np.sqrt(leaving.size * coming.size)
    fading = np.exp(-max(0, steps - settings.brief) / max(settings.brief, 1))
    expected = (leaving.velocity + coming.velocity) / 2 * steps * fading
    deviation = min(WANDER * steps, FARTHEST) ** 2 + 2 * CENTRE_NOISE**2
    place = (((coming.centre - leaving.centre - expected) / size) ** 2).sum() / deviation
    change = (np.log(after.extent / before.extent) ** 2).sum() / RESIZED**2
    return float(place + change + CLASS_WEIGHT * class_difference(before.classes, after.classes))
