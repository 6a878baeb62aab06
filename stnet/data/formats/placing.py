"""Which video and which frame an entry of an annotation file belongs to.

An entry is placed by the exact name of its video and of its frame, or by what the user says of names and numbers
(`Rules`). Nothing else places it: not the only video at hand, not digits that happen to end a name.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stnet.data.formats.account import Account
from stnet.data.formats.marks import FrameMarks, ImageMarks, MarksFile, StatedVideo, VideoMarks
from stnet.errors import ConfigError, DataError
from stnet.video import VideoInput
from stnet.video.reader import VIDEO_SUFFIXES
from stnet.video.stills import IMAGE_SUFFIXES

_NUMBERING_HELP = "add --numbering 0 or --numbering 1 to place them by the number that ends their names, or rename them"
_TOLERATED_EXCESS = 0.02
"""Share of the frames (beyond one) that another decoder may have counted more than ours."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a user says of names and numbers.

    Attributes:
        numbering: what the numbers in names count from, 0 or 1; they are then used even where names match.
        video_from: finds the video in the name of an entry: its first group, or its groups `video`, `name` (of the
            frame, without ending) and `frame` (its number). Without a group its match says that the entry belongs to
            the only video.
        frame_step: entry n stands for frame n times this.
    """

    numbering: int | None = None
    video_from: re.Pattern[str] | None = None
    frame_step: int | None = None


@dataclass(kw_only=True)
class Owned:
    """The marks of one video, of which the frames are not known yet."""

    images: list[ImageMarks] = field(default_factory=list)
    video: VideoMarks | None = None

    def stated(self) -> list[StatedVideo]:
        """Return what the files say of the whole video, each statement once."""
        found = [image.stated for image in self.images] + ([self.video.stated] if self.video else [])
        return list(dict.fromkeys(statement for statement in found if statement is not None))


def assign(
    files: Sequence[MarksFile], videos: Sequence[VideoInput], rules: Rules, account: Account
) -> dict[str, Owned]:
    """Find the video of every entry.

    Returns:
        The marks of each video by its name. Entries of no video are left out in `account`.

    Raises:
        DataError: a file contradicts itself, or has tracks of a video that is not there.
    """
    owned = {video.name: Owned() for video in videos}
    known = _aliases(videos)
    folders: dict[str, PurePosixPath] = {}
    for file in files:
        account.note_file(file.notes, file.name)
        for image in file.images:
            account.list_entry(image.frame)
            owner, reason = _owner_of_image(image, videos, known, rules)
            if owner is None:
                account.leave_out(reason, image.frame)
                continue
            if rules.video_from is None:
                _check_folder(image, owner, folders)
            owned[owner].images.append(image)
        for marks in file.videos:
            for frame in marks.frames.values():
                if frame.marks:
                    account.list_entry(frame)
            owner = _owner_of_video(marks, file, videos, known, rules, account)
            if owner is None:
                continue
            if owned[owner].video is not None:
                raise DataError(f"{marks.where}: marks of the video {owner} again; keep one of the files")
            owned[owner].video = marks
    for name, marks in owned.items():
        if marks.video is not None and marks.images:
            raise DataError(f"{marks.images[0].frame.where}: {name} has marks by number, too; keep one of the two")
    return owned


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


def _aliases(videos: Iterable[VideoInput]) -> dict[str, str]:
    """The video that a name stands for: its own, and that of its file with or without ending."""
    known: dict[str, str | None] = {}
    for video in videos:
        names = {video.name}
        if len(video.paths) == 1:
            names |= {video.paths[0].stem, video.paths[0].name}
        for name in names | set(map(_composed, names)):
            known[name] = None if name in known else video.name
    own = {video.name: video.name for video in videos}
    return {name: owner for name, owner in known.items() if owner is not None} | own


def _find(name: str, known: dict[str, str]) -> str | None:
    """The video of a name, which may carry the ending of a video file."""
    path = PurePosixPath(name)
    ending = path.suffix.lower()
    names = (name, path.stem) if ending in VIDEO_SUFFIXES or ending == ".dcm" else (name,)
    return next((known[one] for plain in names for one in (plain, _composed(plain)) if one in known), None)


def _composed(name: str) -> str:
    """The name with accents in their letters: macOS writes them behind, so that one name is written in two ways."""
    return unicodedata.normalize("NFC", name)


def _owner_of_image(
    image: ImageMarks, videos: Sequence[VideoInput], known: dict[str, str], rules: Rules
) -> tuple[str | None, str]:
    """The video of an entry, or None and why."""
    if rules.video_from is not None:
        return _owner_by_pattern(image.name, videos, known, rules.video_from)
    folder = PurePosixPath(image.name).parent.name
    by_folder, by_statement = _find(folder, known), _find(image.video, known) if image.video else None
    if by_folder and by_statement and by_folder != by_statement:
        raise DataError(
            f"{image.frame.where}: in the folder of {by_folder}, but said to be of the video {by_statement}"
        )
    if by_folder or by_statement:
        return by_folder or by_statement, ""
    named = folder or image.video
    if named:
        return None, f"of the video {named!r:.80}, which is not there; use --video-from where that is no video's name"
    if len(videos) == 1:
        return videos[0].name, ""
    return None, "the name says of which video only with a folder (VIDEO/000012.png); use --video-from"


def _check_folder(image: ImageMarks, owner: str, folders: dict[str, PurePosixPath]) -> None:
    """Refuse two folders of one name, `left/clip` and `right/clip`, for one video; `folders` has the first of each."""
    folder = PurePosixPath(image.name).parent
    first = folders.setdefault(owner, folder)
    length = min(len(first.parts), len(folder.parts))
    if first.parts[-length:] != folder.parts[-length:] and length:
        raise DataError(
            f"{image.frame.where}: in {str(folder)!r:.80}, other entries of {owner} are in {str(first)!r:.80}; if both "
            "are that video use --video-from, else give each video's folder a name of its own"
        )
    if len(folder.parts) > len(first.parts):
        folders[owner] = folder


def _owner_by_pattern(
    name: str, videos: Sequence[VideoInput], known: dict[str, str], pattern: re.Pattern[str]
) -> tuple[str | None, str]:
    match = pattern.search(name)
    if match is None:
        return None, "--video-from does not match the name"
    groups = pattern.groupindex
    stated = match["video"] if "video" in groups else match[1] if pattern.groups and not groups else None
    if stated is None and "video" not in groups and (groups or not pattern.groups):
        folder = _find(PurePosixPath(name).parent.name, known)
        if folder or len(videos) == 1:
            return folder or videos[0].name, ""
        return None, "--video-from has no group that tells which of the videos"
    owner = _find(stated or "", known)
    return owner, f"--video-from finds the video {stated!r:.80}, which is not there"


def _owner_of_video(
    marks: VideoMarks,
    file: MarksFile,
    videos: Sequence[VideoInput],
    known: dict[str, str],
    rules: Rules,
    account: Account,
) -> str | None:
    """The video of marks by number: said by the name of their file, by the file itself, or the only one."""
    if rules.video_from is not None:
        owner, reason = _owner_by_pattern(marks.video or file.stem, videos, known, rules.video_from)
        if owner is None:
            raise DataError(f"{marks.where}: {reason}")
        return owner
    stated = _find(marks.video, known) if marks.video else None
    named = known.get(file.stem, known.get(_composed(file.stem))) if len(file.videos) == 1 else None
    if named and marks.video and stated != named:
        if stated:
            raise DataError(f"{marks.where}: called like the video {named}, but made on {stated}; rename the file")
        account.notes[f"{marks.where}: made on {marks.video!r:.80}, taken for {named} by its own name"] += 1
    if named or stated:
        return named or stated
    if marks.video is None and len(videos) == 1 and len(file.videos) == 1:
        return videos[0].name
    if marks.video is None:
        raise DataError(
            f"{marks.where}: tracks of one video, but there are {len(videos)}; give a folder of files named like them"
        )
    if len(file.videos) > 1:
        for frame in filter(lambda frame: frame.marks, marks.frames.values()):
            account.leave_out(f"of the video {marks.video!r:.80}, which is not there", frame)
        return None
    raise DataError(
        f"{marks.where}: made on the video {marks.video!r:.80}, which is not there; name the file like the video that "
        f"it belongs to ({videos[0].name}), or use --video-from"
    )


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
    for number, frame in marks.frames.items():
        if number * step >= length and frame.marks:
            account.leave_out(f"the video has only {length} frames", frame)
    return [None if index % step else marks.at(index // step) for index in range(length)]


def _check_step(stated: bool, where: str, rules: Rules) -> None:
    if stated and rules.frame_step is not None:
        raise ConfigError(f"{where}: states its own frame step; leave out --frame-step")


def _places(
    images: Sequence[ImageMarks], video: str, frames: Sequence[str | None], rules: Rules, account: Account
) -> tuple[list[int | None], str]:
    """The index of the frame of each entry, or None; and why there is none."""
    groups = rules.video_from.groupindex if rules.video_from else {}
    for image in images:
        _check_step(image.stated_step, image.frame.where, rules)
    if rules.numbering is not None or "frame" in groups:
        numbers = [_number_by_rules(image, rules) for image in images]
        return _counted(images, numbers, video, rules, account, len(frames))
    if any(name is not None for name in frames):
        if rules.frame_step is not None:
            raise ConfigError(f"{video}: its frames are found by name; --frame-step needs --numbering beside it")
        places = _by_name([_name_by_rules(image, rules) for image in images], frames, account)
        _check_counting(images, places, video)
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


def _by_name(names: Sequence[str], frames: Sequence[str | None], account: Account) -> list[int | None]:
    exact = {name: index for index, name in enumerate(frames) if name is not None}
    composed: dict[str, int | None] = {}
    stems: dict[str, int | None] = {}
    for name, index in exact.items():
        whole = _composed(name)
        stem = PurePosixPath(whole).stem
        composed[whole] = None if whole in composed else index
        stems[stem] = None if stem in stems else index
    places = []
    for name in names:
        whole = _composed(name)
        place = exact.get(name, composed.get(whole))
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
    """The number that ends a name, unless it ends a word that mixes letters and digits, such as a hash."""
    match = re.search(r"(?:^|[^A-Za-z0-9])[A-Za-z]*([0-9]{1,12})$", stem)
    return int(match[1]) if match else None


def _stated_numbers(images: Sequence[ImageMarks], video: str) -> list[int | None]:
    """The numbers that a file gives to frames without names of their own, in entries or as their whole name."""
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
    if rules.frame_step is None and len(set(found)) == max(found, default=-1) + 1 - (first or 0) <= length // 2:
        account.notes[
            f"{video}: the first {len(found)} of {length} frames are listed; if they were taken at a step, "
            "convert anew with --frame-step"
        ] += 1
    places = [None if number is None else (number - (first or 0)) * step for number in numbers]
    return (
        places,
        f"the name is no number of a frame of {video}; use --video-from with a group (?P<frame>...), or rename",
    )
