"""What the files of the frames tell about an annotation file: which are unusable, which have another size."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stnet.data.annotations.entries import Annotations, ImageEntry
from stnet.data.path_guard import PathGuard
from stnet.errors import DataError

THREADS = 16
"""More than there are cores: a network disk lets each wait."""

Size = tuple[int, int]


class UnusableFile(NamedTuple):
    """Why the file of a frame cannot be used: a short fixed name, the case, and what a person can do."""

    kind: str
    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameFacts:
    """What is known of the files of the images, by the ids of these.

    `paths` has all that lie inside the data set; `unusable` those that cannot be used; `sizes` the (height, width) of
    those that differ from what is annotated.
    """

    paths: dict[int, Path]
    unusable: dict[int, UnusableFile]
    sizes: dict[int, Size]


def gather_facts(
    annotations: Annotations,
    folder: Path,
    inspect: Callable[[ImageEntry, Path], Size] | None,
    on_frame: Callable[[], None] = lambda: None,
) -> FrameFacts:
    """Look at the files of all frames.

    Args:
        annotations: file names are relative to `folder`.
        folder: where the frames lie; nothing outside is touched.
        inspect: returns the (height, width) of a file, or raises `DataError`; called from several threads. None leaves
            the files closed.
        on_frame: called in this thread for every frame that was looked at.
    """
    guard = PathGuard(folder)
    paths: dict[int, Path] = {}
    unusable: dict[int, UnusableFile] = {}
    for image in annotations.images:
        try:
            paths[image.id] = guard.path(image.file_name)
        except ValueError as error:
            what = f"file_name {image.file_name!r} {error}"
            unusable[image.id] = UnusableFile("path leaves the dataset", what, "copy the frame inside")
        except OSError as error:  # no file system holds such a name, or its folder may not be read
            unusable[image.id] = _unreadable(f"{image.file_name}: {error.strerror}")

    def look(image: ImageEntry) -> Size | UnusableFile:
        path = paths[image.id]
        try:
            if not path.is_file():
                return UnusableFile("missing frame", f"no file {path}", "restore it")
            return (image.height, image.width) if inspect is None else inspect(image, path)
        except DataError as error:
            return _unreadable(str(error))
        except OSError as error:
            return _unreadable(f"{path}: {error.strerror}")

    sizes: dict[int, Size] = {}
    images = [image for image in annotations.images if image.id in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        for image, result in zip(images, pool.map(look, images), strict=True):
            on_frame()
            if isinstance(result, UnusableFile):
                unusable[image.id] = result
            elif result != (image.height, image.width):
                sizes[image.id] = result
    return FrameFacts(paths=paths, unusable=unusable, sizes=sizes)


def _unreadable(what: str) -> UnusableFile:
    return UnusableFile("unreadable frame", what, "replace the file")
