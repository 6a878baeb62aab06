"""What may differ between two runs of one recipe."""

import os
from dataclasses import dataclass, field


def default_workers() -> int:
    """Return eight loader processes, or this training process's share of the processor where that is less."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, (os.cpu_count() or 1) // processes))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What may differ between two runs of the same recipe without changing their result.

    Attributes:
        workers: processes that load clips (see `default_workers`); 0 loads in this process.
        save_minutes: minutes between checkpoints within an epoch.
        tensorboard: also write TensorBoard events.
        trained_on: what the weights say that they were trained on.
    """

    workers: int = field(default_factory=default_workers)
    save_minutes: float = 30.0
    tensorboard: bool = False
    trained_on: str = "unnamed data"
