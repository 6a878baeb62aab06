"""Frames and videos that occur twice, found by perceptual hashes."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

HASH_SIDE = 16
# Of 256 bits. Recompressed, resized or brightened copies differ in fewer, unrelated frames in about 128.
NEAR_BITS = 28
# Videos that share this part of the shorter one's frames are the same video.
SAME_VIDEO_SHARE = 0.5
_CHUNK = 2048


def perceptual_hash(pixels: np.ndarray) -> np.ndarray | None:
    """256 signs (+1, -1; float32) of the horizontal brightness steps of an image uint8 [H, W, C].

    None for an image without structure, which would resemble every other such image.
    """
    gray = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("L")
    small = np.asarray(gray.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.float32)
    if small.std() < 2:
        return None
    return np.where(np.diff(small, axis=1) > 0, np.float32(1), np.float32(-1)).ravel()


@dataclass(frozen=True, kw_only=True)
class SharedFrames:
    """Two videos (numbers in the order given) that share frames: how many of the first's, and one example."""

    first: int
    second: int
    count: int
    share: float
    example: tuple[int, int]


def shared_frames(hashes: np.ndarray, videos: np.ndarray) -> Iterator[SharedFrames]:
    """Pairs of different videos with near-duplicate frames.

    `hashes` float32 [N, 256] as from `perceptual_hash`, `videos` int [N] the number of the video of each
    frame. `share` is relative to the shorter video.
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
