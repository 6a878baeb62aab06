"""Which frame of its video an entry of an annotation file belongs to.

An entry is placed by the exact name of its frame, or by what the user says of names and numbers (`Rules`). Nothing else
places it: not digits that happen to end a name.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from stnet.data.formats.account import Account
from stnet.data.formats.assigning import Owned, Rules, composed
from stnet.data.formats.marks import FrameMarks, ImageMarks, VideoMarks
from stnet.errors import ConfigError, DataError
from stnet.video.stills import IMAGE_SUFFIXES

_NUMBERING_HELP = "add --numbering 0 or --numbering 1 to place them by the number that ends their names, or rename them"
_TOLERATED_EXCESS = 0.02
"""Share of the frames (beyond one) that another decoder may have counted more than ours."""


def place(
    owned: Owned, video: str, frames: Sequence[str | None], rules: Rules, account: Account
) -> list[FrameMarks | None]:
    """Find the frame of every entry of a video.

    Args:
        owned: its marks.
        video: its name.
        frames: the file name of each frame, None where frames are no files of their own.
        rules: what the user says.
        account: takes the entries that find no frame.

    Returns:
        What is known of each frame, None where the annotations do not list it.

    Raises:
        DataError: two entries for one frame, or numbers that contradict each other.
    """
    if len(set(frames)) < len(frames):
        frames = [None] * len(frames)  # pages of one file share its name
    _check_length(owned, video, frames, rules, account)
    if owned.video is not None:
        _check_order(owned.video, frames)
        _note_names(video, frames, account)
        return _place_by_number(owned.video, len(frames), rules, account)
    places, reason = _places(owned.images, video, frames, rules, account)
    placed: list[FrameMarks | None] = [None] * len(frames)
    for image, place in zip(owned.images, places, strict=True):
        if place is None or not 0 <= place < len(frames):
            account.leave_out(reason if place is None else f"{video} has no such frame", image.frame)
        elif placed[place] is not None:
            raise DataError(f"{image.frame.where}: the same frame as {placed[place].where}; merge the two")
        else:
            placed[place] = image.frame
    return placed


def _check_length(owned: Owned, video: str, frames: Sequence[str | None], rules: Rules, account: Account) -> None:
    """Compare how many frames the files say that a video has; names place the frames of a selection all the same."""
    found = len(frames)
    for statement in owned.stated():
        stated = statement.frames
        counts = {found, -(-found // (rules.frame_step or 1))}
        if stated is None or any(abs(stated - count) <= max(1, _TOLERATED_EXCESS * count) for count in counts):
            continue
        what = f"states a video of {stated} frames, {video} has {found}"
        if owned.video is not None or any(name is None for name in frames):
            raise DataError(f"{statement.where}: {what}: is it of another video? Else correct the number")
        account.notes[f"{statement.where}: {what}; its entries are placed by their names"] += 1


def _check_order(marks: VideoMarks, frames: Sequence[str | None]) -> None:
    """Refuse numbers of images in an order that nothing states: tools sort names by numbers or by letters."""
    names = [name for name in frames if name is not None]
    if marks.video is None and names != sorted(names):
        first, second = next((a, b) for a, b in pairwise(names) if b < a)
        raise DataError(
            f"{marks.where}: gives numbers to frames of no stated video, and {first} goes before {second} by number "
            "but not by letter; export as CVAT for images, which names frames, or write the numbers with leading zeros"
        )


def _note_names(video: str, frames: Sequence[str | None], account: Account) -> None:
    """Tell of files among the frames that are called otherwise: they count as frames, too."""
    kinds = {re.sub(r"[0-9]+", "0", name): name for name in reversed(frames) if name is not None}
    if len(kinds) > 1:
        examples = ", ".join(sorted(kinds.values())[:2])
        account.notes[f"{video}: frames are counted in the order of names that are not alike ({examples})"] += 1


def _place_by_number(marks: VideoMarks, length: int, rules: Rules, account: Account) -> list[FrameMarks | None]:
    step = rules.frame_step or 1
    _check_step(marks.stated_step, marks.where, rules)
    if rules.numbering is not None:
        raise ConfigError(f"{marks.where}: its format says what frames are counted from; leave out --numbering")
    shown = marks.shown or marks.covers
    if shown:
        last = shown[-1] * step
        if last >= length + max(1, _TOLERATED_EXCESS * length):
            raise DataError(
                f"{marks.where}: shows frames to {last}, but the video has {length}: is it of another video?"
            )
        if last >= length:
            account.notes[f"{marks.where}: shows frames to {last}, the video has {length}"] += 1
        if shown.start == 0 and not marks.stated_step:
            _note_half(len(shown), length, marks.where, rules, account)
    for number, frame in marks.frames.items():
        if number * step >= length and frame.marks:
            account.leave_out(f"the video has only {length} frames", frame)
    return [None if index % step else marks.at(index // step) for index in range(length)]


def _note_half(listed: int, length: int, where: str, rules: Rules, account: Account) -> None:
    """Tell of the first half of a video, or less: it may be all of it, taken at a step."""
    if rules.frame_step is None and listed <= length // 2:
        account.notes[
            f"{where}: the first {listed} of {length} frames are listed; if they were taken at a step, "
            "convert anew with --frame-step"
        ] += 1


def _check_step(stated: bool, where: str, rules: Rules) -> None:
    if stated and rules.frame_step is not None:
        raise ConfigError(f"{where}: states its own frame step; leave out --frame-step")


def _places(
    images: Sequence[ImageMarks], video: str, frames: Sequence[str | None], rules: Rules, account: Account
) -> tuple[list[int | None], str]:
    """Return the index of the frame of each entry, or None; and why there is none."""
    groups = rules.video_from.groupindex if rules.video_from else {}
    for image in images:
        _check_step(image.stated_step, image.frame.where, rules)
    if rules.numbering is not None or "frame" in groups:
        numbers = [_number_by_rules(image, rules) for image in images]
        _note_names(video, frames, account)
        return _counted(images, numbers, video, rules, account, len(frames))
    if any(name is not None for name in frames):
        if rules.frame_step is not None:
            raise ConfigError(f"{video}: its frames are found by name; --frame-step needs --numbering beside it")
        places = _by_name([_name_by_rules(image, rules) for image in images], frames, account)
        _check_counting(images, places, video)
        _check_times(images, places, video)
        return places, f"{video} has no frame of that name; {_NUMBERING_HELP}"
    numbers = _stated_numbers(images, video)
    return _counted(images, numbers, video, rules, account, len(frames))


def _name_by_rules(image: ImageMarks, rules: Rules) -> str:
    if rules.video_from and "name" in rules.video_from.groupindex:
        return rules.video_from.search(image.name)["name"] or ""
    return PurePosixPath(image.name).name


def _check_counting(images: Sequence[ImageMarks], places: Sequence[int | None], video: str) -> None:
    """Refuse names that are each one frame before the number that the file gives: those may count from 1."""
    counted = [
        (image, place)
        for image, place in zip(images, places, strict=True)
        if place is not None and image.number is not None and image.counts_from is not None
    ]
    if counted and all(image.number - image.counts_from == place + 1 for image, place in counted):
        image, place = counted[0]
        raise DataError(
            f"{image.frame.where}: is frame {image.number}, counted from {image.counts_from}, but the file of that "
            f"name is frame {place} of {video}; if the names count from 1 add --numbering 0 (the number counts), else "
            "--numbering 1 (the name counts)"
        )


def _check_times(images: Sequence[ImageMarks], places: Sequence[int | None], video: str) -> None:
    """Refuse names that sort frames otherwise than the numbers beside them: a video is no shuffled one."""
    found = zip(places, images, strict=True)
    timed = sorted((p, image.number, image.name) for p, image in found if p is not None and image.number is not None)
    for (_, number, name), (_, next_number, next_name) in pairwise(timed):
        if next_number < number:
            raise DataError(
                f"{images[0].frame.where}: numbers {next_name!r:.80} {next_number} and {name!r:.80} {number} "
                f"(frame_id), but the frames of {video} are in the order of their names; rename them in the order of "
                "the video, or leave the numbers out"
            )


def _by_name(names: Sequence[str], frames: Sequence[str | None], account: Account) -> list[int | None]:
    exact = {name: index for index, name in enumerate(frames) if name is not None}
    plain: dict[str, int | None] = {}
    stems: dict[str, int | None] = {}
    for name, index in exact.items():
        whole = composed(name)
        stem = PurePosixPath(whole).stem
        plain[whole] = None if whole in plain else index
        stems[stem] = None if stem in stems else index
    places = []
    for name in names:
        whole = composed(name)
        place = exact.get(name, plain.get(whole))
        if place is None:
            path = PurePosixPath(whole)
            place = stems.get(path.stem if path.suffix.lower() in IMAGE_SUFFIXES else whole)
            if place is not None:
                account.notes["entries are placed by names that differ from the frames' in their ending"] += 1
        places.append(place)
    return places


def _number_by_rules(image: ImageMarks, rules: Rules) -> int | None:
    if rules.video_from and "frame" in rules.video_from.groupindex:
        found = rules.video_from.search(image.name)["frame"] or ""
        return int(found) if re.fullmatch(r"[0-9]{1,12}", found) else None
    number = _ending_number(PurePosixPath(image.name).stem)
    return image.number if number is None else number


def _ending_number(stem: str) -> int | None:
    """Return the number that ends a name, unless it ends a word that mixes letters and digits, such as a hash."""
    match = re.search(r"(?:^|[^A-Za-z0-9])[A-Za-z]*([0-9]{1,12})$", stem)
    return int(match[1]) if match else None


def _stated_numbers(images: Sequence[ImageMarks], video: str) -> list[int | None]:
    """Return the numbers that a file gives to frames without names of their own, in entries or as their whole name."""
    own = re.compile(rf"(?:{re.escape(video)}[ _.-]?)?(?:frame|image|img)?[ _.-]?([0-9]{{1,12}})", re.IGNORECASE)
    matches = [own.fullmatch(PurePosixPath(image.name).stem) for image in images]
    named = [int(match[1]) if match else None for match in matches]
    stated = [image.number for image in images]
    if any(number is None for number in stated):
        return named
    differences = {name - number for name, number in zip(named, stated, strict=True) if name is not None}
    if len(differences) > 1:
        raise DataError(
            f"{images[0].frame.where}: frame_id and the numbers in the names count differently; {_NUMBERING_HELP}"
        )
    return stated


def _counted(
    images: Sequence[ImageMarks],
    numbers: Sequence[int | None],
    video: str,
    rules: Rules,
    account: Account,
    length: int,
) -> tuple[list[int | None], str]:
    found = [number for number in numbers if number is not None]
    first, step = rules.numbering, rules.frame_step or 1
    if first is None and all(image.counts_from is not None for image in images):
        first = 0
    if first is None and 0 in found:
        first = 0  # frame 0 is there, so they are not counted from 1
    if first is None and found:
        hint = f" (they go from {min(found)} to {max(found)}, {video} has {length} frames)"
        return [None] * len(images), f"nothing says what the frames are counted from{hint}; {_NUMBERING_HELP}"
    if len(set(found)) == max(found, default=-1) + 1 - (first or 0):
        _note_half(len(found), length, video, rules, account)
    places = [None if number is None else (number - (first or 0)) * step for number in numbers]
    return (
        places,
        f"the name is no number of a frame of {video}; use --video-from with a group (?P<frame>...), or rename",
    )
