"""`report.html`: what a run found, in one file that opens from disk, without a network, and on a phone.

The page is the template beside this module with blocks of JSON in the middle, which the template's script turns into
sections; those of the videos lie beside their results (`page.py`). Names reach the page as JSON with every `<` escaped
and are only ever set as text; a Content-Security-Policy forbids every connection and every script but the template's
own.
"""

import base64
import hashlib
import html
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from importlib import resources
from pathlib import Path

import torch

import stnet
from stnet.errors import VideoError
from stnet.evaluation.video_level import STRONGEST_SHARE
from stnet.files import GrowingFile
from stnet.inference.draw import PALETTE
from stnet.inference.folder_lock import FolderLock, lock_beside
from stnet.inference.page import SECTION_NAME, embedded
from stnet.inference.sink import RunFacts
from stnet.inference.summary import VideoSummary

REPORT_NAME = "report.html"
TEMPLATE = "report.html"
STYLE = "report.css"
SCRIPTS = ("report_boxes.js", "report_explained.js", "report_lesions.js", "report_player.js", "report_page.js")
DATA_MARK = "<!--data-->"


def write_report(run: RunFacts, rows: Iterable[VideoSummary]) -> Path:
    """Write the page of all videos, in the order of their rows; return its path.

    Args:
        run: what to state about the run; the page goes to its output folder.
        rows: of the videos. Those without results are listed with what was wrong.

    Raises:
        OSError, VideoError: it cannot be written, or another run writes one at the same place.
    """
    path = run.output / REPORT_NAME
    style, script = _part(STYLE), "".join(_part(name) for name in SCRIPTS)
    head, tail = _part(TEMPLATE).replace("{{style}}", style).replace("{{script}}", script).split(DATA_MARK)
    lock = FolderLock(lock_beside(path))
    try:
        with GrowingFile(path) as page:
            page.write(head.replace("{{policy}}", html.escape(_policy(style, script))))
            page.write(_block("run", embedded(_facts(run))))
            for number, row in enumerate(rows):
                _section(number, row, run.output / row.name / SECTION_NAME, page.write)
            page.write(tail)
    finally:
        lock.release()
    return path


def _section(number: int, row: VideoSummary, path: Path, write: Callable[[str], None]) -> None:
    """Write what is known of a video; one line of its section is in memory at a time."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if row.frames:
            with open(path, encoding="utf-8") as section:
                write(f'<script type="application/json" id="frames-{number}">')
                held = next(section, "")
                for line in section:
                    write(_harmless(held, path))
                    held = line
                write("</script>\n" + _block(f"video-{number}", _harmless(held.rstrip("\n"), path)))
            return
    data = {"name": row.name, "status": row.status, "problems": list(row.problems)}
    write(_block(f"video-{number}", embedded(data)))


def _harmless(line: str, path: Path) -> str:
    if "<" in line:
        raise VideoError(f"{path}: is no section of a report; remove it, and do its video again")
    return line


def _block(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _facts(run: RunFacts) -> dict:
    names = run.class_names
    palette = [f"rgb{PALETTE[position % len(PALETTE)]}" for position in range(len(names))]
    return {
        "facts": {**_surroundings(), **run.shown},
        "classes": [
            {"label": label, "name": name, "colour": colour}
            for (label, name), colour in zip(names.items(), palette, strict=True)
        ],
        "threshold": run.score_threshold,
        "strongestShare": STRONGEST_SHARE,
    }


def _part(name: str) -> str:
    return resources.files("stnet.inference").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Only this style and this script, pictures out of the page itself, and no connection of any kind."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _surroundings() -> dict[str, str]:
    return {
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "Software": f"stnet {stnet.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
    }
