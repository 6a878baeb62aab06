"""Short text: what a suite run came to, the targets of a GPU and whether they are met."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.results import Measurement, Run
from bench.report.tables import PUBLISHED, UNCONFIRMED, frames_per_second, machine_line, milliseconds, table

# The same operator, compiled from its authors' checkout or from the package that was made of it.
CLASSIC_CUDA = "published over Deformable DETR CUDA", "published over torch-ms-deform-attn"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A claim about one H100: `measure` gives the figure from a GPU run, None where the run does not hold it."""

    text: str
    unit: str
    met: Callable[[float], bool]
    measure: Callable[[Run], float | None]


def stda_encoder(run: Run, implementation: str, direction: str, dtype: str = "float16") -> Measurement | None:
    """Return the encoder's layer on one clip, None where it was not measured."""
    return run.find(
        operator="stda",
        layer="encoder",
        positions="near",
        batch=1,
        implementation=implementation,
        direction=direction,
        dtype=dtype,
    )


def ratio(slow: Measurement | None, fast: Measurement | None) -> float | None:
    """How many times one takes the other's time, None where one of them is missing."""
    return slow.seconds / fast.seconds if slow and fast else None


def _stda_milliseconds(run: Run) -> float | None:
    own = stda_encoder(run, "stnet", "forward")
    return own.seconds * 1e3 if own else None


def _against_classic(direction: str) -> Callable[[Run], float | None]:
    def measure(run: Run) -> float | None:
        found = (stda_encoder(run, name, direction) for name in CLASSIC_CUDA)
        return ratio(next(filter(None, found), None), stda_encoder(run, "stnet", direction))

    return measure


def _against_peer(peer: str, direction: str) -> Callable[[Run], float | None]:
    """Return the least favourable of the classic operator's cases."""

    def measure(run: Run) -> float | None:
        ratios = []
        for own in run.select(operator="msda", implementation="stnet", direction=direction):
            keys = ("layer", "positions", "dtype", "batch")
            other = run.find(
                operator="msda", implementation=peer, direction=direction, **{key: own[key] for key in keys}
            )
            ratios += [ratio(other, own)] if other else []
        return min(ratios, default=None)

    return measure


def _best_rate(run: Run, implementation: str) -> float | None:
    rates = [frames_per_second(m) for m in run.select(suite="inference", implementation=implementation)]
    return max(rates, default=None)


def _rate_against_published(run: Run) -> float | None:
    published = [frames_per_second(m) for m in run.select(suite="inference") if m["implementation"] != "stnet"]
    best = _best_rate(run, "stnet")
    return best / max(published) if published and best else None


def _shuffle_gain(run: Run) -> float | None:
    def rate(mode: str) -> float | None:
        m = run.find(suite="inference", implementation="stnet", mode=mode, batch=1)
        return frames_per_second(m) if m else None

    single, shuffled = rate("single frame"), rate("encoder shuffle")
    return shuffled / single if single and shuffled else None


def _live_milliseconds(run: Run) -> float | None:
    m = run.find(suite="live", size="paper")
    return m["latency_median"] * 1e3 if m else None


def _training_gain(run: Run) -> float | None:
    own = run.find(suite="training", implementation="stnet")
    if own is None:
        return None
    others = [m for m in run.select(suite="training", dtype=own["dtype"]) if m["implementation"] != "stnet"]
    return min(m.stats["median"] for m in others) / own.stats["median"] if others else None


def _memory_share(run: Run) -> float | None:
    own = run.find(suite="training", implementation="stnet")
    other = run.find(suite="training", implementation=PUBLISHED, dtype=own["dtype"]) if own else None
    return own["peak_bytes"] / other["peak_bytes"] if other and other["peak_bytes"] else None


