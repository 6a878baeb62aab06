"""From videos to clips: which frames go to the model when, with few frames in memory whatever the length.

Every clip of a video contains the same global frames, which may lie far ahead of its local ones. A first pass
over the source (decoding only) finds the true number of frames and picks out the global ones; the second pass
streams. Neither the length that a file declares nor the number of frames that come out the second time is trusted.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from stnet.command_line import explain
from stnet.data.clips.planning import Clip, common_frames, plan_clips
from stnet.errors import EXTERNAL, VideoError
from stnet.execution.timing import StageTimer
from stnet.video import VideoFrame, VideoSource


@dataclass(frozen=True, kw_only=True)
class VideoStart:
    """A video whose frames follow. `length` is the number of frames counted in it."""

    key: int  # running number of the video
    name: str
    source: VideoSource
    length: int
    stopped: threading.Event  # to be set by whoever wants no more of this video


@dataclass(frozen=True, kw_only=True)
class VideoEnd:
    """The end of a video: how it went, and how many frames were delivered. With `error`, none were usable."""

    key: int
    name: str
    status: str
    problems: tuple[str, ...]
    frames: int
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """A clip ready for the model.

    `new_frames` are those the model has not seen yet, `last_uses` those no later clip needs (indices);
    `predicted` pairs the clip positions to be kept with their frames, in the order of the video.
    """

    video: int
    name: str
    clip: Clip
    new_frames: dict[int, np.ndarray]
    last_uses: tuple[int, ...]
    predicted: tuple[tuple[int, VideoFrame], ...]
    height: int
    width: int
    stopped: threading.Event


MAX_SCANS = 4
"""Passes over a video until its frame count repeats: two where the declared count is wrong, more if it changes."""

OpenVideo = tuple[str, Callable[[], VideoSource]]
"""A video's name, and what opens it (raising `VideoError` where it is unusable)."""


def read_clips(
    videos: Iterable[OpenVideo], frames_per_clip: int, targets: int, timer: StageTimer | None = None
) -> Iterator[VideoStart | ClipTask | VideoEnd]:
    """Yield the clips of all videos in turn, each video framed by a `VideoStart` and a `VideoEnd`.

    A video that is unusable gives a `VideoEnd` with an error; the others go on.
    """
    for key, (name, open_video) in enumerate(videos):
        stopped = threading.Event()
        try:
            source = open_video()
            layout = _Layout.of(source, frames_per_clip, targets)
            yield VideoStart(key=key, name=name, source=source, length=layout.length, stopped=stopped)
            delivered = yield from _ClipReader(key, name, source, layout, timer, stopped).tasks()
        except EXTERNAL as error:
            yield failed(key, name, error)
            continue
        yield VideoEnd(key=key, name=name, status=source.status, problems=source.problems, frames=delivered)


def failed(key: int, name: str, error: Exception) -> VideoEnd:
    """Return the end of a video of which nothing can be used because of an error."""
    return VideoEnd(key=key, name=name, status="unreadable", problems=(explain(error),), frames=0, error=error)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The clips of a video, and those of its frames that all clips share."""

    length: int
    clips: list[Clip]
    shared: dict[int, VideoFrame]

    @classmethod
    def of(cls, source: VideoSource, frames_per_clip: int, targets: int) -> "_Layout":
        length = max(source.declared_frames or 1, 1)
        for _ in range(MAX_SCANS):
            # All clips are planned once the length is known: damaged and hostile files declare billions of frames.
            found = source.scan(common_frames(length, frames_per_clip, targets))
            if found.length < 1:
                raise VideoError(f"{source.name}: no frame can be decoded")
            if found.length == length:
                clips = plan_clips(length, frames_per_clip, targets)
                return cls(length=length, clips=clips, shared=found.frames)
            length = found.length
        raise VideoError(f"{source.name}: the number of its frames differs from pass to pass")


@dataclass
class _ClipReader:
    """Streams one video, holding the frames between the oldest and the newest that a clip still needs."""

    key: int
    name: str
    source: VideoSource
    layout: _Layout
    timer: StageTimer | None
    stopped: threading.Event
    _recent: dict[int, VideoFrame] = field(default_factory=dict)
    _sent: set[int] = field(default_factory=set)
    _newest: int = -1

    def tasks(self) -> Iterator[ClipTask]:
        """Yield the clips; return the number of frames predicted."""
        delivered = 0
        with closing(iter(self.source)) as decoded:
            frames = decoded if self.timer is None else self.timer.iterate("decode", decoded)
            for clip, following in zip(self.layout.clips, [*self.layout.clips[1:], None], strict=True):
                if self.stopped.is_set():
                    return delivered
                task = self._task(clip, following, frames)
                delivered += len(task.predicted)
                if task.predicted:
                    yield task
            for _ in frames:  # what came beyond the counted length decides the status, nothing else
                pass
        return delivered

    def _task(self, clip: Clip, following: Clip | None, frames: Iterator[VideoFrame]) -> ClipTask:
        streamed = [index for index in clip.frames if index not in self.layout.shared]
        predicted = sorted((clip.frames[position], position) for position in clip.targets)
        self._read_to(max([*streamed, *(index for index, _ in predicted)]), frames)
        if self._newest < 0 and not self.layout.shared:
            raise VideoError(f"{self.name}: its frames could be counted but not be read again")
        clip = Clip(frames=tuple(self._existing(index) for index in clip.frames), targets=clip.targets)
        kept = tuple((position, self._recent[i]) for i, position in predicted if i in self._recent)
        new = {index: self._image(index) for index in clip.frames if index not in self._sent}
        self._sent.update(new)
        needed = set(following.frames) | set(self.layout.shared) if following else set()
        last_uses = tuple(sorted(self._sent - needed))
        self._sent -= set(last_uses)
        self._forget(following)
        return ClipTask(
            video=self.key,
            name=self.name,
            clip=clip,
            new_frames=new,
            last_uses=last_uses,
            predicted=kept,
            height=self.source.height,
            width=self.source.width,
            stopped=self.stopped,
        )

    def _read_to(self, index: int, frames: Iterator[VideoFrame]) -> None:
        while self._newest < index:
            frame = next(frames, None)
            if frame is None:
                return
            self._recent[frame.index] = frame
            self._newest = frame.index

    def _existing(self, index: int) -> int:
        """`index`, or the last frame where the second pass ended before the first."""
        if index in self.layout.shared or index <= self._newest:
            return index
        return self._newest if self._newest >= 0 else min(self.layout.shared)

    def _image(self, index: int) -> np.ndarray:
        return (self._recent[index] if index in self._recent else self.layout.shared[index]).image

    def _forget(self, following: Clip | None) -> None:
        """Drop frames before the next clip's; the newest stays to stand in for frames that never come."""
        if following is None:
            return
        streamed = [index for index in following.frames if index not in self.layout.shared]
        predicted = [following.frames[position] for position in following.targets]
        first = min([*streamed, *predicted])
        for index in [i for i in self._recent if i < first and i != self._newest]:
            del self._recent[index]
