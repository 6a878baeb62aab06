"""What a detector's figures owe to marks, margins and machines: the same stills under changed conditions.

    python -m stnet.evaluation.conditions MODEL [MODEL ...] --data val.json ... --output conditions.json

Every still is changed in one way only, the same way for every model: marks painted over, marks painted where nothing
is, an interface around the scan, gain lowered and raised, another machine's grain, a smaller scan, the scan and its
mirror image side by side (stills with several lesions are rare). Give several models to compare what each defence of
the training brings: how far each is ahead of the first is told with intervals. Recall and false positives are told at a
fixed score, as a user has it: what marks and margins cause by themselves shows there.
"""

import argparse
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stnet import command_line, files
from stnet.console import Reporter
from stnet.data.augment import BrightnessJitter
from stnet.data.clips.transforms import FrameStack, resize_stack
from stnet.data.frames import FrameReader
from stnet.data.index import DatasetIndex
from stnet.data.still_sets.stills import Stills
from stnet.data.synthetic.machines import DynamicRange, Texture
from stnet.data.synthetic.marks import imagined_lesion, paint_marks, paint_over
from stnet.data.synthetic.screens import draw_layout, place_on_screen
from stnet.devices import resolve_device
from stnet.errors import ConfigError
from stnet.evaluation.coco import FALSE_POSITIVE_IOU, ScoredFrame, in_order, merge_classes
from stnet.evaluation.condition_differences import differences
from stnet.evaluation.image_metrics import Figure, evaluate_images, recall, small_lesions, threshold_at_rate
from stnet.evaluation.matches import Matches, match
from stnet.evaluation.predict import predict_frames
from stnet.evaluation.scored_stills import read_still_files, scored_set
from stnet.model.checkpoint import load
from stnet.model.detector import Detector

Change = Callable[[FrameStack, np.random.Generator], FrameStack]

RATE = 0.1
"""False positives an image of the unchanged stills that decide the score at which changed ones are judged."""

MARKS_ON_A_STILL = 2


