"""The order in which clips are trained on: a function of seed, epoch and step, whatever the number of processes."""

from collections.abc import Iterator, Sequence

import torch

from stnet.errors import ConfigError


class ClipOrder:
    """A batch sampler for one process: yields the clips of its accumulation steps, step after step.

    Every epoch is a fresh permutation; where an epoch needs more clips than there are, another permutation
    follows, whose numbers go on after the last clip's: such a number stands for the same clip, drawn anew (see
    `ClipDataset`). The clips of an optimizer step depend on neither the number of processes nor of accumulation steps.

    Args:
        items: clips to choose from.
        clips_per_epoch: clips in an epoch, rounded up to whole steps; 0: all.
        batch_size: clips of an optimizer step over all processes.
        accumulate: passes a step is split into.
        seed: of the permutations.
        rank, world: this process and the number of processes.
        aspects: height over width of every clip; those of a step that are alike are computed together, because clips
            of one pass are padded to one size.

    Raises:
        ConfigError: where the batch size cannot be split evenly.
    """

    def __init__(
        self,
        items: int,
        *,
        clips_per_epoch: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        aspects: Sequence[float] | None = None,
    ):
        if batch_size % (accumulate * world):
            raise ConfigError(
                f"batch_size {batch_size} cannot be split over {world} processes times {accumulate} accumulation "
                f"steps; choose a multiple of {accumulate * world}"
            )
        self.items = items
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.rank = rank
        self.world = world
        self.aspects = aspects
        self.steps = -(-(clips_per_epoch or items) // batch_size)  # optimizer steps per epoch
        self.epoch = 0
        self.first_step = 0

    def start(self, epoch: int, step: int = 0) -> None:
        """Make the next iteration run through `epoch`, beginning at optimizer step `step` of it."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for step in range(self.first_step, self.steps):
            whole = order[step * self.batch_size : (step + 1) * self.batch_size]
            if self.aspects is not None:
                whole.sort(key=lambda item: self.aspects[item % self.items])
            size = self.batch_size // (self.accumulate * self.world)
            for part in range(self.accumulate):
                first = (part * self.world + self.rank) * size
                yield whole[first : first + size]

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        needed = self.steps * self.batch_size
        order: list[int] = []
        while len(order) < needed:
            order += (len(order) + torch.randperm(self.items, generator=generator)).tolist()
        return order[:needed]
