"""What a `VideoDetector` may be called with, as videos to be opened one after the other."""

import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from stnet.errors import VideoError
from stnet.inference.clip_reader import OpenVideo
from stnet.video import ArraySource, SpooledSource, VideoInput, VideoSource, find_inputs

Named = str | os.PathLike


def open_videos(videos: Any, fps: Fraction) -> Iterator[OpenVideo]:
    """Name and opener of every video in `videos`; `fps` is the frame rate where the input states none.

    Accepted: a path (file, folder of frames or of videos, pattern); an array or tensor of frames; a
    `VideoSource`; an iterable of frames; and lists of paths, sources, and arrays `[N, H, W, 3]`. A list of
    images is one video. Raises `VideoError` for anything else.
    """
    if isinstance(videos, Named):
        yield from _named([videos], fps)
    elif isinstance(videos, VideoSource):
        yield videos.name, lambda: videos
    elif isinstance(videos, VideoInput):
        yield videos.name, lambda: videos.open(fps)
    elif isinstance(videos, np.ndarray | torch.Tensor):
        yield "array", lambda: ArraySource(as_array(videos), "array", fps)
    elif isinstance(videos, Iterable):
        yield from _several(iter(videos), fps)
    else:
        raise VideoError(f"cannot read frames from a {type(videos).__name__}; pass a path, an array or frames")


def _several(items: Iterator[Any], fps: Fraction) -> Iterator[OpenVideo]:
    first = next(items, None)
    if first is None:
        raise VideoError("no video and no frame given")
    items = itertools.chain([first], items)
    if _is_image(first):
        yield "frames", lambda: SpooledSource((as_array(image) for image in items), "frames", fps)
        return
    for number, item in enumerate(items):
        for name, open_video in open_videos(item, fps):
            yield f"{name}-{number}" if name == "array" else name, open_video


def _named(names: list[Named], fps: Fraction) -> Iterator[OpenVideo]:
    for video in find_inputs(os.fspath(name) for name in names):
        # Bound now: the opener is called when the loop has moved on.
        yield video.name, lambda video=video: video.open(fps)


def _is_image(item: Any) -> bool:
    return isinstance(item, np.ndarray | torch.Tensor) and item.ndim < 4


def as_array(frames: np.ndarray | torch.Tensor) -> np.ndarray:
    """Frames with channels last; tensors may have them first, as torchvision's do."""
    if isinstance(frames, np.ndarray):
        return frames
    if frames.ndim >= 3 and frames.shape[-3] == 3 and frames.shape[-1] != 3:
        frames = frames.movedim(-3, -1)
    return frames.detach().cpu().numpy()
