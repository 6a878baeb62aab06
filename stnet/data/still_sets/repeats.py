"""Stills of public sets that repeat others or are marked incompletely, found by looking: left out of training data."""

import re

from stnet.data.still_sets.stills import Stills

_TWO_CLASSES = (
    ("malignant_051", "benign_042", "benign_131"),
    ("malignant_052", "benign_085", "benign_164"),
    ("malignant_077", "benign_333"),
    ("malignant_093", "benign_399"),
    ("malignant_094", "benign_406"),
    ("malignant_145", "benign_433"),
)
"""Scans of BUSI that are published as malignant and as benign: nobody can tell which is right."""

_BUSI = {
    "benign_061": "is the scan of benign_094",
    "benign_252": "shows a second mass without a mark",
    "normal_001": "repeats benign_269, which has a lesion",
    "normal_034": "repeats benign_437, which has a lesion",
    "normal_048": "repeats normal_039",
    "normal_056": "repeats normal_039",
    "normal_081": "repeats normal_023",
    "normal_127": "repeats normal_032",
    **{
        name: f"is published as {', '.join(n for n in scan if n != name)} too" for scan in _TWO_CLASSES for name in scan
    },
}
LEFT_OUT = {"busi": _BUSI, "businormal": _BUSI, "datasetbusiwithgt": _BUSI}
"""By name of the set in small letters alone: stills and the reason; numbers with three digits. COCO files have the name
of their folder."""


def leave_out_repeats(stills: Stills) -> tuple[Stills, list[str]]:
    """Return a set without the known repeats, and a line for each that was left out."""
    reasons = LEFT_OUT.get(re.sub(r"[\W_]", "", stills.name.lower()), {})
    kept, lines = [], []
    for video in stills.index.videos:
        stem = _plain(video.frames[0].path.stem)
        if stem in reasons:
            lines.append(f"{stills.name}: {stem} left out: it {reasons[stem]}")
        else:
            kept.append(video)
    return (stills.keep(kept), lines) if lines else (stills, lines)


def _plain(stem: str) -> str:
    """`benign (61)`, as published, becomes `benign_061`."""
    match = re.fullmatch(r"(\w+?)[ _]\(?(\d+)\)?", stem)
    return f"{match[1]}_{int(match[2]):03d}" if match else stem
