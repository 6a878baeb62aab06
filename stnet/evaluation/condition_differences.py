"""How far one model is ahead of another on small lesions, several lesions and other machines.

Both are judged on the same stills, so that what makes a still hard for both cancels: intervals of a difference, by
resampling patients, are narrower than those of the figures that it is made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stnet.evaluation.bootstrap import SAMPLES, bootstrap_intervals
from stnet.evaluation.coco import ALL_AREAS, FALSE_POSITIVE_IOU, ScoredFrame, in_order, merge_classes
from stnet.evaluation.image_metrics import SMALL, Figure
from stnet.evaluation.matches import Matches, average_precision, match

Predictions = Mapping[str, Sequence[ScoredFrame]]
"""Predictions on the same stills, by condition."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a difference is told of: class-agnostic average precision at IoU 0.5, mean over conditions.

    Attributes:
        conditions: names, see `stnet.evaluation.conditions.CONDITIONS`.
        area: share of the frame that a lesion covers to count.
    """

    conditions: tuple[str, ...]
    area: tuple[float, float] = ALL_AREAS


MEASURES = {
    "unchanged": Measure(conditions=("unchanged",)),
    "other machines": Measure(conditions=("gain x 0.5", "gain x 1.7", "range cut", "other grain")),
    "small lesions": Measure(conditions=("half the size",), area=(0.0, SMALL)),
    "several lesions": Measure(conditions=("beside its mirror image",)),
}


def differences(
    first: Predictions, second: Predictions, patients: Mapping[str, str], *, samples: int = SAMPLES
) -> dict[str, Figure]:
    """Subtract what the first model reaches from what the second does, for every measure that both were evaluated for.

    Args:
        first: of the model that is compared with.
        second: of the other, on the same stills.
        patients: by name of the still, where stated; intervals are drawn from them, or else from stills.
        samples: of the bootstrap; 0 leaves the intervals out.
    """
    measures = [name for name, measure in MEASURES.items() if {*measure.conditions} <= first.keys() & second.keys()]
    tables = {name: [_matched(of, MEASURES[name]) for of in (first, second)] for name in measures}

    def figures(weights: np.ndarray) -> dict[str, float | None]:
        return {name: _difference(*pair, weights) for name, pair in tables.items()}

    stills = in_order(first["unchanged"])
    values = figures(np.ones(len(stills)))
    groups = [patients.get(still.video, f"still {still.video}") for still in stills]
    intervals = bootstrap_intervals(figures, groups, samples=samples) if samples else {}
    return {name: Figure(value=value, interval=intervals.get(name)) for name, value in values.items()}


def _matched(predictions: Predictions, measure: Measure) -> list[Matches]:
    """Match the detections of a model under every condition of a measure."""
    merged = [[merge_classes(frame) for frame in in_order(predictions[name])] for name in measure.conditions]
    return [match(frames, 1, ious=(FALSE_POSITIVE_IOU,), area=measure.area) for frames in merged]


def _difference(first: Sequence[Matches], second: Sequence[Matches], weights: np.ndarray) -> float | None:
    reached = [[average_precision(matches, 0, weights) for matches in model] for model in (first, second)]
    if any(value is None for model in reached for value in model):
        return None
    return float(np.mean(reached[1]) - np.mean(reached[0]))
