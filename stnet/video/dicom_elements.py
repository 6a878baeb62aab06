"""Numbers of a DICOM header, where any element may be absent, empty, damaged or nonsense."""

import math
from typing import Any


def number(dataset: Any, keyword: str) -> float | None:
    """Return a finite number, the first of several, or None where the element is absent, empty or no number."""
    found = numbers(dataset, keyword, 1)
    return found[0] if found else None


def numbers(dataset: Any, keyword: str, most: int) -> tuple[float, ...]:
    """Return up to `most` finite numbers; none where any of them is no number."""
    try:
        value = dataset.get(keyword)
        values = [] if value is None or value == "" else [value] if not hasattr(value, "__iter__") else list(value)
        found = tuple(float(one) for one in values[:most])
    except Exception:  # damaged elements are as good as absent
        return ()
    return found if all(map(math.isfinite, found)) else ()


def text(dataset: Any, keyword: str) -> str:
    """Return a code word in capital letters, empty where the element is absent or damaged."""
    try:
        return str(dataset.get(keyword) or "").strip().upper()
    except Exception:  # damaged elements are as good as absent
        return ""
