"""What the names of a call stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stnet.command_line import explain
from stnet.errors import EXTERNAL, ConfigError, VideoError
from stnet.video import VideoInput, find_inputs
from stnet.video.dicom_header import DICOM_SUFFIXES

LIST_MARK = "@"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A name that stands for nothing, as it may be told, and why."""

    name: str
    error: Exception


@dataclass(frozen=True, kw_only=True)
class Names:
    """The videos that names stand for, and the names that stand for nothing."""

    videos: Sequence[VideoInput]
    missing: Sequence[Missing] = ()


def find_names(names: Sequence[str], output: Path, stills: bool = False) -> Names:
    """Find the videos behind names, and in lists of names.

    Args:
        names: what the user named.
        output: the folder for results, which is not looked into.
        stills: images are no frames of a video, but each an input of its own.

    Raises:
        ConfigError: a list cannot be used.
        VideoError: no name stands for anything.
    """
    found = _found(expand_lists(names), output, stills)
    if not found.videos:
        raise VideoError("; ".join(explain(one.error) for one in found.missing))
    return found


def expand_lists(names: Sequence[str]) -> list[str]:
    """Replace every `@FILE` by the names in that file: one a line; empty lines and those with # in front are left out.

    Raises:
        ConfigError: a list cannot be read, or holds nothing.
    """
    expanded = []
    for name in names:
        expanded += _listed(Path(name[len(LIST_MARK) :])) if name.startswith(LIST_MARK) else [name]
    return expanded


def _listed(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(
            f"{LIST_MARK}{path}: the list cannot be read ({error.strerror}); a file of such a name is ./{LIST_MARK}..."
        ) from error
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise ConfigError(f"{LIST_MARK}{path}: names no video; write one name a line")
    return names


def _found(names: Sequence[str], output: Path, stills: bool) -> Names:
    try:
        return Names(videos=find_inputs(names, stills, output))
    except EXTERNAL:
        pass  # which of them it is, is told by asking for each; together they give images of one folder one name
    usable, missing = [], []
    for position, name in enumerate(names, start=1):
        try:
            find_inputs([name], stills, output)
        except EXTERNAL as error:
            missing.append(_missing(position, name, error))
        else:
            usable.append(name)
    return Names(videos=find_inputs(usable, stills, output), missing=missing)


def _missing(position: int, name: str, error: Exception) -> Missing:
    """Return a name that stands for nothing, for the table and the report: no place for names of DICOM files."""
    if Path(name).suffix.lower() not in DICOM_SUFFIXES:
        return Missing(name=name, error=error)
    known = f"input {position}"
    what = "no such DICOM file; its name, which may tell a patient, is not repeated"
    return Missing(name=known, error=VideoError(f"{known}: {what}"))
