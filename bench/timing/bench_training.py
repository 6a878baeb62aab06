"""A training step: forward, matching, losses, backward, update, on clips that are there already."""

from functools import partial

import pytest
import torch

from bench.timing import models
from bench.timing.shapes import DTYPES
from bench.timing.stopwatch import ERROR_LIMITS, JUMP_LIMIT, Action, require_correct
from stnet.data.clips.dataset import ClipBatch
from stnet.model.config import ModelConfig
from stnet.training.config import TrainConfig
from stnet.training.denoising import TrainedModel
from stnet.training.distributed import join_world
from stnet.training.optimizer import build_optimizer
from stnet.training.step import Stepper

ROTATED_SETS = 2
ROUNDINGS = 20
BOXES_PER_FRAME = 2


def _batch(config: ModelConfig, image: tuple[int, int], clips: int, seed: int, device: torch.device) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)

    def boxes() -> torch.Tensor:
        centre, size = torch.rand(2, BOXES_PER_FRAME, 2, generator=generator)
        return torch.cat([0.3 + 0.4 * centre, 0.1 + 0.2 * size], dim=-1)

    targets = range(3)
    labels = torch.arange(BOXES_PER_FRAME) % (config.classes - 1) + 1
    return ClipBatch(
        images=models.clips(config, image, clips, seed).to(device),
        padding_mask=torch.zeros(clips, *image, dtype=torch.bool),
        boxes=[[boxes() for _ in targets] for _ in range(clips)],
        labels=[[labels for _ in targets] for _ in range(clips)],
        annotated=[[True for _ in targets] for _ in range(clips)],
        videos=[f"random {clip}" for clip in range(clips)],
        frames=[tuple(range(config.frames))] * clips,
        image_ids=[tuple(range(config.frames))] * clips,
    )


def _stepper(model, recipe: TrainConfig, device: torch.device) -> Stepper:
    trained = TrainedModel(model, denoising=False).to(device).train()
    return Stepper(trained, build_optimizer(trained, recipe), recipe, join_world(device.type))


def _step(stepper: Stepper) -> Action:
    return Action(run=lambda batch: stepper.run([batch], step=0, rate_factor=1.0))


def _check(steppers: tuple[Stepper, Stepper], batch: ClipBatch, limit: float) -> float:
    """Loss and norm of the gradients of a first step against the float32 reference's, from the same weights."""
    figures = [stepper.run([batch], step=0, rate_factor=0.0) for stepper in steppers]
    losses, norms = ([torch.tensor([getattr(x, name)]) for x in figures] for name in ("loss", "grad_norm"))
    return max(require_correct(*losses, limit, "loss"), require_correct(*norms, max(limit, JUMP_LIMIT), "gradients"))


@pytest.mark.parametrize("implementation", models.MODELS)
def test_training_step(implementation, precision, device, settings, available, measure):
    sizes = settings.sizes
    config = models.without_dropout(ModelConfig.preset(sizes.training_model))
    recipe = TrainConfig(model=config, precision=precision, batch_size=sizes.training_batch)

    def stepper(name, arithmetic):
        model = available(partial(models.variant, config=config), name)
        return _stepper(models.copy_of(model), recipe.replace(precision=arithmetic), settings.device)

    sets = [(_batch(config, sizes.image, sizes.training_batch, seed, settings.device),) for seed in range(ROTATED_SETS)]
    subject = stepper(implementation, precision)
    measure(
        _step(subject),
        sets,
        group=f"training step {precision}",
        info={
            "suite": "training",
            "implementation": implementation,
            "dtype": precision,
            "batch": sizes.training_batch,
            "model": sizes.training_model,
        },
        check=partial(
            _check,
            (stepper(implementation, precision), stepper(models.BASELINE, "float32")),
            sets[0][0],
            ROUNDINGS * ERROR_LIMITS[DTYPES[precision]],
        ),
        baseline=(models.BASELINE, lambda: _step(stepper(models.BASELINE, precision))),
    )
