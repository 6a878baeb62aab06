"""Repairs of annotations as data: what is wrong, where, and which objects of the document change."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Change:
    """One object of one list of an annotation document gets other values, or goes (`keys` is None)."""

    list: str
    position: int
    keys: dict | None


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One thing that is wrong with an annotation file, and what puts it right.

    Attributes:
        entry: where, for example `annotations[3] (id 4)`.
        kind: a short fixed name of the problem.
        what: the problem, with the offending value.
        done: what the repair does, as in "clipped"; empty where nothing can be done without a person.
        remedy: what a person can do instead.
        changes: the changes of the document that make up the repair; none where a person has to decide.
        automatic: beyond doubt, so that loading does it too; loading refuses what needs any other repair.
        lossless: what is left out stands elsewhere in the file too.
    """

    entry: str
    kind: str
    what: str
    done: str = ""
    remedy: str = ""
    changes: tuple[Change, ...] = ()
    automatic: bool = False
    lossless: bool = False

    def __str__(self) -> str:
        return f"{self.entry}: {self.what}" + (f": {self.done}" if self.done else "")


def apply_repairs(document: dict, repairs: Iterable[Repair]) -> dict:
    """Return the repaired document; the given one, and all keys that no repair names, stay as they are.

    Of several repairs of one object the later values count, unless one of them removes it.
    """
    edits: dict[str, dict[int, dict | None]] = defaultdict(dict)
    for change in (change for repair in repairs for change in repair.changes):
        before = edits[change.list].get(change.position, {})
        gone = before is None or change.keys is None
        edits[change.list][change.position] = None if gone else before | change.keys
    return document | {name: _edited(document[name], of_list) for name, of_list in edits.items()}


def _edited(items: list, edits: dict[int, dict | None]) -> list:
    return [
        item | edits[position] if edits.get(position) else item
        for position, item in enumerate(items)
        if edits.get(position, {}) is not None
    ]
