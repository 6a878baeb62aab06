"""Figures in Markdown pages between markers, written from result files and compared with them.

<!-- figures:inference -->
...
<!-- /figures -->
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.report import conditions, lesions, machine_code, processor, recipes, shipped_model, summary, tables
from bench.report.results import Run
from stnet.errors import DataError

MARKED = re.compile(r"(<!-- figures:(\S+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)
OPENING = re.compile(r"<!-- figures:\S+ -->")

Block = Callable[[Run], str]


def _machine(run: Run) -> str:
    return f"Measured on {tables.machine_line(run.machine)}."


def _operators(run: Run) -> str:
    return _operator_rows(run, "stda")


def _classic(run: Run) -> str:
    return _operator_rows(run, "msda")


def _operator_rows(run: Run, operator: str) -> str:
    """Return the operator at trained-like positions, batch 1: time and ratio to the baseline, own and others'."""
    rows = []
    baseline_name = tables.BASELINES[operator]
    for case, members in tables.grouped(
        run.select(suite="operators", operator=operator, positions="near", batch=1),
        lambda m: (m["layer"], m["direction"], m["dtype"]),
    ).items():
        baseline = next((m for m in members if m["implementation"] == baseline_name), None)
        for i, m in enumerate(sorted(members, key=lambda m: m.seconds)):
            ratio = tables.speedup(m, baseline)
            faster = "" if ratio is None else tables.times(ratio)
            rows.append(["" if i else ", ".join(case), m["implementation"], tables.milliseconds(m.seconds), faster])
    return tables.table(["layer", "implementation", "time", f"vs {baseline_name}"], rows)


def _headline(run: Run, folder: Path) -> str:
    """Return the figures that stand for all the others, one line each."""
    layers = {
        "encoder attention, forward": ("encoder", "forward"),
        "encoder attention, backward": ("encoder", "backward"),
        "decoder attention, forward": ("decoder", "forward"),
    }
    rows = []
    for title, (layer, direction) in layers.items():
        case = {"operator": "stda", "positions": "near", "batch": 1, "layer": layer, "direction": direction}
        baseline = run.find(suite="operators", implementation=tables.PUBLISHED, **case)
        own = run.find(suite="operators", implementation="stnet", **case)
        if own and (ratio := tables.speedup(own, baseline)):
            rows.append([title, f"{tables.milliseconds(own.seconds)} ({own['dtype']})", tables.times(ratio)])
    video = run.find(suite="inference", implementation="stnet", mode="whole video", batch=1)
    single = run.find(suite="inference", implementation=tables.PUBLISHED, mode="single frame", batch=1)
    if video and single:
        rate, gain = tables.frames_per_second(video), tables.rate_gain(video, single)
        rows.append(["whole video, the published model", f"{rate:.3g} frames/s", tables.times(gain)])
    counted = machine_code.headline(folder)
    if counted:
        own_count, peer, peer_count = counted
        rows.append(
            [
                "classic operator on an H100, float16: warp instructions per sample, counted",
                f"{own_count:.1f}",
                f"{peer_count / own_count:.2g}x fewer than {peer}",
            ]
        )
    found = shipped_model.headline(folder)
    if found:
        recall, false = found
        rows.append(["shipped model: lesions found in unseen stills, false positives an image", f"{recall} %", false])
    where = run.machine["gpu"]["name"] if run.on_gpu else f"{run.machine.get('cores', '?')} CPU cores"
    return tables.table([f"on {where}", "stnet", "against the published code over grid_sample"], rows)


BLOCKS: dict[str, Block] = {
    "machine": _machine,
    "operators": _operators,
    "classic": _classic,
    "layers": tables.layer_table,
    "inference": tables.inference_table,
    "live": tables.live_table,
    "training": tables.training_table,
    "growth": tables.growth_table,
}
FILES: dict[str, Callable[[Path], str]] = {
    "recipes": recipes.sections,
    "machine_code": machine_code.section,
    "model": shipped_model.section,
    "conditions": conditions.section,
    "recipe_conditions": partial(conditions.comparison, file=conditions.RECIPES_FILE),
    "continued_conditions": partial(conditions.comparison, file=conditions.CONTINUED_FILE),
    "equal_time_conditions": partial(conditions.comparison, file=conditions.EQUAL_TIME_FILE),
    "unseen_means_conditions": partial(conditions.comparison, file=conditions.UNSEEN_MEANS_FILE),
    "unseen_conditions": partial(conditions.comparison, file=conditions.UNSEEN_FILE),
    "malignancy": lesions.malignancy,
    "tracking": lesions.tracking,
    "processor": processor.section,
}
"""Blocks of result files that are of no run of the suites."""

TARGETS, HEADLINE = "targets", "headline"


def block(name: str, runs: Sequence[Run], folder: Path) -> str:
    """Return the Markdown of one marker, for the GPU and the CPU where both were measured.

    Args:
        name: of the marker.
        runs: measured machines.
        folder: of the result files.

    Raises:
        DataError: an unknown name.
    """
    gpu = next((run for run in runs if run.on_gpu), None)
    if name == TARGETS:
        return summary.targets_table(runs) + "\n"
    if name in FILES:
        return FILES[name](folder) + "\n"
    if name == HEADLINE:
        text = _headline(gpu or runs[0], folder)
        return text + "\n" + ("" if gpu else "\nNo GPU has confirmed any statement about GPUs.\n")
    if name not in BLOCKS:
        known = ", ".join([*BLOCKS, *FILES, TARGETS, HEADLINE])
        raise DataError(f"no figures named {name!r}; known are {known}")
    parts = [text for run in runs if (text := BLOCKS[name](run))]
    if gpu is None or not BLOCKS[name](gpu):
        parts.append(f"({tables.UNCONFIRMED[0].upper()}{tables.UNCONFIRMED[1:]}.)")
    return "\n\n".join(parts) + "\n"


def fill(text: str, runs: Sequence[Run], folder: Path) -> str:
    """Return a README's text with every marked part as the runs have it.

    Raises:
        DataError: an unknown name, or a marker that is not closed.
    """
    if len(OPENING.findall(text)) != len(MARKED.findall(text)):
        raise DataError("a <!-- figures:NAME --> marker has no <!-- /figures --> after it, or shares its line")
    return MARKED.sub(lambda match: f"{match[1]}{block(match[2], runs, folder)}{match[4]}", text)


def disagreements(text: str, runs: Sequence[Run], folder: Path) -> list[str]:
    """Names of the marked parts that differ from what the runs say."""
    fill(text, runs, folder)  # raises for markers that cannot be filled
    return [match[2] for match in MARKED.finditer(text) if match[3] != block(match[2], runs, folder)]
