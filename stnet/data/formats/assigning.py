"""Which video an entry of an annotation file belongs to.

An entry belongs to the video of its exact name, or to the one that the user's `Rules` find in it. Nothing else decides:
not that a video is the only one at hand, unless nothing names another.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stnet.data.formats.account import Account
from stnet.data.formats.marks import ImageMarks, MarksFile, StatedVideo, VideoMarks
from stnet.errors import DataError
from stnet.video import VideoInput
from stnet.video.reader import VIDEO_SUFFIXES


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


def _aliases(videos: Iterable[VideoInput]) -> dict[str, str]:
    """Return the video that a name stands for: its own, and that of its file with or without ending."""
    known: dict[str, str | None] = {}
    for video in videos:
        names = {video.name}
        if len(video.paths) == 1:
            names |= {video.paths[0].stem, video.paths[0].name}
        for name in names | set(map(composed, names)):
            known[name] = None if name in known else video.name
    own = {video.name: video.name for video in videos}
    return {name: owner for name, owner in known.items() if owner is not None} | own


def _find(name: str, known: dict[str, str]) -> str | None:
    """Return the video of a name, which may carry the ending of a video file."""
    path = PurePosixPath(name)
    ending = path.suffix.lower()
    names = (name, path.stem) if ending in VIDEO_SUFFIXES or ending == ".dcm" else (name,)
    return next((known[one] for plain in names for one in (plain, composed(plain)) if one in known), None)


def composed(name: str) -> str:
    """Return a name with accents in their letters, behind which macOS writes them: one name is written in two ways."""
    return unicodedata.normalize("NFC", name)


def _owner_of_image(
    image: ImageMarks, videos: Sequence[VideoInput], known: dict[str, str], rules: Rules
) -> tuple[str | None, str]:
    """Return the video of an entry, or None and why."""
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
    """Return the video of marks by number: said by the name of their file, by the file itself, or the only one."""
    if rules.video_from is not None:
        owner, reason = _owner_by_pattern(marks.video or file.stem, videos, known, rules.video_from)
        if owner is None:
            raise DataError(f"{marks.where}: {reason}")
        return owner
    stated = _find(marks.video, known) if marks.video else None
    named = known.get(file.stem, known.get(composed(file.stem))) if len(file.videos) == 1 else None
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
