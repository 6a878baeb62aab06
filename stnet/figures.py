"""Figures whose texts are names from files: nothing in them is markup, nothing ends the drawing."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from stnet.console import printable

GUARD = "\0"
"""Stands before a label until it is drawn: Matplotlib leaves labels that begin with an underscore out of legends."""


def legend_label(name: str) -> str:
    """Return a name as the label of a line or bar, which `write_png` shows in the legend whatever it begins with."""
    return GUARD + name


def write_png(figure: Figure, path: Path) -> None:
    """Draw a figure with its texts taken literally.

    Between two dollar signs Matplotlib reads mathematics and raises where it is none; lone surrogates raise, too.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(map(printable, text.get_text().removeprefix(GUARD).split("\n"))))
    FigureCanvasAgg(figure).print_png(path)
