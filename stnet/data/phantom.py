"""Synthetic breast ultrasound videos with known lesions, in the layout of `stnet.data.index`.

    python -m stnet.data.phantom OUT --train-videos 60 --val-videos 12 --frames 24 --height 128 --width 160

A hand-held probe sweeps over a random breast: skin, fat with ligaments, glandular tissue, pectoral muscle and
ribs. Lesions enter and leave the view. Benign ones are smooth, oval, wider than tall, with a brighter wake;
malignant ones are irregular, spiculated, taller than wide, with a halo and a shadow. Islands of fat, tiny
cysts and shadows are there to be mistaken for them.

A lesion has a box in a frame where its section is at least 4 mm wide and high and at least 5 dB darker than
its surroundings; elsewhere it has faded. The same seed and options give the same bytes on the same platform.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from stnet.data.index import LESION_CLASSES
from stnet.data.layout import VideoRecord, filling, write_annotations, write_frames
from stnet.data.synthetic.phantom_anatomy import Breast, Lesion, draw_lesion
from stnet.data.synthetic.phantom_render import Pose, Renderer, Scanner, draw_scanner
from stnet.data.synthetic.phantom_size import FRAMES, HEIGHT, WIDTH, check_size
from stnet.data.synthetic.smooth import wander
from stnet.errors import ConfigError

MARKER = "phantom.json"

# The lesions of the videos of a data set, in turn: small sets hold both classes, two lesions and none.
LESION_PATTERN: tuple[tuple[str, ...], ...] = (
    ("benign",),
    ("malignant",),
    (),
    ("benign", "malignant"),
    ("malignant",),
    ("benign",),
    ("malignant",),
    ("benign",),
    ("malignant", "malignant"),
    ("benign", "benign"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomVideo:
    """A rendered video.

    Attributes:
        frames: uint8 `[F, H, W, 3]`.
        boxes: per frame float32 `[n, 4]`, x0 y0 x1 y1 in pixels.
        labels: per frame int64 `[n]`, 1 benign, 2 malignant.
        instances: per frame int64 `[n]`, which lesion of the video, from 0.
    """

    frames: np.ndarray
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    instances: tuple[np.ndarray, ...]

    def __repr__(self) -> str:
        height, width = self.frames.shape[1:3]
        shown = sum(len(boxes) > 0 for boxes in self.boxes)
        return f"PhantomVideo({len(self.frames)} frames of {width} x {height} pixels, {shown} with a lesion)"


def render_phantom(
    seed: int | Sequence[int],
    *,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    lesions: Sequence[str] | None = None,
) -> PhantomVideo:
    """Render one video.

    `lesions` holds the class names of none, one or two lesions; by default they are drawn. Raises
    `ConfigError` for sizes and classes that cannot be rendered.
    """
    check_size(frames, height, width)
    seed = (seed,) if isinstance(seed, int) else tuple(seed)
    rng = np.random.default_rng(seed)
    if lesions is None:
        lesions = LESION_PATTERN[rng.integers(len(LESION_PATTERN))]
    _check_lesions(lesions)
    scanner = draw_scanner(rng)
    placed = _place_lesions(rng, scanner, scanner.depth_mm * width / height, lesions)
    poses = _draw_sweep(rng, placed, frames)
    renderer = Renderer(Breast(rng, scanner.depth_mm, placed), scanner, height, width, seed)
    rendered = [renderer.render(pose) for pose in poses]
    labels = np.array([LESION_CLASSES.index(name) + 1 for name in lesions], dtype=np.int64)
    seen = [np.array([i for i, box in enumerate(boxes) if box is not None], dtype=np.int64) for _, boxes in rendered]
    return PhantomVideo(
        frames=np.repeat(np.stack([frame for frame, _ in rendered])[..., None], 3, axis=3),
        boxes=tuple(
            np.array([boxes[i] for i in visible], dtype=np.float32).reshape(-1, 4)
            for (_, boxes), visible in zip(rendered, seen, strict=True)
        ),
        labels=tuple(labels[visible] for visible in seen),
        instances=tuple(seen),
    )


def write_phantoms(
    root: str | Path,
    videos_train: int,
    videos_val: int,
    seed: int,
    *,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    overwrite: bool = False,
    workers: int = 1,
    on_video: Callable[[], None] = lambda: None,
) -> Path:
    """Write a data set of phantom videos and return its folder.

    Args:
        root: folder to write, new or empty.
        videos_train: how many videos the train split has.
        videos_val: how many the val split has.
        seed: not negative; same seed, same videos.
        frames: of each video.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        overwrite: replace an earlier phantom data set, and nothing else.
        workers: processes that render in parallel, without changing a byte.
        on_video: called after every video.

    Raises:
        ConfigError: options that cannot be used, or a folder that is not empty. After any error nothing that was
            written is left.
    """
    root = Path(root)
    check_size(frames, height, width)
    if min(videos_train, videos_val) < 0 or videos_train + videos_val == 0:
        raise ConfigError(f"{videos_train} train and {videos_val} val videos: give at least one in all")
    options = {"seed": seed, "frames": frames, "height": height, "width": width}
    counts = {"train": videos_train, "val": videos_val}
    jobs = [
        _Job(root=root, split=split, number=number, **options)
        for split, count in counts.items()
        for number in range(count)
    ]
    written: dict[str, list[VideoRecord]] = {"train": [], "val": []}
    # Closed before the folder is cleared after an error: no process writes to it any longer.
    with filling(root, MARKER, overwrite, options | {"videos": counts}), closing(_run(jobs, workers)) as records:
        for job, video in zip(jobs, records, strict=True):
            written[job.split].append(video)
            on_video()
        for split, videos in written.items():
            if videos:
                write_annotations(root / f"{split}.json", videos, LESION_CLASSES)
    return root


@dataclass(frozen=True, kw_only=True)
class _Job:
    root: Path
    split: str
    number: int
    seed: int
    frames: int
    height: int
    width: int


def _run(jobs: list[_Job], workers: int) -> Iterator[VideoRecord]:
    if workers == 1:
        yield from map(_write_video, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_write_video, jobs)


def _write_video(job: _Job) -> VideoRecord:
    """Render and write the frames of a video; return what its annotations need."""
    lesions = LESION_PATTERN[job.number % len(LESION_PATTERN)]
    video = render_phantom(
        (job.seed, ("train", "val").index(job.split), job.number),
        frames=job.frames,
        height=job.height,
        width=job.width,
        lesions=lesions,
    )
    kind = max(lesions, key=LESION_CLASSES.index) if lesions else "normal"
    name = f"{kind}/phantom_{job.split}_{job.number:04d}"
    return VideoRecord(
        name=name,
        height=job.height,
        width=job.width,
        files=write_frames(job.root, name, video.frames[..., 0]),
        boxes=video.boxes,
        labels=video.labels,
        instances=video.instances,
        annotated=(True,) * job.frames,
    )


def _place_lesions(
    rng: np.random.Generator, scanner: Scanner, width_mm: float, labels: Sequence[str]
) -> tuple[Lesion, ...]:
    """Lesions side by side in the view, at the depth of the gland, near the middle of the sweep."""
    columns = {1: (0.0,), 2: (-0.26, 0.26)}.get(len(labels), ())
    mirror = rng.choice((-1, 1))
    lesions = []
    for label, column in zip(labels, columns, strict=True):
        spread = 0.26 if len(labels) == 1 else 0.04
        x = width_mm * (mirror * column + rng.uniform(-spread, spread))
        y = rng.uniform(-1, 1) if len(labels) == 1 else rng.uniform(-3.5, 3.5)
        lesions.append(draw_lesion(rng, label, (x, y, scanner.depth_mm * rng.uniform(0.33, 0.54))))
    return tuple(lesions)


def _draw_sweep(rng: np.random.Generator, lesions: tuple[Lesion, ...], frames: int) -> list[Pose]:
    """Return the way of a hand-held probe: across the lesions, or lingering on them, with drift and tremor."""
    extent = max((lesion.radii[1] + abs(lesion.centre[1]) for lesion in lesions), default=6.0)
    lingering = rng.random() < 0.35
    reach = extent * (rng.uniform(0.4, 0.9) if lingering else rng.uniform(0.95, 1.35))
    time = np.linspace(0, 1, frames) if frames > 1 else np.array([0.5])
    path = reach * (np.cos(2 * np.pi * time) if lingering else 2 * time - 1)
    path = rng.choice((-1, 1)) * path + 0.25 * wander(rng, time)
    x = rng.uniform(-1.5, 1.5) * (2 * time - 1) + 0.6 * wander(rng, time)
    press = 0.015 * wander(rng, time)
    turn = rng.uniform(-0.06, 0.06) + 0.015 * wander(rng, time)
    tilt = rng.uniform(-0.08, 0.08)
    return [
        Pose(x_mm=float(x[i]), y_mm=float(path[i]), turn=float(turn[i]), tilt=tilt, press=float(press[i]))
        for i in range(frames)
    ]


def _check_lesions(lesions: Sequence[str]) -> None:
    if len(lesions) > 2 or not set(lesions) <= set(LESION_CLASSES):
        raise ConfigError(f"lesions {list(lesions)}: give at most two of {', '.join(LESION_CLASSES)}")


if __name__ == "__main__":
    from stnet.data.phantom_command import main

    sys.exit(main())
