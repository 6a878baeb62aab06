"""Several data sets as one, for training on stills, phantoms and videos together."""

from collections.abc import Sequence
from dataclasses import replace

from stnet.data.index import DatasetIndex, Frame, Video
from stnet.errors import DataError


def join_indexes(indexes: Sequence[DatasetIndex]) -> DatasetIndex:
    """Join the videos of several indexes; ids of videos and images are numbered anew.

    Args:
        indexes: at least one; all with the same classes. Names of videos get the name of their folder in front.

    Raises:
        DataError: classes differ, or a folder is given twice.
    """
    first = indexes[0]
    if len(indexes) == 1:
        return first
    for index in indexes[1:]:
        if index.class_names != first.class_names:
            raise DataError(
                f"{index.annotation_file}: classes {', '.join(index.class_names)}, but {first.annotation_file} has "
                f"{', '.join(first.class_names)}; give data sets with the same categories"
            )
    names = [index.root.resolve().name for index in indexes]
    files = [index.annotation_file.resolve() for index in indexes]
    if len(set(files)) < len(files):
        raise DataError(f"{_repeated(files)}: given twice; name every data set once")
    if len(set(names)) < len(names):
        names = [f"{number}_{name}" for number, name in enumerate(names)]
    videos: list[Video] = []
    images = 0
    for name, index in zip(names, indexes, strict=True):
        for video in index.videos:
            frames: tuple[Frame, ...] = tuple(
                replace(frame, image_id=images + number) for number, frame in enumerate(video.frames)
            )
            images += len(frames)
            videos.append(Video(name=f"{name}/{video.name}", video_id=len(videos), frames=frames))
    repairs = tuple(repair for index in indexes for repair in index.repairs)
    return replace(first, videos=tuple(videos), repairs=repairs)


def _repeated(items: Sequence) -> object:
    return next(item for number, item in enumerate(items) if item in items[:number])
