"""From what a user names (files, folders, patterns) to video sources."""

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from stnet.choices import DEFAULT_FPS
from stnet.errors import VideoError
from stnet.video.dicom import DicomFile, is_dicom
from stnet.video.dicom_names import dicom_name
from stnet.video.feed_names import without_secrets
from stnet.video.images import ImageSequence
from stnet.video.masks import ImageKey, mask_note, masks_by_image, split_masks
from stnet.video.reader import VIDEO_SUFFIXES, VideoFile
from stnet.video.source import VideoSource
from stnet.video.stacks import ImageStack, is_stack
from stnet.video.stills import IMAGE_SUFFIXES, images_in, natural_key

BOOKS = ".stnet"
"""Folder that tells results of `infer.py` from studies; what lies beside it is not taken for videos."""

DICOM_INDEX = "DICOMDIR"
"""What the index of a DICOM disc is called by the standard; it holds no image."""

UNREADABLE_NAME = "dicom-unreadable"
"""What a DICOM file is called whose content, and so its name, cannot be read."""


@dataclass(frozen=True, kw_only=True)
class VideoInput:
    """One video to be opened: a file, or the images that are its frames.

    Attributes:
        name: of the video and its results; of DICOM files after their content (`stnet.video.dicom_names`), since
            their own names may tell patients.
        paths: the file, or the images in the order of frames.
        origin: what the user named.
        dicom: it is a DICOM file.
        notes: what became of names; they go before those of the opened source.
        problem: why there is nothing to open, of a folder found in another one; empty where there is.
    """

    name: str
    paths: tuple[Path, ...]
    origin: str
    dicom: bool = False
    notes: tuple[str, ...] = ()
    problem: str = ""

    def open(self, fps: Fraction = DEFAULT_FPS, full_frame: bool = False) -> VideoSource:
        """Open it.

        Args:
            fps: frame rate of inputs that state none: images, and DICOM files without one in their header.
            full_frame: deliver whole frames of DICOM files, not only their scan region.

        Raises:
            VideoError: nothing of it can be used.
        """
        source = self._open(fps, full_frame)
        source.notes = self.notes + source.notes
        return source

    def _open(self, fps: Fraction, full_frame: bool) -> VideoSource:
        if self.problem:
            raise VideoError(self.problem)
        if self.dicom:
            return DicomFile(self.paths[0], self.name, fps, full_frame)
        if all(_is_image(path) for path in self.paths):
            if len(self.paths) == 1 and is_stack(self.paths[0]):
                return ImageStack(self.paths[0], self.name, fps)
            return ImageSequence(self.paths, self.name, fps)
        return VideoFile(self.paths[0])


def open_source(path: str | Path, fps: Fraction = DEFAULT_FPS, full_frame: bool = False) -> VideoSource:
    """Open one video: a video or DICOM file, a folder or pattern of frames, or an image; see `VideoInput.open`.

    Raises:
        VideoError: it cannot be read, or the path stands for several videos.
    """
    inputs = find_inputs([path])
    if len(inputs) != 1:
        raise VideoError(f"{path}: names {len(inputs)} videos; expected one")
    return inputs[0].open(fps, full_frame)


def find_inputs(names: Iterable[str | Path], stills: bool = False, without: Path | None = None) -> list[VideoInput]:
    """Find the videos that `names` stand for: files, folders and glob patterns (`**` reaches into subfolders).

    A folder of images is one video, a folder of video or DICOM files is all of them, those in its folders included;
    what lies in folders of a folder of images is no part of it. Videos in folders of a named one are called after
    both. Image files of one folder, named one by one or by a pattern, are the frames of one video. Images named like
    masks of others (`a_mask.png` beside `a.png`) are left out of folders and patterns, which a note tells; named one by
    one they are read. DICOM files are recognized by what is in them, or by their suffix.

    Args:
        names: what the user named.
        stills: images are no frames of a video: each is an input of its own, of any size.
        without: a folder that is not looked into where it lies in a named one, such as that for results.

    Raises:
        VideoError: a name stands for nothing.
    """
    inputs: list[VideoInput] = []
    images: dict[Path, _NamedImages] = {}
    for name in names:
        found = _matches(str(name))
        masks = {} if found == [Path(name)] else _masks(found)
        of_stills = masks_by_image(masks) if stills else {}
        for path in found:
            if path in masks:
                continue
            if path.is_dir():
                inputs += _in_tree(path, stills, without)
            elif is_dicom(path):
                inputs.append(_dicom(path))
            elif _is_image(path) and stills:
                inputs.append(_still(path, of_stills))
            elif _is_image(path):
                if path.parent not in images:
                    images[path.parent] = _NamedImages()
                    # Holds the place in the order; filled once all names are known.
                    inputs.append(VideoInput(name=_folder_name(path.parent), paths=(path.parent,), origin=str(name)))
                images[path.parent].paths.append(path)
            else:
                inputs.append(VideoInput(name=path.stem, paths=(path,), origin=str(path)))
        for mask in masks:
            if mask.parent in images:
                images[mask.parent].masks[mask] = None
    found = [_with_images(video, images) for video in inputs]
    return list({video.paths: video for video in reversed(found)}.values())[::-1]  # named twice, as by `**`: once


def _masks(paths: Sequence[Path]) -> dict[Path, None]:
    """Return the images among `paths` that are masks of others."""
    return dict.fromkeys(mask for mask in split_masks([p for p in paths if _is_image(p)])[1] if not is_dicom(mask))


