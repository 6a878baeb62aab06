"""One optimizer step on a global batch of clips, with the checks that come before the weights change."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stnet.data.clips.dataset import ClipBatch
from stnet.errors import NonFiniteError
from stnet.model.detector import DetectorOutput
from stnet.training.config import TrainConfig
from stnet.training.criterion import TERMS, Criterion, FrameLosses
from stnet.training.denoising import NoisedLesions, denoising_matches, noised_lesions, split_queries
from stnet.training.distributed import World
from stnet.training.optimizer import set_rates
from stnet.training.targets import FrameTargets

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST_SCALE = 1.0  # float16 gradients that overflow even unscaled are a fault, not a large scale


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What a step reports, summed over all processes.

    Attributes:
        loss: the loss that was differentiated.
        terms: unweighted terms of the last decoder layer by name (`TERMS`), mean over annotated frames.
        grad_norm: of all gradients, before clipping.
        requests: for each request, whether some process made it.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    requests: tuple[bool, ...]

    def __str__(self) -> str:
        terms = " ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        return f"loss {self.loss:.3f} ({terms})"


class Stepper:
    """Forward, backward and update.

    Args:
        model: a TrainedModel, wrapped for several processes where there are some.
        optimizer: over its trainable parameters, groups with `peak_lr`.
        config: the recipe.
        world: the processes that share the step.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, world: World):
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.world = world
        self.criterion = Criterion(class_loss=config.class_loss, auxiliary_repeats=config.auxiliary_repeats)
        self.dtype = AUTOCAST[config.precision]
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype is torch.float16)

    def run(
        self, batches: Sequence[ClipBatch], step: int, rate_factor: float, requests: Sequence[bool] = ()
    ) -> StepFigures:
        """Make one step on this process's share of the global batch, one pass per accumulation step.

        Args:
            batches: one per accumulation step.
            step: number of the step, from 0; seeds what is drawn for it.
            rate_factor: share of the peak learning rates.
            requests: what this process would like all to do afterwards; comes back in the figures.

        Raises:
            NonFiniteError: for predictions, a loss or gradients that are not finite, naming the clips; the weights
                are as before.
        """
        targets = [_targets(batch, self.world.device) for batch in batches]
        frames, *asked = self.world.sum([sum(map(_annotated, batches)), *requests])
        frames = max(frames, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        parts = [
            self._backward(batch, target, frames, step, last=number == len(batches) - 1)
            for number, (batch, target) in enumerate(zip(batches, targets, strict=True))
        ]
        terms = torch.stack(parts).sum(0)
        norm = self._gradient_norm()
        *terms, norm = torch.cat((terms, norm.reshape(1).double())).tolist()  # one wait for all figures
        self._update(norm, batches, rate_factor)
        loss, *terms = self.world.sum(terms)
        return StepFigures(
            loss=loss,
            terms=dict(zip(TERMS, terms, strict=True)),
            grad_norm=norm,
            requests=tuple(count > 0 for count in asked),
        )

    def _backward(self, batch: ClipBatch, targets: FrameTargets, frames: float, step: int, last: bool) -> Tensor:
        """Add one pass's gradients; return the loss, then `TERMS`, as float64 `[1 + terms]`."""
        # Gradients are exchanged once per step, in its last pass.
        exchange = nullcontext() if last or self.world.size == 1 else self.model.no_sync()
        with exchange:
            noised = None
            if self.config.denoising:
                classes = len(self.config.model.class_names)
                noised = noised_lesions(batch, targets, self.config.denoising, classes, (self.config.seed, step))
            layers, restored = split_queries(self._forward(batch, noised), self.config.model.queries)
            try:
                losses = self.criterion(layers, targets)
            except NonFiniteError as error:
                raise _named(error, batch, self.config.targets) from error
            _refuse_non_finite(losses, self.criterion, batch, self.config.targets)
            loss = self.criterion.total(losses, frames)
            if noised is not None:
                restored, matches = denoising_matches(restored, targets, noised.copies)
                loss = loss + self.criterion.total(self.criterion(restored, targets, matches), frames)
            # DistributedDataParallel divides the sum of the processes' gradients by their number.
            self.scaler.scale(loss * self.world.size).backward()
        terms = [getattr(losses, name)[-1] for name in TERMS]
        return torch.stack([loss.detach(), *(term.detach().sum() / frames for term in terms)]).double()

    def _forward(self, batch: ClipBatch, noised: NoisedLesions | None) -> list[tuple[Tensor, Tensor]]:
        """Logits and boxes of the decoder layers to supervise."""
        mask = batch.padding_mask if batch.padding_mask.any() else None
        images = batch.images.to(self.world.device, non_blocking=True)
        with torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype is not None):
            output: DetectorOutput = self.model(images, mask, self.config.targets, noised)
        earlier = output.layers if self.config.auxiliary_losses else []
        return [(layer.logits, layer.boxes) for layer in [*earlier, output]]

    def _gradient_norm(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_norm:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        return norm

    def _update(self, norm: float, batches: Sequence[ClipBatch], rate_factor: float) -> None:
        scaled = self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE
        if not _finite(norm) and not scaled:
            clips = "; ".join(describe_clip(batch, clip) for batch in batches for clip in range(len(batch.videos)))
            raise NonFiniteError(f"the gradients are not finite (norm {norm}); clips of this step: {clips}")
        set_rates(self.optimizer, rate_factor)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def describe_clip(batch: ClipBatch, clip: int) -> str:
    """Video, frames and image ids of one clip of a batch, for messages."""
    frames = ", ".join(map(str, batch.frames[clip]))
    ids = ", ".join(map(str, batch.image_ids[clip]))
    return f"video {batch.videos[clip]}, frames {frames} (image ids {ids})"


def _targets(batch: ClipBatch, device: torch.device) -> FrameTargets:
    return FrameTargets.from_lists(
        [boxes for clip in batch.boxes for boxes in clip],
        [labels for clip in batch.labels for labels in clip],
        [flag for clip in batch.annotated for flag in clip],
        device=device,
    )


def _annotated(batch: ClipBatch) -> int:
    return sum(flag for clip in batch.annotated for flag in clip)


def _refuse_non_finite(losses: FrameLosses, criterion: Criterion, batch: ClipBatch, targets: int) -> None:
    """Frames without lesions are never matched, so their predictions are seen here first."""
    finite = losses.weighted(criterion.weights).detach().sum(0).isfinite().cpu()
    if not finite.all():
        frames = (~finite).nonzero().flatten().tolist()
        raise _named(NonFiniteError("the loss is not finite", frames), batch, targets)


def _named(error: NonFiniteError, batch: ClipBatch, targets: int) -> NonFiniteError:
    clips = dict.fromkeys(frame // targets for frame in error.frames)
    names = "; ".join(describe_clip(batch, clip) for clip in clips)
    return NonFiniteError(f"predictions or losses are not finite; {names}", error.frames)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
