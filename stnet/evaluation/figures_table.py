"""How figures with intervals are shown to people."""

from collections.abc import Sequence
from typing import Protocol

from stnet.evaluation.image_metrics import FIGURES, Figure, ImageMetrics

RATES = ("fp_", "lesion_free_fp_")
"""What the names of figures begin with that are counts per image."""


class Printer(Protocol):
    """What prints: `stnet.console.Reporter` does."""

    def message(self, text: str) -> None:
        """Print lines of text."""

    def table(self, title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""


def show_figures(columns: dict[str, ImageMetrics], title: str, printer: Printer, *, groups: str = "patients") -> None:
    """Print figures with their intervals, one column for each set of images.

    Args:
        columns: figures by the name of the set.
        title: of the table.
        printer: prints it.
        groups: what the intervals are drawn from, counted in a row.
    """
    counts = ("images", "lesions", "lesion_free", "small", "several")
    rows = [(name.replace("_", " "), *(str(getattr(m, name)) for m in columns.values())) for name in counts]
    rows.append((groups, *(str(m.patients) for m in columns.values())))
    rows += [
        (text, *((rate if name.startswith(RATES) else percent)(metrics.figures[name]) for metrics in columns.values()))
        for name, text in FIGURES.items()
        if any(metrics.figures[name].value is not None for metrics in columns.values())
    ]
    aucs = [metrics.malignancy_auc for metrics in columns.values()]
    rows.append(
        ("malignant against benign, AUC of found lesions", *("-" if auc is None else f"{auc:.3f}" for auc in aucs))
    )
    printer.table(f"{title}; percent where not said otherwise (95 % intervals)", ("", *columns), rows)


def percent(figure: Figure) -> str:
    """Return a share in percent, with its interval."""
    return _shown(figure, 100, 1)


def rate(figure: Figure) -> str:
    """Return a count per image, with its interval."""
    return _shown(figure, 1, 3)


def _shown(figure: Figure, scale: float, digits: int) -> str:
    if figure.value is None:
        return "-"
    text = f"{scale * figure.value:.{digits}f}"
    if figure.interval is None:
        return text
    low, high = (f"{scale * end:.{digits}f}" for end in figure.interval)
    return f"{text} ({low} to {high})"
