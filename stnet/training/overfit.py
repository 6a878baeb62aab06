"""Overfit one clip, the first thing to try on a new model: `python -m stnet.training.overfit --preset paper`.

Renders one phantom clip, trains on it without augmentation and dropout until every lesion in its target frames is
found with IoU >= 0.5 and nothing else scores higher (AP50 1.0), and prints the losses on the way.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from stnet import command_line
from stnet.data.clips.dataset import ClipBatch
from stnet.data.clips.transforms import normalize, relative_boxes
from stnet.data.phantom import PhantomVideo, render_phantom
from stnet.errors import ConfigError
from stnet.evaluation.coco import CocoMetrics, ScoredFrame, evaluate_frames
from stnet.model.detector import Detector
from stnet.model.postprocess import select_detections
from stnet.training.config import PRESETS, TrainConfig
from stnet.training.denoising import TrainedModel
from stnet.training.distributed import World, join_world
from stnet.training.optimizer import build_optimizer, rate_factor
from stnet.training.step import StepFigures, Stepper

HEIGHT, WIDTH = 128, 160
CHECK_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Overfitted:
    """Steps taken, and the metrics on the clip after the last of them."""

    steps: int
    metrics: CocoMetrics


def overfit(
    config: TrainConfig,
    steps: int,
    seed: int = 0,
    report: Callable[[int, StepFigures, CocoMetrics], None] = lambda *_: None,
    world: World | None = None,
) -> Overfitted:
    """Train on one phantom clip until AP50 is 1 or `steps` are done.

    Args:
        config: the recipe; its number of epochs, batches and augmentation do not matter here.
        steps: at most.
        seed: of the phantom and the weights.
        report: called every few steps.
        world: where to compute; None for the CPU.

    Raises:
        ConfigError: where the phantom of this seed shows no lesion.
    """
    torch.manual_seed(seed)
    world = world or World()
    detector = Detector(replace(config.model, dropout=0.0))
    model = TrainedModel(detector, denoising=config.denoising > 0).to(world.device).train()
    batch = _clip(seed, config)
    if not sum(len(boxes) for boxes in batch.boxes[0]):
        raise ConfigError(f"--seed {seed}: this phantom's target frames show no lesion; try another")
    stepper = Stepper(model, build_optimizer(model, config), config, world)
    for step in range(steps):
        figures = stepper.run([batch], step, rate_factor(step, step / steps, config))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            metrics = _evaluate(detector, batch, world.device)
            report(step + 1, figures, metrics)
            if metrics.overall.ap50 >= 1 - 1e-9:
                break
    return Overfitted(steps=step + 1, metrics=metrics)


def _clip(seed: int, config: TrainConfig) -> ClipBatch:
    """Return the middle frames of a phantom, where lesions are in view."""
    count = config.model.frames
    video: PhantomVideo = render_phantom(seed, height=HEIGHT, width=WIDTH, lesions=("malignant",))
    visible = [len(boxes) for boxes in video.boxes]
    first = int(np.argmax(np.convolve(visible, np.ones(count), mode="valid")))
    frames = range(first, first + count)
    targets = list(frames)[: config.targets]
    return ClipBatch(
        images=normalize(video.frames[first : first + count])[None],
        padding_mask=torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool),
        boxes=[[torch.from_numpy(relative_boxes(video.boxes[frame], HEIGHT, WIDTH)) for frame in targets]],
        labels=[[torch.from_numpy(video.labels[frame]) for frame in targets]],
        annotated=[[True] * len(targets)],
        videos=[f"phantom {seed}"],
        frames=[tuple(frames)],
        image_ids=[tuple(frames)],
    )


@torch.no_grad()
def _evaluate(detector: Detector, batch: ClipBatch, device: torch.device) -> CocoMetrics:
    detector.eval()
    out = detector(batch.images.to(device), targets=len(batch.boxes[0]))
    detector.train()
    detections = select_detections(
        out.logits[0].cpu(), out.boxes[0].cpu(), HEIGHT, WIDTH, duplicate_iou=detector.config.duplicate_iou
    )
    scale = np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])
    frames = []
    for number, found in enumerate(detections):
        centre, size = np.split(batch.boxes[0][number].numpy(), 2, axis=1)
        truth = np.concatenate((centre - size / 2, centre + size / 2), axis=1) * scale
        frames.append(
            ScoredFrame(
                image_id=number,
                video=batch.videos[0],
                height=HEIGHT,
                width=WIDTH,
                true_boxes=truth,
                true_labels=batch.labels[0][number].numpy(),
                boxes=found.boxes.numpy(),
                scores=found.scores.numpy(),
                labels=found.labels.numpy(),
            )
        )
    return evaluate_frames(frames, detector.config.class_names)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when the clip is learned, 1 when it is not, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.training.overfit",
        description=f"Overfit one {HEIGHT} x {WIDTH} phantom clip, to see that a model and recipe can learn.",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper", help="recipe (default %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="at most (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="of everything, instead of the preset's")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of phantom and weights (default %(default)s)")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()

    def report(step: int, figures: StepFigures, metrics: CocoMetrics) -> None:
        print(
            f"step {step}: {figures}, AP50 {metrics.overall.ap50:.3f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )

    if options.steps < 1:
        raise ConfigError(f"--steps {options.steps}: at least 1")
    config = TrainConfig.preset(options.preset).replace(precision="float32")
    if options.learning_rate is not None:
        rates = {"learning_rate": options.learning_rate, "backbone_learning_rate": options.learning_rate}
        config = config.replace(**rates)
    result = overfit(config, options.steps, options.seed, report, join_world(options.device))
    learned = result.metrics.overall.ap50 >= 1 - 1e-9
    print(f"{'learned' if learned else 'not learned'} after {result.steps} steps")
    return 0 if learned else 1


if __name__ == "__main__":
    sys.exit(main())
