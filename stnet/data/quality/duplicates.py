"""Frames and videos that occur twice, found by perceptual hashes."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stnet.data.annotations.entries import ImageEntry
from stnet.data.quality.findings import Finding, Split

HASH_SIDE = 16
# Of 256 bits. Recompressed, resized or brightened copies differ in fewer, unrelated frames in about 128.
NEAR_BITS = 28
# Videos that share this part of the shorter one's frames are the same video.
SAME_VIDEO_SHARE = 0.5
_CHUNK = 2048


def perceptual_hash(pixels: np.ndarray) -> np.ndarray | None:
    """Return 256 signs (+1, -1; float32) of the horizontal brightness steps of an image uint8 [H, W, C].

    None for an image without structure, which would resemble every other such image.
    """
    gray = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("L")
    small = np.asarray(gray.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.float32)
    if small.std() < 2:
        return None
    return np.where(np.diff(small, axis=1) > 0, np.float32(1), np.float32(-1)).ravel()


@dataclass(frozen=True, kw_only=True)
class SharedFrames:
    """Two videos that share frames, as numbers: how many, which part of the shorter one's, and an example."""

    first: int
    second: int
    count: int
    share: float
    example: tuple[int, int]


def shared_frames(hashes: np.ndarray, videos: np.ndarray) -> Iterator[SharedFrames]:
    """Give the pairs of different videos with near-duplicate frames.

    Args:
        hashes: float32 `[N, 256]` as from `perceptual_hash`.
        videos: int `[N]`, the number of the video of each frame.
    """
    lengths = np.bincount(videos, minlength=1)
    matched: dict[tuple[int, int], tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    examples: dict[tuple[int, int], tuple[int, int]] = {}
    least = hashes.shape[1] - 2 * NEAR_BITS
    for start in range(0, len(hashes), _CHUNK):
        alike = hashes[start : start + _CHUNK] @ hashes.T >= least
        alike &= videos[start : start + _CHUNK, None] < videos[None]
        for a, b in zip(*np.nonzero(alike), strict=True):
            pair = (int(videos[start + a]), int(videos[b]))
            examples.setdefault(pair, (int(start + a), int(b)))
            matched[pair][0].add(int(start + a))
            matched[pair][1].add(int(b))
    for pair, (of_first, of_second) in sorted(matched.items()):
        count = min(len(of_first), len(of_second))
        yield SharedFrames(
            first=pair[0],
            second=pair[1],
            count=count,
            share=count / min(lengths[list(pair)]),
            example=examples[pair],
        )


class FrameHashes:
    """The hashes of frames, by video, across splits."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._videos: list[int] = []
        self._images: list[ImageEntry] = []
        self._sources: list[tuple[Split, int]] = []
        self._numbers: dict[tuple[str, int], int] = {}

    def add(self, split: Split, image: ImageEntry, code: np.ndarray | None) -> None:
        """Keep the hash of a frame, where it has one."""
        if code is None:
            return
        key = (split.name, image.video_id)
        if key not in self._numbers:
            self._numbers[key] = len(self._sources)
            self._sources.append((split, image.video_id))
        self._hashes.append(code)
        self._videos.append(self._numbers[key])
        self._images.append(image)

    def findings(self) -> list[Finding]:
        """Return the videos that are there twice, and those that share frames across splits."""
        if not self._hashes:
            return []
        pairs = shared_frames(np.stack(self._hashes), np.array(self._videos))
        return [finding for pair in pairs for finding in self._finding(pair)]

    def _finding(self, pair: SharedFrames) -> list[Finding]:
        (first, first_id), (second, second_id) = self._sources[pair.first], self._sources[pair.second]
        one, other = first.annotations.videos[first_id], second.annotations.videos[second_id]
        a, b = (self._images[i].file_name for i in pair.example)
        what = f"{other} shares {pair.count} frames ({pair.share:.0%} of the shorter video) with {one}"
        if first is not second:
            what += f" of {first.file.name}"
        what += f", for example {b} and {a}"
        if pair.share >= SAME_VIDEO_SHARE:
            kind, remedy = "duplicate video", "keep one of the two"
        elif first is not second:
            kind, remedy = "near-duplicate frames", "keep the video of one patient in one split"
        else:
            return []
        return [second.finding(kind, f"videos (id {second_id})", what, remedy)]
