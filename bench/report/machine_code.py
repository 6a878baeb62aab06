"""Table of the instructions that the compile report counted for an H100."""

from pathlib import Path
from typing import Any

from bench.report import tables
from bench.report.results import convert_optional

FILE = "compile_report.json"
WHAT = "a compile report"
TARGET, HEAD_DIM, LAYERS = "sm_90", 32, ("encoder", "classic")
KERNELS = {
    "stda_forward": "spatial-temporal, forward",
    "stda_backward": "spatial-temporal, backward",
    "msda_forward": "classic, forward",
    "msda_backward": "classic, backward",
}


def section(folder: Path) -> str:
    """Return a sentence and a table; empty where the folder holds no compile report.

    Raises:
        DataError: the file is no compile report.
    """
    return convert_optional(folder / FILE, WHAT, _table) or ""


def headline(folder: Path) -> tuple[float, str, float] | None:
    """Instructions of the classic float16 forward kernel, and name and instructions of the best other one.

    Raises:
        DataError: the file is no compile report.
    """
    return convert_optional(folder / FILE, WHAT, _best)


def _table(report: dict[str, Any]) -> str:
    sentence = (
        f"Counted in the machine code, not timed: warp instructions per (query, head, sample) for an H100, heads "
        f"of {HEAD_DIM} channels, the published encoder layer at 512 x 512, Triton {report['triton']}. The "
        "classic operator is given attention weights; deformops computes their softmax in its forward kernel."
    )
    rows = _own_rows(report["rows"]) + _peer_rows(report["peers"])
    return f"{sentence}\n\n{tables.table(['kernel', 'dtype', 'instructions', 'registers', 'spilled bytes'], rows)}"


def _best(report: dict[str, Any]) -> tuple[float, str, float] | None:
    own = [row["instructions"] for row in report["rows"] if row["kernel"] == "msda_forward" and _shown(row)
           and row["dtype"] == "float16"]  # fmt: skip
    peers = [(peer["instructions"], f"{peer['package']} {peer['version']}") for peer in report["peers"]
             if peer.get("target") == TARGET and peer.get("kernel") == "forward" and peer.get("dtype") == "float16"
             and "instructions" in peer]  # fmt: skip
    if not own or not peers:
        return None
    count, name = min(peers)
    return own[0], name, count


def _shown(row: dict[str, Any]) -> bool:
    return row["default"] and (row["target"], row["head_dim"]) == (TARGET, HEAD_DIM) and row["layer"] in LAYERS


def _own_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    counted = {
        (row["kernel"], row["dtype"]): [
            f"{row['instructions']:.1f}", str(row["registers"]), str(row["stack_bytes"]),
        ]
        for row in rows
        if _shown(row)
    }  # fmt: skip
    return [
        [title, dtype, *counted[kernel, dtype]]
        for kernel, title in KERNELS.items()
        for dtype in ("float16", "bfloat16", "float32")
        if (kernel, dtype) in counted
    ]


def _peer_rows(peers: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [_peer_title(peer), peer["dtype"], f"{peer['instructions']:.1f}", str(peer["registers"]), ""]
        for peer in peers
        if peer.get("target") == TARGET and "instructions" in peer
    ]


def _peer_title(peer: dict[str, Any]) -> str:
    gradient = f", {peer['value_gradient']} value gradient" if peer["value_gradient"] else ""
    return f"classic, {peer['kernel']}{gradient}: {peer['package']} {peer['version']}"
