"""What a training tells as it goes: callbacks, of which TensorBoard is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stnet.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A training that begins, or goes on.

    Attributes:
        folder: what it leaves behind.
        config: the recipe.
        step: optimizer steps that are made already.
        steps: optimizer steps of the whole run.
    """

    folder: Path
    config: TrainConfig
    step: int
    steps: int


class Callback:
    """Is told of a training in its first process; every method does nothing unless it is overridden.

    What a method raises ends the training, which can be resumed.
    """

    def start(self, run: RunStart) -> None:
        """Take in that the training begins or goes on."""

    def step(self, row: Mapping[str, float]) -> None:
        """Take in an optimizer step: what `steps.csv` has of it."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Take in an epoch: what `metrics.csv` has of it, None where there is no value."""

    def end(self, error: BaseException | None) -> None:
        """Take in that the training has ended, by an error or without one."""


class TensorBoard(Callback):
    """Writes events for TensorBoard into the folder `tensorboard` of the run."""

    def __init__(self) -> None:
        # Asked for now: a missing package is told before anything is computed.
        from torch.utils.tensorboard import SummaryWriter

        self._made, self._events = SummaryWriter, None

    def start(self, run: RunStart) -> None:
        """Open the events."""
        self._events = self._made(run.folder / "tensorboard")

    def step(self, row: Mapping[str, float]) -> None:
        """Write the step."""
        self._write(row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Write the epoch."""
        self._write(row)

    def end(self, error: BaseException | None) -> None:
        """Close the events."""
        self._events.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(name, value, int(row["step"]))
