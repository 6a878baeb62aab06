"""Explains lesions: the clip that predicted the best frame of each is read and run once more."""

from collections.abc import Collection, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from stnet.data.clips.planning import Clip, plan_clips
from stnet.errors import VideoError
from stnet.execution.inspection import InspectedClip
from stnet.inference.detector import VideoDetector
from stnet.inference.explanation import Explanation, LookedAt
from stnet.kernels import SamplingPoints
from stnet.lesions import Lesion
from stnet.model.postprocess import class_scores
from stnet.video import VideoFrame, VideoSource

BINS = 80
"""Encoder samples are taken together in squares of the longer side of the frame divided by this."""

REPEATED = 0.1
"""Largest difference of scores of one detection between two runs, in 16 bits."""


class Explainer:
    """Tells where a detector looked for the lesions with the highest scores.

    Args:
        detector: that found them.
        count: how many lesions of each video are explained.
    """

    def __init__(self, detector: VideoDetector, count: int) -> None:
        self._detector, self._count = detector, count

    def __call__(self, source: VideoSource, length: int, lesions: Sequence[Lesion]) -> list[Explanation]:
        """Return the explanations, the lesion with the highest score first.

        Args:
            source: the video, which is read once more.
            length: frames that the clips were planned for.
            lesions: that the detector found in it.

        Raises:
            VideoError: it cannot be read again, or gives another result.
            StnetError: memory does not suffice.
        """
        best = sorted(lesions, key=lambda lesion: -lesion.score)[: self._count]
        if not best:
            return []
        clips = self._clips(length, [lesion.best_frame for lesion in best])
        frames = _frames(source, {frame for clip in clips.values() for frame in clip.frames})
        return [self._explained(lesion, clips[lesion.best_frame], frames, source.name) for lesion in best]

    def _clips(self, length: int, wanted: Sequence[int]) -> dict[int, Clip]:
        """Return the clip that predicted each frame."""
        engine = self._detector.engine
        clips = plan_clips(length, engine.config.frames, engine.targets)
        return {frame: clip for clip in clips for frame in clip.predicted if frame in wanted}

    def _explained(self, lesion: Lesion, clip: Clip, frames: dict[int, VideoFrame], name: str) -> Explanation:
        target = clip.targets[clip.predicted.index(lesion.best_frame)]
        images = [frames[frame].image for frame in clip.frames]
        inspected = InspectedClip(self._detector.engine, images, target)
        height, width = images[0].shape[:2]
        scores = class_scores(inspected.logits[:, 1:], self._detector.operating_points)[:, lesion.label - 1]
        query, box = _query(inspected, scores, lesion, frames[lesion.best_frame].origin, (height, width))
        score = float(scores[query])
        recorded = lesion.scores[lesion.best, lesion.label - 1]
        if abs(score - recorded) > REPEATED:
            raise VideoError(
                f"{name}: lesion {lesion.number} cannot be explained: read again, its frame {lesion.best_frame} gives "
                f"a score of {score:.2f} instead of {recorded:.2f}"
            )
        decoder = _by_frame(inspected.decoder_points(query), len(images), height, width)
        encoder = _by_frame(inspected.encoder_points(box), len(images), height, width)
        places: dict[tuple[bool, int], list[int]] = {}  # clips of short videos repeat frames
        for place, frame in enumerate(clip.frames):
            places.setdefault((place != target, frame), []).append(place)
        return Explanation(
            lesion=lesion.number,
            frame=lesion.best_frame,
            time=float(lesion.times[lesion.best]),
            label=lesion.label,
            score=score,
            frames=tuple(
                LookedAt(
                    frame=frame,
                    image=frames[frame].image,
                    own=not other,
                    box=_box(lesion, frames[frame]),
                    decoder=np.concatenate([decoder[place] for place in same]),
                    encoder=_binned(np.concatenate([encoder[place] for place in same]), max(height, width) / BINS),
                )
                for (other, frame), same in sorted(places.items())
            ),
        )


def _frames(source: VideoSource, wanted: Collection[int]) -> dict[int, VideoFrame]:
    found: dict[int, VideoFrame] = {}
    with closing(iter(source)) as frames:
        for frame in frames:
            if frame.index in wanted:
                found[frame.index] = frame
            if len(found) == len(wanted):
                return found
    raise VideoError(
        f"{source.name}: {len(wanted) - len(found)} of its frames could not be read again to explain lesions"
    )


def _query(
    inspected: InspectedClip, scores: Tensor, lesion: Lesion, origin: tuple[int, int], size: tuple[int, int]
) -> tuple[int, list[float]]:
    """Return the query that found a lesion in its best frame, by `scores` `[Q]`, and its box in units of the frame."""
    height, width = size
    centre, extent = inspected.boxes.split(2, dim=1)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
    place = (lesion.boxes[lesion.best] - np.tile(origin, 2)) / [width, height, width, height]
    overlaps = box_iou(corners.double(), torch.from_numpy(place)[None])[:, 0]
    recorded = float(lesion.scores[lesion.best, lesion.label - 1])
    query = int(((scores - recorded).abs() - overlaps).argmin())
    return query, corners[query].tolist()


def _by_frame(points: SamplingPoints, frames: int, height: int, width: int) -> list[np.ndarray]:
    """Return the samples inside of each frame of the clip, x, y in pixels and weight, `[K, 3]` each."""
    _, _, queries, heads, _ = points.weights.shape
    locations = points.locations.float().flatten(0, 3).cpu().numpy()  # [queries * heads, N, 2]
    weights = points.weights.float().flatten(0, 3).cpu().numpy() / (queries * heads)
    of_frame = points.frames[0].cpu().numpy()
    rows = []
    for frame in range(frames):
        here = of_frame == frame
        table = np.concatenate([locations[:, here] * [width, height], weights[:, here, None]], axis=2).reshape(-1, 3)
        inside = ((table[:, :2] >= 0) & (table[:, :2] < [width, height])).all(axis=1) & (table[:, 2] > 0)
        rows.append(table[inside].astype(np.float32))
    return rows


def _binned(points: np.ndarray, side: float) -> np.ndarray:
    """Return one point for all those in a square, at their mean place, with the sum of their weights."""
    if not len(points):
        return points
    _, which = np.unique((points[:, :2] // side).astype(int), axis=0, return_inverse=True)
    which = which.reshape(-1)
    weights = np.bincount(which, points[:, 2])
    places = [np.bincount(which, points[:, 2] * points[:, axis]) / weights for axis in (0, 1)]
    return np.stack([*places, weights], axis=1).astype(np.float32)


def _box(lesion: Lesion, frame: VideoFrame) -> tuple[float, float, float, float] | None:
    seen = lesion.in_frame(frame.index)
    return None if seen is None else tuple((seen.box - np.tile(frame.origin, 2)).tolist())
