"""Questions to a GPU: what is expected of a change before it is measured, and what came out.

The suite writes the expectations into its result file before it measures anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.report.results import Run
from bench.report.summary import ratio, stda_encoder
from bench.report.tables import table
from stnet.kernels.triton.launch_table import Candidate

HEAD_DIM = 32


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A change whose time is compared with that of what it changes.

    Attributes:
        change: of what, and for which kernel.
        predicted: the least and the most that its time is expected to be, as a multiple of the time without it.
        measure: gives that multiple from a GPU run, None where the run does not hold it.
    """

    change: str
    predicted: tuple[float, float]
    measure: Callable[[Run], float | None]


def _benchmarked(changed: str, direction: str) -> Callable[[Run], float | None]:
    return lambda run: ratio(stda_encoder(run, changed, direction), stda_encoder(run, "stnet", direction))


def _tuned(kernel: str, dtype: str, changed: Candidate, against: Candidate) -> Callable[[Run], float | None]:
    """Of two candidates for many queries, as the tuner measured them in one go."""

    def measure(run: Run) -> float | None:
        tuned = (run.stages.get("tuning", {}).get("result") or {}).get("table") or {"rows": []}
        for row in tuned["rows"]:
            key = row["kernel"], row.get("dtypes"), row.get("head_dims"), row.get("many_queries")
            if key == (kernel, [dtype], [HEAD_DIM], True):
                found = [Candidate(**candidate) for candidate in row["candidates"]]
                times = {replace(candidate, milliseconds=None): candidate.milliseconds for candidate in found}
                slow, fast = times.get(changed), times.get(against)
                return slow / fast if slow and fast else None
        return None

    return measure


_PAIRS = Candidate(block_queries=16, block_heads=2, arithmetic="packed")
_BOUNDED = replace(_PAIRS, maxnreg=168, unroll_points=False)
_BACKWARD = Candidate(block_queries=16)

EXPERIMENTS = (
    Experiment(
        change="encoder forward, float16: values stored by heads",
        predicted=(1.05, 1.15),
        measure=_benchmarked("stnet, values by heads", "forward"),
    ),
    Experiment(
        change="encoder forward, float16: 64 queries of two heads in four warps, not 16 in one",
        predicted=(1.0, 1.1),
        measure=_tuned("stda_forward", "float16", replace(_PAIRS, block_queries=64, num_warps=4), _PAIRS),
    ),
    Experiment(
        change="encoder forward, float16: offsets of the next frame loaded before the gathers",
        predicted=(0.9, 1.0),
        measure=_tuned("stda_forward", "float16", replace(_BOUNDED, load_ahead=True), _BOUNDED),
    ),
    Experiment(
        change="encoder backward, float16: without the gradient of values",
        predicted=(0.2, 0.35),
        measure=_benchmarked("stnet, no value gradient", "backward"),
    ),
    Experiment(
        change="encoder backward, bfloat16: programs beside each other take other heads",
        predicted=(0.85, 1.0),
        measure=_tuned("stda_backward", "bfloat16", replace(_BACKWARD, heads_first=True), _BACKWARD),
    ),
    Experiment(
        change="encoder backward, bfloat16: coarse levels summed by the matrix unit",
        predicted=(0.7, 0.85),
        measure=_tuned("stda_backward", "bfloat16", replace(_BACKWARD, summed_cells=512), _BACKWARD),
    ),
)


def predictions() -> list[dict[str, Any]]:
    """Return what is expected, for a result file."""
    return [{"change": experiment.change, "predicted": list(experiment.predicted)} for experiment in EXPERIMENTS]


def experiments_table(run: Run) -> str:
    """Return what a run's file expected before it was measured, and what it measured."""
    known = {experiment.change: experiment for experiment in EXPERIMENTS}
    rows = []
    for prediction in run.predictions:
        experiment, (least, most) = known.get(prediction["change"]), prediction["predicted"]
        measured = None if experiment is None else experiment.measure(run)
        told = "not measured" if measured is None else f"{measured:.2f}"
        rows.append([prediction["change"], f"{least:g} to {most:g}", told])
    return table(["change", "predicted time, of that without", "measured"], rows)