def _dicom(path: Path) -> VideoInput:
    name = dicom_name(path) or UNREADABLE_NAME
    return VideoInput(name=name, paths=(path,), origin=name, dicom=True)


@dataclass(kw_only=True)
class _NamedImages:
    """Images of one folder that were named one by one or by patterns, and the masks that patterns passed over."""

    paths: list[Path] = field(default_factory=list)
    masks: dict[Path, None] = field(default_factory=dict)


def _with_images(video: VideoInput, images: dict[Path, _NamedImages]) -> VideoInput:
    if video.paths[0] not in images:
        return video
    named = images[video.paths[0]]
    once = dict.fromkeys(named.paths)
    paths = tuple(sorted(once, key=natural_key))
    masks = [mask for mask in named.masks if mask not in once]
    notes = (mask_note(masks),) if masks else ()
    if len(paths) == 1:
        return VideoInput(name=paths[0].stem, paths=paths, origin=video.origin, notes=notes)
    notes += (f"{len(paths)} images of one folder were named; they are read as the frames of one video",)
    beside = split_masks(paths)[1]
    if beside:
        notes += (f"{len(beside)} of its frames are named like masks of others ({beside[0].name})",)
    return replace(video, paths=paths, notes=notes)


def _still(path: Path, masks: Mapping[ImageKey, list[Path]]) -> VideoInput:
    """Return an image for itself, whose masks are told."""
    own = masks.get((path.parent, path.stem), [])
    return VideoInput(name=path.stem, paths=(path,), origin=str(path), notes=(mask_note(own),) if own else ())


def _in_tree(top: Path, stills: bool, without: Path | None) -> list[VideoInput]:
    """Return the videos in a named folder, and in its folders."""
    avoided = None if without is None else without.resolve()
    inputs = _in_folder(top, stills)
    if _is_one_video(top, inputs):
        return inputs
    seen, waiting = {top.resolve()}, _folders_in(top)
    while waiting:
        folder = waiting.pop(0)
        real = folder.resolve()
        if real in seen or real == avoided or (folder / BOOKS).exists():  # a loop of links, or results
            continue
        seen.add(real)
        within = "-".join(folder.relative_to(top).parts)
        try:
            found = _in_folder(folder, stills)
            below = [] if _is_one_video(folder, found) else _folders_in(folder)
        except VideoError as error:
            # Folders are often called after patients: where DICOM files are, the error names none.
            name = within if str(folder) in str(error) else UNREADABLE_NAME
            inputs.append(VideoInput(name=name, paths=(folder,), origin=name, problem=str(error)))
            continue
        inputs += [video if video.dicom else replace(video, name=_within(within, video, folder)) for video in found]
        waiting = below + waiting
    if not inputs:
        raise VideoError(f"{top}: holds no image, no video and no DICOM file")
    return inputs


def _within(within: str, video: VideoInput, folder: Path) -> str:
    return within if _is_one_video(folder, [video]) else f"{within}-{video.name}"


def _is_one_video(folder: Path, inputs: Sequence[VideoInput]) -> bool:
    """Return whether the images of a folder are one video."""
    return len(inputs) == 1 and inputs[0].origin == str(folder)


def _folders_in(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    except OSError as error:
        raise VideoError(f"{folder}: cannot be listed ({error.strerror})") from error
    return sorted(found, key=natural_key)


def _in_folder(folder: Path, stills: bool) -> list[VideoInput]:
    """Return the videos in a folder itself."""
    try:
        # Hidden ones left out: beside a.mp4 macOS puts ._a.mp4.
        files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
        files = [path for path in files if path.name.upper() != DICOM_INDEX]
        files.sort(key=natural_key)
        dicoms = {path: None for path in files if is_dicom(path)}
        images, masks = split_masks([path for path in images_in(folder) if path not in dicoms])
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and path not in dicoms]
    except OSError as error:
        raise VideoError(f"{folder}: cannot be listed ({error.strerror})") from error
    if dicoms and images:
        raise VideoError("a folder holds DICOM files and images; name the DICOM files, or move the images elsewhere")
    if images and videos and not stills:
        raise VideoError(
            f"{folder}: holds images and video files; name those meant, e.g. '{folder}/*{videos[0].suffix}'"
        )
    if images and not stills:
        notes = (mask_note(masks),) if masks else ()
        return [VideoInput(name=_folder_name(folder), paths=tuple(images), origin=str(folder), notes=notes)]
    own_masks = masks_by_image(masks)
    named = [_still(path, own_masks) for path in images]
    named += [VideoInput(name=path.stem, paths=(path,), origin=str(path)) for path in videos]
    return named + [_dicom(path) for path in dicoms]


def _folder_name(folder: Path) -> str:
    """Its own name, for `..` too: results go to a folder of this name."""
    return folder.resolve().name or "frames"


def _matches(name: str) -> list[Path]:
    if "://" in name:
        raise VideoError(f"{without_secrets(name)}: only local files are read; download it first")
    path = Path(name)
    if path.is_file() or path.is_dir():
        return [path]
    if path.exists():
        raise VideoError(f"{name}: is neither a file nor a folder")
    found = sorted((Path(match) for match in glob.glob(name, recursive=True)), key=lambda p: (p.parent, natural_key(p)))
    if not found:
        raise VideoError(f"{name}: no such file or folder")
    return [match for match in found if match.is_file() or match.is_dir()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
