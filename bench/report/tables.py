"""Results as Markdown tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.report.results import Measurement, Run, grouped

UNCONFIRMED = "unconfirmed on a GPU"
OPERATORS = {"stda": "Spatial-temporal operator", "msda": "Classic operator"}
BASELINES = {"stda": "published over grid_sample", "msda": "reference"}
PUBLISHED = "published over grid_sample"
AXES = {"frames of the video": 1, "pixels of the image": 1e4, "clips of the batch": 1, "queries of the decoder": 100}
"""What cost is fitted against, and the unit of the slope."""

FEWEST_POINTS = 3  # a line through two points fits always


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left-aligned, the others right-aligned."""
    if not rows:
        return ""
    lines = [headers, [":--", *["--:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine_line(m: Mapping[str, Any]) -> str:
    """Device, date, versions and commit of a machine in a sentence."""
    gpu = m.get("gpu")
    where = f"{gpu['name']} ({gpu['memory_gib']:g} GiB), CUDA {gpu['cuda']}" if gpu else "CPU"
    versions = ", ".join(f"{name} {number}" for name, number in m.get("versions", {}).items())
    return (
        f"{where}; {m.get('cpu', '?')}, {m.get('cores', '?')} cores, {m.get('threads', '?')} threads; Python "
        f"{m.get('python', '?')}, {versions}; commit {m.get('commit', '?')}; {m.get('date', '?')}"
    )


def limits_line(run: Run) -> str:
    """Return the rates that fractions are fractions of."""
    limits = run.machine.get("limits", {})
    parts = [f"copy {limits['copy'] / 1e9:.0f} GB/s"] if "copy" in limits else []
    for key, rate in limits.items():
        if key.startswith("matmul_"):
            parts.append(f"{key.removeprefix('matmul_')} products {rate / 1e12:.3g} TFLOP/s")
    if "l1" in limits:
        parts.append(f"L1 (nominal) {limits['l1'] / 1e12:.1f} TB/s")
    return ", ".join(parts)


def fractions(run: Run, m: Measurement) -> dict[str, float]:
    """Share of each limit that a measurement with counted work reached: copy, gather, arithmetic."""
    work, limits = m["work"], run.machine.get("limits", {})
    if not work:
        return {}
    rates = {"copy": ("compulsory", "copy"), "gather": ("gathered", "l1"), "arithmetic": ("flops", "matmul_float32")}
    return {
        name: work[count] / m.seconds / limits[limit] for name, (count, limit) in rates.items() if limits.get(limit)
    }


def speedup(m: Measurement, baseline: Measurement | None) -> float | None:
    """Baseline time over own time: taken in turn within one benchmark where that was done, else of the medians."""
    if baseline is None or m is baseline:
        return 1.0 if m is baseline else None
    if m["ratio"] and m["baseline"] == baseline["implementation"]:
        return m["ratio"][1]
    return baseline.seconds / m.seconds


def operator_tables(run: Run, operator: str, direction: str) -> str:
    """Every implementation of one operator in one direction, case by case."""
    chosen = run.select(suite="operators", operator=operator, direction=direction)
    rows = []
    for case, members in grouped(chosen, lambda m: (m["layer"], m["positions"], m["dtype"], m["batch"])).items():
        baseline = next((m for m in members if m["implementation"] == BASELINES[operator]), None)
        label = f"{case[0]}, {case[1]}, {case[2]}, batch {case[3]}"
        for m in sorted(members, key=lambda m: m.seconds):
            rows.append([label, m["implementation"], *_times(m), _times_faster(speedup(m, baseline))])
            rows[-1] += [_error(m["error"]), _megabytes(m["peak_bytes"]), *_shares(run, m)]
            label = ""
    headers = ["case", "implementation", "time", "hot L2", f"vs {BASELINES[operator]}", "error", "peak"]
    return _without_empty_columns([*headers, "copy", "gather", "arithmetic"], rows)


def layer_table(run: Run) -> str:
    """Return the table of encoder and decoder layers."""
    rows = []
    members = run.select(suite="layers")
    for case, group in grouped(members, lambda m: (m["layer"], m["direction"], m["dtype"], m["batch"])).items():
        baseline = next((m for m in group if m["implementation"] == PUBLISHED), None)
        label = f"{case[0]} {case[1]}, {case[2]}, batch {case[3]}"
        for m in sorted(group, key=lambda m: m.seconds):
            rows.append([label, m["implementation"], *_times(m), _times_faster(speedup(m, baseline))])
            rows[-1] += [_error(m["error"]), _megabytes(m["peak_bytes"])]
            label = ""
    headers = ["layer", "implementation", "time", "hot L2", f"vs {PUBLISHED}", "error", "peak"]
    return _without_empty_columns(headers, rows)


def frames_per_second(m: Measurement) -> float:
    """Predicted frames per second of wall time."""
    return m["frames"] / m.stats["median"]


def rate_gain(m: Measurement, other: Measurement) -> float:
    """Frames per second over another mode's. Where both were timed in turn with the same baseline, by those ratios."""
    baseline = f"{PUBLISHED}, single frame"
    if all(x["ratio"] is None or x["baseline"] == baseline for x in (m, other)) and (m["ratio"] or other["ratio"]):
        own, its = (x["ratio"][1] * x["frames"] if x["ratio"] else float(x["frames"]) for x in (m, other))
        return own / its
    return frames_per_second(m) / frames_per_second(other)


def inference_table(run: Run) -> str:
    """Frames per second of every mode, against the published formulation and against our own single-frame mode."""
    rows = []
    for case, group in grouped(run.select(suite="inference"), lambda m: (m["dtype"], m["batch"])).items():
        published = _find(group, PUBLISHED, "single frame")
        single = _find(group, "stnet", "single frame")
        label = f"{case[0]}, batch {case[1]}"
        for m in group:
            own = m["implementation"] == "stnet"
            rows.append([label, f"{m['mode']}, {m['implementation']}", f"{frames_per_second(m):.3g}"])
            rows[-1].append(_times_faster(rate_gain(m, published)) if published else "")
            rows[-1].append(_times_faster(rate_gain(m, single)) if own and single else "")
            rows[-1] += [_error(m["error"]), _megabytes(m["peak_bytes"])]
            label = ""
    headers = ["case", "mode", "frames/s", "vs published single frame", "vs own single frame", "error", "peak"]
    return _without_empty_columns(headers, rows)


def live_table(run: Run) -> str:
    """Latencies of the live mode, from a frame's arrival to its result."""
    rows = [
        [
            f"{m['dtype']}, {m['rate']:g} frames/s",
            milliseconds(m["latency_median"]),
            milliseconds(m["latency_99"]),
            f"{m['dropped']} of {m['frames'] + m['dropped']}",
        ]
        for m in run.select(suite="live")
    ]
    return table(["live feed", "median", "99th percentile", "dropped"], rows)


def training_table(run: Run) -> str:
    """Clips per second of a training step."""
    rows = []
    for (dtype, model), group in grouped(run.select(suite="training"), lambda m: (m["dtype"], m["model"])).items():
        baseline = next((m for m in group if m["implementation"] == PUBLISHED), None)
        for m in sorted(group, key=lambda m: m.seconds):
            rate = m["batch"] / m.stats["median"]
            rows.append([f"{model}, {dtype}, batch {m['batch']}", m["implementation"], f"{rate:.3g}"])
            rows[-1] += [_times_faster(speedup(m, baseline)), _megabytes(m["peak_bytes"])]
    return _without_empty_columns(["step", "implementation", "clips/s", f"vs {PUBLISHED}", "peak"], rows)


def costs(points: Sequence[Measurement]) -> list[float]:
    """Seconds at each size, in the order of sizes.

    Where sizes were timed in turn with the smallest, its time multiplied by the ratios: what slows a machine down
    for a while then slows both.
    """
    first = points[0].stats["median"]
    return [first / m["ratio"][1] if m["ratio"] else m.stats["median"] for m in points]


def fit(points: Sequence[Measurement]) -> dict[str, Any]:
    """Least-squares line of cost over amount: slope, intercept, R2 and residuals relative to the line."""
    amounts = np.array([m["amount"] for m in points], dtype=float)
    seconds = np.array(costs(points))
    slope, intercept = np.polyfit(amounts, seconds, 1)
    line = slope * amounts + intercept
    spread = ((seconds - seconds.mean()) ** 2).sum()
    r2 = 1.0 - ((seconds - line) ** 2).sum() / spread if spread else math.nan
    residuals = ((seconds - line) / line).tolist()
    return {"slope": slope, "intercept": intercept, "r2": r2, "residuals": residuals}


def growth_table(run: Run) -> str:
    """Linear fits of cost against the size of the problem."""
    rows = []
    for (axis, dtype), points in grouped(run.select(suite="growth"), lambda m: (m["axis"], m["dtype"])).items():
        if len(points) < FEWEST_POINTS:
            continue
        line, unit = fit(points), AXES[axis]
        amounts = ", ".join(f"{m['amount']:g}" for m in points)
        slope = f"{line['slope'] * unit * 1e3:.3g} ms per {unit:g}"
        residuals = ", ".join(f"{100 * r:+.1f}" for r in line["residuals"])
        fixed = f"{line['intercept'] * 1e3:.3g} ms"
        rows.append([axis, dtype, amounts, slope, fixed, f"{line['r2']:.4f}", f"{residuals} %"])
    return table(["cost over", "dtype", "measured at", "slope", "fixed", "R²", "residuals"], rows)


def host_table(run: Run) -> str:
    """Host time of one call of each operator: minima of thread CPU time, and as multiples of an empty operator's."""
    measured = sorted(run.select(suite="host time"), key=lambda m: m.stats["min"])
    empty = next((m.stats["min"] for m in measured if m["implementation"] == "empty custom_op"), math.nan)
    rows = [[m["implementation"], f"{m.stats['min'] * 1e6:.1f}", f"{m.stats['min'] / empty:.2f}"] for m in measured]
    return table(["call", "microseconds", "times `empty custom_op`"], rows)


def without_time_table(run: Run) -> str:
    """Return what could not be measured: missing packages once, then every failed or skipped benchmark by reason."""
    rows = [[name, "missing", reason] for name, reason in run.machine.get("missing", {}).items()]
    counts: dict[tuple[str, str], list[str]] = {}
    for entry in run.without_time:
        if not entry["reason"].startswith("missing"):
            counts.setdefault((entry["outcome"], entry["reason"]), []).append(entry["benchmark"])
    for (outcome, reason), names in counts.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        rows.append([f"`{names[0]}`{more}", outcome, reason])
    return table(["what", "outcome", "reason"], [[a, b, c.replace("|", "/")] for a, b, c in rows])


def _find(group: Sequence[Measurement], implementation: str, mode: str) -> Measurement | None:
    return next((m for m in group if m["implementation"] == implementation and m["mode"] == mode), None)


def _times(m: Measurement) -> list[str]:
    return [milliseconds(m.seconds), milliseconds(m["device_hot"]) if m["device_hot"] else ""]


def times(ratio: float) -> str:
    """Return a ratio as text, two digits or whole."""
    return f"{ratio:.2g}x" if ratio < 99.5 else f"{ratio:.0f}x"


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _times_faster(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x" if ratio < 100 else f"{ratio:.0f}x"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"


def _shares(run: Run, m: Measurement) -> list[str]:
    reached = fractions(run, m)
    return [f"{100 * reached[name]:.2g} %" if name in reached else "" for name in ("copy", "gather", "arithmetic")]


def _without_empty_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    return table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])
