"""Several processes training one model: `torchrun --nproc_per_node=8 train.py ...`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stnet.devices import resolve_device

TIMEOUT = timedelta(minutes=30)  # one process may evaluate a long video while the others wait


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all that train together.

    Attributes:
        rank: number of this process; 0 writes files and prints.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each number over all processes, in float64."""
        if self.size == 1:
            return [float(value) for value in values]
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def gather(self, item: Any) -> list[Any]:
        """Every process's item, in order of rank, on every process."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def wrap(self, model: nn.Module, every_parameter_used: bool) -> nn.Module:
        """Have gradients averaged over the processes; the model itself where there is only one."""
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return nn.parallel.DistributedDataParallel(
            model,  # without device_ids inputs stay where they are: the padding mask on the CPU
            find_unused_parameters=not every_parameter_used,
            # Synchronized norms keep their statistics equal; without them (on CPUs) those of the first process count.
            broadcast_buffers=self.device.type != "cuda",
        )

    def share_statistics(self, model: nn.Module) -> None:
        """Give every process the first one's statistics of BatchNorm, which is what it saves.

        On CPUs each process adds its own clips to them in every step, and those of the first count again in the next.
        """
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for statistic in module.buffers(recurse=False):
                    dist.broadcast(statistic, 0)

    def close(self) -> None:
        """Leave the group of processes."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(device: str = "auto") -> World:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: for a device this machine does not have.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = resolve_device(device, local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        return World(device=chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    return World(rank=dist.get_rank(), size=size, device=chosen)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
