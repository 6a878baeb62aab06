"""Intervals of figures by resampling patients: stills of one person are not independent of each other."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SAMPLES = 1000
LEVEL = 0.95


def bootstrap_intervals(
    figures: Callable[[np.ndarray], Mapping[str, float | None]], groups: Sequence[str], *, samples: int = SAMPLES
) -> dict[str, tuple[float, float] | None]:
    """Estimate 95 % intervals (percentile bootstrap).

    Args:
        figures: computes all figures with every image counted by its weight `[N]`; None where a figure does not exist.
        groups: `[N]` the patient of every image, or something unique to the image where none is known.
        samples: how often the groups are drawn, with replacement; the draws are the same every time.

    Returns:
        By figure: lower and upper end; None where it exists in fewer than half of the samples, or only in those that
        drew one and the same group: of one patient alone the samples are all equal, as if nothing could vary.
    """
    names, group = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    needed: dict[str, np.ndarray] = {}  # by figure, groups that no sample in which it exists is without
    for _ in range(samples):
        counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        for name, value in figures(counts[group].astype(float)).items():
            drawn.setdefault(name, [])
            if value is not None:
                drawn[name].append(value)
                needed[name] = needed.get(name, True) & (counts > 0)
    tail = 100 * (1 - LEVEL) / 2
    return {
        name: tuple(np.percentile(values, (tail, 100 - tail)).tolist())
        if 2 * len(values) >= samples and not needed[name].any()
        else None
        for name, values in drawn.items()
    }
