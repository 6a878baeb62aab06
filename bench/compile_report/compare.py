"""Regressions of a fresh report against a committed one."""

from collections.abc import Iterable
from typing import Any

from stnet.errors import ConfigError

TOLERANCE = 0.02  # of a count per sample: below, the compiler's whims
CORNERS = 4
_KEY = ("kernel", "layer", "dtype", "head_dim", "candidate", "target")


def key_of(row: dict[str, Any]) -> str:
    """Return what identifies a row, in one line."""
    return " ".join(f"D={row[name]}" if name == "head_dim" else str(row[name]) for name in _KEY)


def compare(fresh: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """One line per regression, each naming its row; empty where there is none.

    Rows of the committed report are expected again where the fresh one covers their kernel, layer, dtype, head width
    and target; a report of defaults alone is compared with the committed defaults.
    """
    old = {key_of(row): row for row in committed["rows"]}
    new = {key_of(row): row for row in fresh["rows"]}
    found = [f"{key}: not in the committed report, renew it" for key in new if key not in old]
    covered = {_scope(row) for row in fresh["rows"]}
    defaults_only = all(row["default"] for row in fresh["rows"])
    for key, row in old.items():
        if key in new:
            found += [f"{key}: {what}" for what in _regressions(new[key], row)]
        elif _scope(row) in covered and (row["default"] or not defaults_only):
            found.append(f"{key}: no longer a candidate, renew the committed report")
    return found


def differences(fresh: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """One line per row of both reports in which anything differs, better or worse, each naming its row."""
    old = {key_of(row): row for row in committed["rows"]}
    found = []
    for row in fresh["rows"]:
        before = old.get(key_of(row), row)
        changed = [name for name in before | row if before.get(name) != row.get(name)]
        if changed:
            told = ", ".join(f"{name} {before.get(name)} -> {row.get(name)}" for name in changed)
            found.append(f"{key_of(row)}: {told}")
    return found


def merge(fresh: dict[str, Any], committed: dict[str, Any]) -> dict[str, Any]:
    """Return the committed report with the rows that the fresh one covers replaced, and its peers where it has any.

    Raises:
        ConfigError: the two were compiled by different versions of Triton.
    """
    if fresh["triton"] != committed["triton"]:
        raise ConfigError(
            f"the report was compiled by Triton {committed['triton']}, this run by {fresh['triton']}: renew it whole, "
            "with --all --output"
        )
    new = {key_of(row) for row in fresh["rows"]}
    covered = {_scope(row) for row in fresh["rows"]}
    defaults_only = all(row["default"] for row in fresh["rows"])
    kept = [
        row
        for row in committed["rows"]
        if key_of(row) not in new and (_scope(row) not in covered or (defaults_only and not row["default"]))
    ]
    rows = sorted([*fresh["rows"], *kept], key=lambda row: (*map(str, _scope(row)), not row["default"]))
    peers = fresh["peers"] if any("missing" not in peer for peer in fresh["peers"]) else committed["peers"]
    return {"triton": fresh["triton"], "rows": rows, "peers": peers}


def unsound(report: dict[str, Any]) -> list[str]:
    """One line per row whose count cannot be trusted: it does not read (and add to) four corner rows per sample."""
    return [
        f"{key_of(row)}: {name} is {row[name]}, not {CORNERS}: the count does not follow the kernel"
        for row in report["rows"]
        for name in ("gathered_rows", "reduced_rows")
        if name in row and abs(row[name] - CORNERS) > CORNERS * TOLERANCE
    ]


def notes(fresh: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """Differences of versions, which explain differences of counts."""
    if fresh["triton"] == committed["triton"]:
        return []
    return [f"compiled by Triton {fresh['triton']}, the committed report by {committed['triton']}: counts may differ"]


def _scope(row: dict[str, Any]) -> tuple:
    return tuple(row[name] for name in _KEY if name != "candidate")


def _regressions(new: dict[str, Any], old: dict[str, Any]) -> Iterable[str]:
    if "error" in new or "error" in old:
        if "error" not in old:
            yield f"no longer compiles: {new['error']}"
        return
    for name, what in (("spill_instructions", "spill instructions"), ("stack_bytes", "bytes of stack")):
        if new[name] > old[name]:
            yield f"{what} {old[name]} -> {new[name]} ({old['registers']} -> {new['registers']} registers)"
    if new["shared_bytes"] > old["shared_bytes"] * (1 + TOLERANCE):
        yield f"shared memory {old['shared_bytes']} -> {new['shared_bytes']} bytes"
    if "instructions" in old:
        if new["instructions"] > old["instructions"] * (1 + TOLERANCE):
            yield f"warp instructions per sample {old['instructions']} -> {new['instructions']}"
        yield from _narrower("gathers", new["gathers"], old["gathers"])
        yield from _narrower("reductions", new["reductions"], old["reductions"])
    else:
        yield from _narrower("loads", new["static_loads"], old["static_loads"])


def _narrower(name: str, new: dict[str, float], old: dict[str, float]) -> Iterable[str]:
    """Yield accesses whose vectors lost width."""
    before, after = _mean_width(old), _mean_width(new)
    if before and after < before * (1 - TOLERANCE):
        yield f"narrower {name}: {old} -> {new}"


def _mean_width(accesses: dict[str, float]) -> float:
    """Mean width of accesses keyed by bytes (`16`) or by type and vector length (`F32x4`)."""
    total = sum(accesses.values())
    widths = {key: int(key) if key.isdigit() else int(key.partition("x")[2] or 1) for key in accesses}
    return sum(widths[key] * count for key, count in accesses.items()) / total if total else 0.0