def _with_marks(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
    """Calipers where no lesion is, and what goes with them."""
    places: list[tuple[float, ...]] = []
    for _ in range(20):
        x0, y0, x1, y1 = imagined_lesion(rng, stack.height, stack.width)
        taken = stack.boxes[0]
        free = (taken[:, 2:] < (x0, y0)) | (taken[:, :2] > (x1, y1))
        if free.any(axis=1).all() and len(places) < MARKS_ON_A_STILL:
            places.append((x0, y0, x1, y1))
    return replace(stack, frames=paint_marks(stack.frames[0], rng, places)[None])


def _painted_over(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
    return replace(stack, frames=paint_over(stack.frames[0], rng)[None])


def _on_screen(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
    """Return the scan on a screen: it keeps its pixels, the screen is as much larger as its layout says."""
    layout = draw_layout(rng, stack.height, stack.width)
    scale_x, scale_y = stack.width / layout.columns, stack.height / layout.rows
    larger = replace(
        layout,
        height=round(layout.height * scale_y),
        width=round(layout.width * scale_x),
        top=int(layout.top * scale_y),
        left=int(layout.left * scale_x),
        rows=stack.height,
        columns=stack.width,
    )
    return place_on_screen(stack, larger, rng)


def _smaller(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
    """Half the size in the middle of black: every lesion covers a quarter of the share that it had."""
    small = resize_stack(stack, max(1, stack.height // 2), max(1, stack.width // 2))
    frames = np.zeros_like(stack.frames)
    top, left = (stack.height - small.height) // 2, (stack.width - small.width) // 2
    frames[:, top : top + small.height, left : left + small.width] = small.frames
    offset = np.array([left, top, left, top], dtype=np.float32)
    return FrameStack(frames=frames, boxes=tuple(boxes + offset for boxes in small.boxes), labels=stack.labels)


def _twice(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
    """Return the scan, and to the right of it its mirror image, as screens show two views: twice as many lesions."""
    width = stack.width
    mirrored = tuple(
        np.stack([2 * width - boxes[:, 2], boxes[:, 1], 2 * width - boxes[:, 0], boxes[:, 3]], axis=1)
        for boxes in stack.boxes
    )
    return FrameStack(
        frames=np.concatenate([stack.frames, stack.frames[:, :, ::-1]], axis=2),
        boxes=tuple(np.concatenate(pair) for pair in zip(stack.boxes, mirrored, strict=True)),
        labels=tuple(np.concatenate([labels, labels]) for labels in stack.labels),
    )


def _gained(power: float) -> Change:
    def change(stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        brighter = BrightnessJitter(gain=0.0, gamma=0.0, contrast=0.0, depth=0.4)(stack, rng)
        return replace(brighter, frames=np.clip(brighter.frames * 2.0**power + 0.5, 0, 255).astype(np.uint8))

    return change


CONDITIONS: dict[str, Change] = {
    "unchanged": lambda stack, rng: stack,
    "marks painted over": _painted_over,
    "marks where nothing is": _with_marks,
    "interface around": _on_screen,
    "gain x 0.5": _gained(-1.0),
    "gain x 1.7": _gained(0.75),
    "range cut": DynamicRange(cut=0.25),
    "other grain": Texture(probability=1.0),
    "half the size": _smaller,
    "beside its mirror image": _twice,
}
"""Changes of a stack of one frame, by name."""


@dataclass(frozen=True, kw_only=True)
class ConditionResult:
    """What one model does under one condition.

    Attributes:
        ap50, ap75, small_ap50: see `image_metrics.FIGURES`.
        recall, small_recall, several_recall, alarms, lesion_free_alarms: share of the lesions found, of the small ones,
            of those in stills with several; false positives an image, detections an image without lesion; all at the
            score that makes `RATE` false positives an image of the unchanged stills.
        small, several: how many small lesions there are, and how many in stills with several.
    """

    ap50: float | None
    ap75: float | None
    small_ap50: float | None
    recall: float | None
    small_recall: float | None
    several_recall: float | None
    alarms: float
    lesion_free_alarms: float | None
    small: int
    several: int


def changed_stills(index: DatasetIndex, name: str, folder: Path) -> DatasetIndex:
    """Write stills under a condition and return their index; nothing but the still and the condition decides on it."""
    reader, change = FrameReader(0), CONDITIONS[name]
    videos = []
    for number, video in enumerate(index.videos):
        still = video.frames[0]
        pixels = reader.read(still)
        rng = np.random.default_rng((zlib.crc32(name.encode()), number))
        gray = pixels[..., :1] if (pixels[..., :1] == pixels).all() else pixels
        stack = change(FrameStack(frames=gray[None], boxes=(still.boxes,), labels=(still.labels,)), rng)
        path = folder / f"{number:06d}.png"
        Image.fromarray(stack.frames[0].squeeze()).save(path, compress_level=1)
        frame = replace(
            still, path=path, height=stack.height, width=stack.width, boxes=stack.boxes[0], labels=stack.labels[0]
        )
        videos.append(replace(video, frames=(frame,)))
    return replace(index, root=folder, videos=tuple(videos))


def predict_condition(
    model: Detector, sets: dict[str, Stills], name: str, advance: Callable[[int], None]
) -> tuple[list[ScoredFrame], dict[str, str]]:
    """Detect in all sets under one condition; return that with the patients by name of the still, where stated."""
    frames: list[ScoredFrame] = []
    patients: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (part, stills) in enumerate(sets.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            index = changed_stills(stills.index, name, place)
            scored = scored_set(part, stills, predict_frames(model, index, advance=advance))
            frames += scored.frames
            patients |= scored.patients
    return in_order(frames), patients


def judge_condition(frames: Sequence[ScoredFrame], class_names: Sequence[str], threshold: float) -> ConditionResult:
    """Compute the figures of one condition, at a score."""
    figures = evaluate_images(frames, class_names, {}, samples=0).figures
    matches = _matched(frames)
    counts = np.array([len(frame.true_boxes) for frame in frames])
    free, several = counts == 0, np.repeat(counts, counts) > 1
    small = small_lesions(frames)
    above = matches.scores >= threshold
    return ConditionResult(
        ap50=figures["ap50"].value,
        ap75=figures["ap75"].value,
        small_ap50=figures["small_ap50"].value,
        recall=recall(matches, threshold),
        small_recall=recall(matches, threshold, lesions=small),
        several_recall=recall(matches, threshold, lesions=several),
        alarms=float((above & ~matches.hits[0]).sum() / len(frames)),
        lesion_free_alarms=float((above & free[matches.image]).sum() / free.sum()) if free.any() else None,
        small=int(small.sum()),
        several=int(several.sum()),
    )


def _matched(frames: Sequence[ScoredFrame]) -> Matches:
    return match([merge_classes(frame) for frame in frames], 1, ious=(FALSE_POSITIVE_IOU,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.evaluation.conditions",
        description="Evaluate models on stills with marks, margins, gain, grain and size changed.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint files, or names of shipped ones")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="COCO files of stills")
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=tuple(CONDITIONS),
        default=tuple(CONDITIONS),
        metavar="NAME",
        help=f"which, of: {', '.join(CONDITIONS)} (default: all)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only every n-th still, so that N remain of each file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write; never overwritten")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    if options.output is not None and options.output.exists():
        raise ConfigError(f"--output {options.output}: exists; choose another name")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: give at least 1")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be is told at once
    wanted = ["unchanged", *(name for name in options.conditions if name != "unchanged")]
    results: dict[str, dict[str, ConditionResult]] = {}
    ahead: dict[str, dict[str, Figure]] = {}
    first: dict[str, list[ScoredFrame]] = {}
    with Reporter() as reporter:
        for source in options.models:
            model = load(source, device=resolve_device(options.device))
            names = model.config.class_names
            sets = {
                name: _thinned(found, options.limit) for name, found in read_still_files(options.data, names).items()
            }
            count = sum(map(len, sets.values()))
            threshold = np.inf
            results[source], predicted = {}, {}
            for name in wanted:
                reporter.start(f"{source}, {name}", count)
                frames, patients = predict_condition(model, sets, name, reporter.advance)
                predicted[name] = frames
                if name == "unchanged":
                    threshold = threshold_at_rate(_matched(frames), RATE)
                results[source][name] = judge_condition(frames, names, threshold)
                _write(options, results, ahead)
            reporter.stop()
            _show(source, count, results[source], reporter)
            if not first:
                first = predicted
                continue
            ahead[source] = differences(first, predicted, patients)
            _write(options, results, ahead)
            _show_differences(source, options.models[0], ahead[source], reporter)


def _write(
    options: argparse.Namespace,
    results: dict[str, dict[str, ConditionResult]],
    ahead: dict[str, dict[str, Figure]],
) -> None:
    """Write what is known so far: each condition takes minutes."""
    if options.output is None:
        return
    facts = {"data": [str(file) for file in options.data], "limit": options.limit, "rate": RATE}
    files.write_json(options.output, facts | {"models": _plain(results), "ahead_of_the_first": _plain(ahead)})


def _plain(found: Mapping[str, Mapping[str, ConditionResult | Figure]]) -> dict[str, dict[str, Any]]:
    return {source: {name: asdict(result) for name, result in of.items()} for source, of in found.items()}


def _thinned(stills: Stills, limit: int | None) -> Stills:
    """Return those of the stills that somebody looked at, at most so many, evenly spread."""
    videos = [video for video in stills.index.videos if video.frames[0].annotated]
    if limit is not None and len(videos) > limit:
        videos = [videos[number] for number in np.linspace(0, len(videos) - 1, limit).round().astype(int)]
    return stills.keep(videos)


def _show(source: str, count: int, results: dict[str, ConditionResult], reporter: Reporter) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    reporter.table(
        f"{source}: {count} stills, in percent; recall, and false positives an image, at the score that makes {RATE:g} "
        "of unchanged stills",
        ("condition", "AP50", "AP75", "AP50, small")
        + ("recall", "small", "several", "false positives", "without lesion"),
        [
            (name, *(percent(value) for value in (r.ap50, r.ap75, r.small_ap50)))
            + tuple(percent(value) for value in (r.recall, r.small_recall, r.several_recall))
            + (number(r.alarms), number(r.lesion_free_alarms))
            for name, r in results.items()
        ],
    )


def _show_differences(source: str, first: str, ahead: dict[str, Figure], reporter: Reporter) -> None:
    def points(value: float) -> str:
        return f"{100 * value:+.1f}"

    reporter.table(
        f"{source}, ahead of {first}: points of average precision at IoU 0.5, 95 % interval by patient",
        ("measure", "ahead", "interval"),
        [
            (name, points(figure.value), " to ".join(map(points, figure.interval)) if figure.interval else "-")
            for name, figure in ahead.items()
            if figure.value is not None
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