TARGETS = (
    Target(
        text="encoder-layer STDA forward, one 512 x 512 clip, float16: at most 0.35 ms",
        unit=" ms",
        met=lambda x: x <= 0.35,
        measure=_stda_milliseconds,
    ),
    Target(
        text="the same against the published formulation over the classic CUDA operator: at least 5x",
        unit="x",
        met=lambda x: x >= 5,
        measure=_against_classic("forward"),
    ),
    Target(
        text="its backward pass against the same: at least 3x",
        unit="x",
        met=lambda x: x >= 3,
        measure=_against_classic("backward"),
    ),
    *(
        Target(
            text=f"classic operator against {peer}, {direction}, in every case: faster",
            unit="x",
            met=lambda x: x > 1,
            measure=_against_peer(peer, direction),
        )
        for peer in ("deformops", "msda-triton")
        for direction in ("forward", "backward")
    ),
    Target(
        text="inference at 512 x 512, best setting: at least 500 frames per second",
        unit=" frames/s",
        met=lambda x: x >= 500,
        measure=lambda run: _best_rate(run, "stnet"),
    ),
    Target(
        text="the same against the published formulation's best: at least 10x",
        unit="x",
        met=lambda x: x >= 10,
        measure=_rate_against_published,
    ),
    Target(
        text="encoder shuffle against single frame: at least 2.5x",
        unit="x",
        met=lambda x: x >= 2.5,
        measure=_shuffle_gain,
    ),
    Target(
        text="live mode at 512 x 512, a feed of 30 frames per second: median latency under 15 ms",
        unit=" ms",
        met=lambda x: x < 15,
        measure=_live_milliseconds,
    ),
    Target(
        text="training step against the published formulation: at least 4x",
        unit="x",
        met=lambda x: x >= 4,
        measure=_training_gain,
    ),
    Target(
        text="its peak memory as a share of the published formulation's: at most 0.5",
        unit="",
        met=lambda x: x <= 0.5,
        measure=_memory_share,
    ),
)


def targets_table(runs: Sequence[Run]) -> str:
    """Every target with the figure measured on each GPU, or that it is unconfirmed."""
    gpus = [run for run in runs if run.on_gpu]
    heads = [run.machine["gpu"]["name"] for run in gpus] or ["measured"]
    rows = [[target.text, *([_judged(target, run) for run in gpus] or [UNCONFIRMED])] for target in TARGETS]
    return table(["target, one H100", *heads], rows)


def _judged(target: Target, run: Run) -> str:
    figure = target.measure(run)
    if figure is None:
        return UNCONFIRMED
    return f"{figure:.3g}{target.unit}, {'met' if target.met(figure) else 'missed'}"


def stage_line(name: str, stage: dict[str, Any]) -> str:
    """One line about a stage of the suite."""
    reason = f": {stage['reason']}" if stage.get("reason") else ""
    return f"{stage['status']} in {stage['seconds']:.0f} s{reason}{_detail(stage.get('result') or {})}"


def suite_summary(run: Run) -> str:
    """Return the short table a suite run ends with."""
    lines = [machine_line(run.machine)] if run.machine else []
    lines += [f"{name:14} {stage_line(name, stage)}" for name, stage in run.stages.items()]
    for direction in ("forward", "backward"):
        rows = run.select(operator="stda", layer="encoder", positions="near", batch=1, direction=direction)
        times = [f"{m['implementation']} {m['dtype']} {milliseconds(m.seconds)}" for m in rows]
        lines += [f"STDA encoder {direction}: {'; '.join(times)}"] if times else []
    rates = [f"{m['mode']} {m['implementation']} {frames_per_second(m):.3g}" for m in run.select(suite="inference")]
    lines += [f"frames/s: {'; '.join(rates)}"] if rates else []
    return "\n".join([*lines, "", targets_table([run])])


def _detail(result: dict[str, Any]) -> str:
    if "counts" in result:
        return " (" + (", ".join(f"{n} {kind.lower()}" for kind, n in result["counts"].items()) or "no tests") + ")"
    if "benchmarks" in result:
        return f" ({len(result['benchmarks'])} timed, {len(result['without_time'])} without time)"
    if "epochs" in result:
        return f" ({result['steps']} steps, {len(result['epochs'])} epochs)"
    return f" ({result['note']})" if "note" in result else ""
