"""Figures whose texts are names from files: nothing in them is markup, nothing ends the drawing."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from stnet.console import printable


def write_png(figure: Figure, path: Path) -> None:
    """Draw a figure with its texts taken literally.

    Between two dollar signs Matplotlib reads mathematics and raises where it is none; lone surrogates raise, too.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    FigureCanvasAgg(figure).print_png(path)
