"""What becomes of the class names of annotation files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stnet.data.annotations.entries import class_name_problem, load_json
from stnet.data.formats.account import Account
from stnet.data.formats.assigning import Owned
from stnet.data.formats.marks import FrameMarks
from stnet.data.index import LESION_CLASSES
from stnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClassRules:
    """What a user says of class names.

    Attributes:
        names: the classes in order; by default benign and malignant, those of the other split, or those found.
        renamed: the class of the data set for class names of the file.
        ignored: class names of the file whose marks are no lesions.
    """

    names: Sequence[str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What becomes of the class names of a file.

    Attributes:
        names: the classes of the data set in order.
        renamed: class of the data set by name in the file, in lower case.
        ignored: names in the file, in lower case, whose marks are no lesions.
    """

    names: tuple[str, ...]
    renamed: Mapping[str, str]
    ignored: frozenset[str]


def choose_classes(owned: dict[str, Owned], rules: ClassRules, out: Path, account: Account) -> Classes:
    """Decide on the classes of a data set.

    Args:
        owned: the marks of each video.
        rules: what the user says.
        out: the data set, which may have another split already.
        account: takes what concerns no mark.

    Raises:
        ConfigError: marks of a class that is not among them, or classes that differ from the other split's.
    """
    names, renamed = rules.names, dict[str, str]()
    for name, target in rules.renamed.items():
        if renamed.setdefault(name.lower(), target).lower() != target.lower():
            raise ConfigError(f"--class {name}={target}: {name} is mapped to {renamed[name.lower()]}, too (any case)")
    skipped = frozenset(name.lower() for name in rules.ignored)
    if renamed.keys() & skipped:
        raise ConfigError(
            f"{min(renamed.keys() & skipped)} is mapped by --class and ignored by --ignore-class; choose one"
        )
    if names is not None and (len({name.lower() for name in names}) < len(names) or not all(map(str.strip, names))):
        raise ConfigError(f"--classes {' '.join(names)}: give each class once (in any case), and none without a name")
    frames = [frame for marks in owned.values() for frame in _frames(marks)]
    found = {mark.label.strip() for frame in frames for mark in frame.marks}
    # What gives no box is no reason for a class: lines to measure with, tags of whole pictures.
    drawn = {mark.label.strip() for f in frames if not f.unseen for mark in f.marks if mark.box is not None}
    for name in sorted((renamed.keys() | skipped) - {label.lower() for label in found}):
        account.notes[f"no mark is of the class {name!r:.60}"] += 1
    wanted: dict[str, str] = {}
    for label in sorted(drawn):
        if label.lower() not in skipped:
            target = renamed.get(label.lower(), label)
            wanted.setdefault(target.lower(), target)
    earlier = _earlier_classes(out)
    fixed = tuple(names) if names else earlier or (LESION_CLASSES if wanted.keys() <= set(LESION_CLASSES) else None)
    if fixed is None:
        fixed = tuple(wanted.values())
    unknown = [name for key, name in wanted.items() if key not in {known.lower() for known in fixed}]
    if unknown:
        listed = ", ".join(unknown)[:200]
        raise ConfigError(
            f"classes {listed} are not among {', '.join(fixed)}; map each by --class NAME=CLASS, ignore its marks by "
            "--ignore-class NAME, or name all classes by --classes"
        )
    unfit = [(name, problem) for name in fixed if (problem := class_name_problem(name))]
    if unfit:
        name, problem = unfit[0]
        raise ConfigError(f"class {name!r:.80} {problem}; correct it in the annotations, or name classes by --classes")
    if earlier and [name.lower() for name in earlier] != [name.lower() for name in fixed]:
        raise ConfigError(
            f"{out} has the classes {', '.join(earlier)}, not {', '.join(fixed)}; use the same for both splits"
        )
    return Classes(names=fixed, renamed=renamed, ignored=skipped)


def _frames(marks: Owned) -> Iterator[FrameMarks]:
    yield from (image.frame for image in marks.images)
    if marks.video is not None:
        yield from marks.video.frames.values()


def _earlier_classes(out: Path) -> tuple[str, ...] | None:
    """Return the classes of a split that is there already."""
    for split in ("train", "val"):
        file = out / f"{split}.json"
        if file.is_file():
            listed = load_json(file).get("categories", [])
            return tuple(str(category.get("name")) for category in listed if isinstance(category, dict))
    return None
