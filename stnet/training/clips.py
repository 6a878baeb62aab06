"""The clips a recipe trains on: which frames they show and how they are augmented."""

from dataclasses import dataclass

import numpy as np

from stnet.data.augment import Augmentation, TimeJitter, improved_training_transform
from stnet.data.clips.dataset import ClipDataset, ClipSampler
from stnet.data.clips.planning import LOCAL_FRAMES, sample_clip
from stnet.data.clips.transforms import evaluation_transform, paper_training_transform
from stnet.data.index import DatasetIndex
from stnet.data.synthetic.still_clips import Defences, still_training_transform
from stnet.training.config import TrainConfig


def training_clips(index: DatasetIndex, config: TrainConfig) -> ClipDataset:
    """Return the clips of an index with the recipe's sampling and augmentation.

    A clip always has the published frames; more than three targets supervise its global frames as well.
    """
    size, longest = config.model.image_size, config.model.max_image_size
    strengths = Augmentation()
    transform = {
        "none": lambda: evaluation_transform(size, longest),
        "paper": lambda: paper_training_transform(size, longest),
        "improved": lambda: improved_training_transform(size, longest, strengths),
        "stills": lambda: still_training_transform(
            size, longest, index=index, defences=Defences().without(*config.without_defences)
        ),
    }[config.augmentation]()
    choose = sample_clip
    if config.augmentation == "improved":
        choose = TimeJitter(stride=strengths.stride, reversal=strengths.reversal)
    return ClipDataset(
        index,
        config.model.frames,
        transform,
        targets=config.targets,
        seed=config.seed,
        sampler=_LocalsAndGlobals(choose),
    )


def frame_aspect(clips: ClipDataset, item: int) -> float:
    """Return height over width of the frame a clip is drawn around."""
    video, frame = clips.centres[item]
    frame = clips.index.videos[video].frames[frame]
    return frame.height / frame.width


@dataclass(frozen=True)
class _LocalsAndGlobals:
    """Chooses the frames of a clip with at most three targets, however many are supervised."""

    choose: ClipSampler

    def __call__(
        self, length: int, centre: int, frames_per_clip: int, rng: np.random.Generator, targets: int
    ) -> tuple[int, ...]:
        return self.choose(length, centre, frames_per_clip, rng, min(targets, LOCAL_FRAMES))
