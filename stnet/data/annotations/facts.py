"""What the files of the frames tell about an annotation file: which are unusable, which have another size."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stnet.data.annotations.entries import Annotations, ImageEntry
from stnet.data.images import decode_image, image_header, video_scale
from stnet.data.path_guard import PathGuard
from stnet.errors import DataError
from stnet.video.depth import GrayScale

THREADS = 16
"""More than there are cores: a network disk lets each wait."""


BLANK_LEVELS = 2
"""Of 256: frames whose brightness differs by no more show nothing but what compression leaves of one colour."""


class UnusableFile(NamedTuple):
    """Why the file of a frame cannot be used: a short fixed name, the case, and what a person can do."""

    kind: str
    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameFacts:
    """What is known of the files of the images, by the ids of these.

    `paths` has all that lie inside the data set; `unusable` those that cannot be used; `sizes` the (height, width) of
    those that differ from what is annotated; `deep` those with more than 8 bits; `blank` the brightness of those that
    show nothing (known once frames are decoded).
    """

    paths: dict[int, Path]
    unusable: dict[int, UnusableFile]
    sizes: dict[int, tuple[int, int]]
    deep: set[int] = field(default_factory=set)
    blank: dict[int, int] = field(default_factory=dict)


def gather_facts(annotations: Annotations, folder: Path, *, quick: bool = False) -> FrameFacts:
    """Look at the files of all frames, and read what each says of itself.

    Args:
        annotations: file names are relative to `folder`.
        folder: where the frames lie; nothing outside is touched.
        quick: leave the files closed.
    """
    guard = PathGuard(folder)
    facts = FrameFacts(paths={}, unusable={}, sizes={})
    for image in annotations.images:
        try:
            facts.paths[image.id] = guard.path(image.file_name)
        except ValueError as error:
            what = f"file_name {image.file_name!r} {error}"
            facts.unusable[image.id] = UnusableFile("path leaves the dataset", what, "copy the frame inside")
        except OSError as error:  # no file system holds such a name, or its folder may not be read
            facts.unusable[image.id] = _unreadable(f"{image.file_name}: {error.strerror}")

    def look(image: ImageEntry) -> tuple[tuple[int, int], bool] | UnusableFile:
        path = facts.paths[image.id]
        try:
            if not path.is_file():
                return UnusableFile("missing frame", f"no file {path}", "restore it")
            if quick:
                return (image.height, image.width), False
            header = image_header(path)
            return (header.height, header.width), header.deep
        except DataError as error:
            return _unreadable(str(error))
        except OSError as error:
            return _unreadable(f"{path}: {error.strerror}")

    images = [image for image in annotations.images if image.id in facts.paths]
    with ThreadPoolExecutor(THREADS) as pool:
        for image, result in zip(images, pool.map(look, images), strict=True):
            if isinstance(result, UnusableFile):
                facts.unusable[image.id] = result
                continue
            size, deep = result
            if size != (image.height, image.width):
                facts.sizes[image.id] = size
            if deep:
                facts.deep.add(image.id)
    return facts


def decode_frames(
    annotations: Annotations,
    facts: FrameFacts,
    on_pixels: Callable[[ImageEntry, np.ndarray], None],
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Decode all frames that can be used as training would; add what cannot be used, and what is blank, to `facts`.

    Args:
        annotations: where the frames are listed.
        facts: of these, with headers.
        on_pixels: is given every frame, uint8 `[H, W, C]`; called from several threads.
        on_frame: called in this thread after every frame.
    """
    scales = {
        video_id: _scale([facts.paths[image.id] for image in images if image.id in facts.deep])
        for video_id, images in annotations.images_of_videos().items()
    }

    def look(image: ImageEntry) -> UnusableFile | None:
        size = facts.sizes.get(image.id, (image.height, image.width))
        try:
            pixels = decode_image(facts.paths[image.id], *size, scales[image.video_id])
            if all(int(np.ptp(pixels[..., channel])) <= BLANK_LEVELS for channel in range(pixels.shape[-1])):
                facts.blank[image.id] = int(pixels.max())
            on_pixels(image, pixels)
        except DataError as error:
            return _unreadable(str(error))
        return None

    images = [image for image in annotations.images if image.id not in facts.unusable]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for image, problem in zip(images, pool.map(look, images), strict=True):
            on_frame()
            if problem is not None:
                facts.unusable[image.id] = problem


def _scale(deep: list[Path]) -> GrayScale | None:
    """Return the scale of a video; None where one of its frames is no brightness, which is found by that alone."""
    try:
        return video_scale(deep)
    except DataError:
        return None


def _unreadable(what: str) -> UnusableFile:
    return UnusableFile("unreadable frame", what, "replace the file")
