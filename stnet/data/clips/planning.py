"""Which frames make a clip.

A clip of F frames starts with its *local* frames, the centre frame t and its neighbours in the order

    t, t-1, t+1, t+2, t-2, t+3, t-3, ...

followed by *global* frames that show the rest of the video. The locals are the first max(3, targets) of that
order (at most F), the globals fill the clip up. The first `targets` frames of a clip are the ones predicted:
one to three targets share the published clip of three locals; more targets take the place of globals, and a
clip with F targets has none. Indices beyond the ends of a video are clamped, so short videos repeat frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LOCAL_FRAMES = 3


@dataclass(frozen=True, kw_only=True)
class Clip:
    """`frames`: F indices into the video. `targets`: the clip positions whose predictions are kept."""

    frames: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def predicted(self) -> tuple[int, ...]:
        """Return the frames of the video that this clip predicts, in the order of `targets`."""
        return tuple(self.frames[position] for position in self.targets)


def plan_clips(length: int, frames_per_clip: int, targets: int = LOCAL_FRAMES) -> list[Clip]:
    """Return clips that predict every frame of a video of `length` frames exactly once.

    Centres are `targets` frames apart; the last clip moves back where that spares it repeated frames. The
    global frames are evenly spread over the video and the same in all clips, so their features need computing
    once.

    Raises:
        ValueError: unless length >= 1 and 1 <= targets <= frames_per_clip.
    """
    _check(length, frames_per_clip, targets)
    return _clips(length, range(0, length, targets), frames_per_clip, targets)


def common_frames(length: int, frames_per_clip: int, targets: int = LOCAL_FRAMES) -> set[int]:
    """Return the frames that all clips of `plan_clips` share, at no cost however long the video is said to be.

    Raises:
        ValueError: as `plan_clips` does.
    """
    _check(length, frames_per_clip, targets)
    first, last = _clips(length, (0, (length - 1) // targets * targets), frames_per_clip, targets)
    return set(first.frames) & set(last.frames)


def _clips(length: int, starts: Iterable[int], frames_per_clip: int, targets: int) -> list[Clip]:
    """Return the clips that predict the `targets` frames from each start on."""
    offsets = local_offsets(frames_per_clip, targets)
    spread = _global_frames(length, frames_per_clip - len(offsets))
    left, right = -min(offsets[:targets]), max(offsets[:targets])
    clips = []
    for start in starts:
        end = min(start + targets, length)
        centre = max(min(start + left, length - 1 - right), min(left, length - 1))
        locals_ = [centre + offset for offset in offsets]
        kept = tuple(p for p in range(targets) if start <= locals_[p] < end)
        clips.append(Clip(frames=_clamp(locals_, length) + spread, targets=kept))
    return clips


def sample_clip(
    length: int, centre: int, frames_per_clip: int, rng: np.random.Generator, targets: int = LOCAL_FRAMES
) -> tuple[int, ...]:
    """Return a training clip around `centre` by the published recipe, as indices into the video.

    The global frames are drawn from the rest of the video: different from each other where the video is long
    enough, never the centre, never the video's last frame, but possibly a neighbour.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(length, frames_per_clip, targets)
    if not 0 <= centre < length:
        raise ValueError(f"centre {centre} is not a frame of a video of {length} frames")
    offsets = local_offsets(frames_per_clip, targets)
    count = frames_per_clip - len(offsets)
    rest = np.array([frame for frame in range(length - 1) if frame != centre] or [centre])
    drawn = rng.choice(rest, size=count, replace=len(rest) < count)
    return _clamp([centre + offset for offset in offsets], length) + tuple(int(frame) for frame in drawn)


def local_offsets(frames_per_clip: int, targets: int) -> tuple[int, ...]:
    """Return where the local frames of a clip lie relative to its centre, in clip order."""
    order = [0, -1, 1]
    distance = 2
    while len(order) < frames_per_clip:
        order += [distance, -distance]
        distance += 1
    return tuple(order[: min(frames_per_clip, max(LOCAL_FRAMES, targets))])


def _global_frames(length: int, count: int) -> tuple[int, ...]:
    """Return the middles of `count` equal parts of the video."""
    return tuple((2 * part + 1) * length // (2 * count) for part in range(count))


def _clamp(frames: list[int], length: int) -> tuple[int, ...]:
    return tuple(min(max(frame, 0), length - 1) for frame in frames)


def _check(length: int, frames_per_clip: int, targets: int) -> None:
    if length < 1:
        raise ValueError(f"a video of {length} frames has no clips")
    if not 1 <= targets <= frames_per_clip:
        raise ValueError(f"targets {targets} must lie between 1 and the {frames_per_clip} frames of a clip")
