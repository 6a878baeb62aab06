"""Training clips from an index, the same whatever the number of loader workers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stnet.data.clips.planning import LOCAL_FRAMES, sample_clip
from stnet.data.clips.transforms import Transform, normalize, relative_boxes
from stnet.data.frames import FrameReader
from stnet.data.index import DatasetIndex

CACHE_BYTES = 256 * 2**20

ClipSampler = Callable[[int, int, int, np.random.Generator, int], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSample:
    """One clip: F frames, of which the first T are targets.

    `images` float32 `[F, 3, H, W]`, normalized; per target `boxes` float32 `[n, 4]`, cx, cy, w, h in [0, 1] of the
    image, `labels` int64 `[n]` from 1, and `annotated` (False: no loss for this frame). `frames` are indices
    into the video, `image_ids` the ids of the same frames in the annotation file.
    """

    images: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    annotated: list[bool]
    video: str
    frames: tuple[int, ...]
    image_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch:
    """B clips padded at the right and bottom to one size.

    `images` float32 `[B, F, 3, H, W]`, 0 where padded; `padding_mask` bool `[B, H, W]`, True = padded; the lists
    hold what the clips' `ClipSample` held, boxes still in units of the unpadded image.
    """

    images: Tensor
    padding_mask: Tensor
    boxes: list[list[Tensor]]
    labels: list[list[Tensor]]
    annotated: list[list[bool]]
    videos: list[str]
    frames: list[tuple[int, ...]]
    image_ids: list[tuple[int, ...]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ClipBatch":
        """Return the batch with its tensors on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ClipBatch":
        """Return the batch in pinned memory; the `DataLoader` calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "ClipBatch":
        return replace(
            self,
            images=function(self.images),
            padding_mask=function(self.padding_mask),
            boxes=[[function(boxes) for boxes in clip] for clip in self.boxes],
            labels=[[function(labels) for labels in clip] for clip in self.labels],
        )


class ClipDataset(Dataset):
    """Clips around every annotated frame of an index.

    An item is a function of the seed, the epoch (`set_epoch`) and its index: bit-reproducible, whichever
    worker makes it. An index of n more, for n clips, is the same clip with other random choices.

    Args:
        index: the videos.
        frames_per_clip: F.
        transform: changes the clip, see `stnet.data.clips.transforms`.
        targets: T, how many of the frames are predicted.
        seed: of all random choices.
        sampler: chooses the frames.
        cache_bytes: bounds the decoded frames that each worker keeps.
    """

    def __init__(
        self,
        index: DatasetIndex,
        frames_per_clip: int,
        transform: Transform,
        targets: int = LOCAL_FRAMES,
        seed: int = 0,
        *,
        sampler: ClipSampler = sample_clip,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.index = index
        self.frames_per_clip = frames_per_clip
        self.transform = transform
        self.targets = targets
        self.seed = seed
        self.sampler = sampler
        self.reader = FrameReader(cache_bytes)
        self.centres = [
            (v, f) for v, video in enumerate(index.videos) for f, frame in enumerate(video.frames) if frame.annotated
        ]
        # In shared memory, so that persistent workers see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the randomness of the epoch, for all workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.centres)

    def __iter__(self) -> Iterator[ClipSample]:
        return (self[item] for item in range(len(self)))  # Python's own would go on through further draws

    def __getitem__(self, item: int) -> ClipSample:
        video_index, centre = self.centres[item % len(self.centres)]
        video = self.index.videos[video_index]
        rng = np.random.default_rng((self.seed, int(self._epoch), item))
        frames = self.sampler(len(video.frames), centre, self.frames_per_clip, rng, self.targets)
        stack = self.transform(self.reader.read_clip(video, frames), rng)
        chosen = [video.frames[frame] for frame in frames]
        targets = range(self.targets)
        return ClipSample(
            images=normalize(stack.frames),
            boxes=[torch.from_numpy(relative_boxes(stack.boxes[t], stack.height, stack.width)) for t in targets],
            labels=[torch.from_numpy(stack.labels[t]) for t in targets],
            annotated=[chosen[t].annotated for t in targets],
            video=video.name,
            frames=frames,
            image_ids=tuple(frame.image_id for frame in chosen),
        )


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Pad clips to their largest height and width."""
    height = max(sample.images.shape[2] for sample in samples)
    width = max(sample.images.shape[3] for sample in samples)
    frames = samples[0].images.shape[0]
    images = torch.zeros(len(samples), frames, 3, height, width)
    padding_mask = torch.ones(len(samples), height, width, dtype=torch.bool)
    for image, mask, sample in zip(images, padding_mask, samples, strict=True):
        h, w = sample.images.shape[2:]
        image[:, :, :h, :w] = sample.images
        mask[:h, :w] = False
    return ClipBatch(
        images=images,
        padding_mask=padding_mask,
        boxes=[sample.boxes for sample in samples],
        labels=[sample.labels for sample in samples],
        annotated=[sample.annotated for sample in samples],
        videos=[sample.video for sample in samples],
        frames=[sample.frames for sample in samples],
        image_ids=[sample.image_ids for sample in samples],
    )
