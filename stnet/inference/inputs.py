"""What a `VideoDetector` may be called with, as videos to be opened one after the other."""

import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image

from stnet.errors import VideoError
from stnet.inference.clip_reader import OpenVideo
from stnet.video import ArraySource, SpooledSource, VideoInput, VideoSource, find_inputs
from stnet.video.value_range import ValueRange, checked_range, picture_values

Named = str | os.PathLike


def open_videos(videos: Any, fps: Fraction, value_range: ValueRange | None = None) -> Iterator[OpenVideo]:
    """Yield name and opener of every video.

    Args:
        videos: a path (file, folder of frames or of videos, pattern); an array or tensor of frames; a picture of PIL; a
            `VideoSource`; an iterable of frames; and lists of paths, sources, and arrays `[N, H, W, 3]`. A list of
            images is one video.
        fps: the frame rate where the input states none.
        value_range: the values of black and white in arrays, tensors and pictures.

    Raises:
        VideoError: anything else.
    """
    value_range = checked_range(value_range)
    if isinstance(videos, Named):
        yield from _named([videos], fps, value_range)
    elif isinstance(videos, VideoSource):
        _refuse_range(value_range, videos.name)
        yield videos.name, lambda: videos
    elif isinstance(videos, VideoInput):
        _refuse_range(value_range, videos.name)
        yield videos.name, lambda: videos.open(fps)
    elif isinstance(videos, np.ndarray | torch.Tensor):
        yield "array", lambda: ArraySource(as_array(videos), "array", fps, value_range)
    elif isinstance(videos, Image.Image):
        yield "picture", lambda: SpooledSource([as_array(videos)], "picture", fps, value_range)
    elif isinstance(videos, Iterable):
        yield from _several(iter(videos), fps, value_range)
    else:
        raise VideoError(
            f"cannot read frames from a {type(videos).__name__}; pass a path, an array, a picture of PIL or frames"
        )


def _several(items: Iterator[Any], fps: Fraction, value_range: ValueRange | None) -> Iterator[OpenVideo]:
    first = next(items, None)
    if first is None:
        raise VideoError("no video and no frame given")
    items = itertools.chain([first], items)
    if _is_image(first):
        yield "frames", lambda: SpooledSource((as_array(image) for image in items), "frames", fps, value_range)
        return
    for number, item in enumerate(items):
        for name, open_video in open_videos(item, fps, value_range):
            yield f"{name}-{number}" if name == "array" else name, open_video


def _named(names: list[Named], fps: Fraction, value_range: ValueRange | None) -> Iterator[OpenVideo]:
    for video in find_inputs(os.fspath(name) for name in names):
        _refuse_range(value_range, video.name)
        # Bound now: the opener is called when the loop has moved on.
        yield video.name, lambda video=video: video.open(fps)


def _refuse_range(value_range: ValueRange | None, name: str) -> None:
    if value_range is not None:
        raise VideoError(f"{name}: value_range is for arrays and pictures in memory; a file says itself what is white")


def _is_image(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim < 4)


def as_array(frames: np.ndarray | torch.Tensor | Image.Image) -> np.ndarray:
    """Return frames with channels last; tensors may have them first, as torchvision's do.

    Raises:
        VideoError: a picture that holds several.
    """
    if isinstance(frames, np.ndarray):
        return frames
    if isinstance(frames, Image.Image):
        return picture_values(frames, "picture")
    if frames.ndim >= 3 and frames.shape[-3] == 3 and frames.shape[-1] != 3:
        frames = frames.movedim(-3, -1)
    frames = frames.detach().cpu()
    return (frames.float() if frames.dtype == torch.bfloat16 else frames).numpy()
