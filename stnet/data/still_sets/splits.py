"""Who trains and who validates: nobody does both."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stnet.data.frames import FrameReader
from stnet.data.index import Video
from stnet.data.quality.duplicates import NEAR_BITS, perceptual_hash
from stnet.data.still_sets.stills import Stills
from stnet.errors import DataError


def check_apart(splits: Mapping[str, Sequence[Stills]]) -> None:
    """Refuse a patient, or an image file, that occurs in two splits, and a set that is given twice.

    Raises:
        DataError: naming the patient or the file.
    """
    for sets in splits.values():
        sources = [stills.index.annotation_file.resolve() for stills in sets]
        twice = next((source for source in sources if sources.count(source) > 1), None)
        if twice is not None:
            raise DataError(f"{twice}: given twice; name every set once")
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for split, sets in splits.items():
        for kind, name, path in (identity for stills in sets for identity in _identities(stills)):
            other, where = seen.setdefault((kind, name), (split, path))
            if other != split:
                what = f"patient {name!r}" if kind == "patient" else "the same image"
                raise DataError(
                    f"{path}: {what} is in {split} and in {other} ({where}); put all stills of a person into one "
                    "split, and give different people different names"
                )


def _identities(stills: Stills) -> Iterator[tuple[str, str, str]]:
    """Yield what no two splits may share: "image" and the hash, or "patient" and the name, with the file."""
    for video in stills.index.videos:
        path = video.frames[0].path
        yield "image", hashlib.sha256(path.read_bytes()).hexdigest(), str(path)
        if video.name in stills.patients:
            yield "patient", stills.patients[video.name], str(path)


def split_by_patient(stills: Stills, val_share: float, seed: int) -> tuple[Stills, Stills]:
    """Split a set in two, patients (or, where none are stated, groups of near-duplicates) kept together.

    A patient's side depends on its name and the seed alone, so it stays when the set grows.

    Args:
        stills: to split.
        val_share: share of the patients that validate, in [0, 1].
        seed: another seed gives another split.

    Returns:
        Train and val.
    """
    groups = _groups(stills)
    val = {group for group in set(groups.values()) if _draw(f"{seed}:{stills.name}:{group}") < val_share}
    sides: tuple[list[Video], list[Video]] = ([], [])
    for video in stills.index.videos:
        sides[groups[video.name] in val].append(video)
    return stills.keep(sides[0]), stills.keep(sides[1])


def _groups(stills: Stills) -> dict[str, str]:
    """By name of the video: its patient, or the first still among its near-duplicates."""
    unnamed = [video for video in stills.index.videos if video.name not in stills.patients]
    return stills.patients | _near_duplicates(unnamed)


def _near_duplicates(videos: Sequence[Video]) -> dict[str, str]:
    reader = FrameReader(0)
    hashes = {video.name: perceptual_hash(reader.read(video.frames[0])) for video in videos}
    hashed = [name for name, value in hashes.items() if value is not None]
    group = {video.name: video.name for video in videos}
    if not hashed:
        return group
    signs = np.stack([hashes[name] for name in hashed])
    near = signs @ signs.T >= signs.shape[1] - 2 * NEAR_BITS
    members: dict[str, list[str]] = defaultdict(list)
    for first, row in enumerate(near):
        for second in np.flatnonzero(row[:first]):
            _join(group, members, hashed[first], hashed[int(second)])
    return group


def _join(group: dict[str, str], members: dict[str, list[str]], first: str, second: str) -> None:
    keep, drop = sorted((group[first], group[second]))
    if keep == drop:
        return
    moved = members.pop(drop, [drop])
    members[keep] = members.get(keep, [keep]) + moved
    for name in moved:
        group[name] = keep


def _draw(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
