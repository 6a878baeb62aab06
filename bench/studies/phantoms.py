"""What studies of a model on phantoms share: phantoms that no training has seen, options, and the result file."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stnet.choices import DEFAULT_MODEL
from stnet.data.phantom import FRAMES, LESION_PATTERN, PhantomVideo, render_phantom
from stnet.devices import resolve_device
from stnet.environment import describe
from stnet.errors import ConfigError
from stnet.files import write_json

CLASSES = ("benign", "malignant")
"""Of phantoms, in the order of their labels."""


def check_classes(checkpoint: str, class_names: Mapping[int, str]) -> None:
    """Require that a model names the classes of phantoms by the same labels.

    Raises:
        ConfigError: it does not, and its classes would be taken for others.
    """
    if tuple(class_names.values()) != CLASSES:
        raise ConfigError(f"--checkpoint {checkpoint}: has other classes than {' and '.join(CLASSES)}")


def study_parser(module: str, description: str | None, *, videos: int, output: Path) -> argparse.ArgumentParser:
    """Return a parser with the options that every study has; `videos` and `output` are its defaults."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default=DEFAULT_MODEL, help="file or shipped name (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=videos, help="phantoms (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=output, help="default: %(default)s")
    return parser


def unseen_phantoms(options: argparse.Namespace, source: int) -> list[PhantomVideo]:
    """Return the phantoms of a study.

    Args:
        options: of `study_parser`.
        source: which of them, 3 or higher: those of data sets come from (seed, 0 or 1, number), those of the demo from
            (seed, 2, number).
    """
    return [
        render_phantom(
            (options.seed, source, number), frames=options.frames, lesions=LESION_PATTERN[number % len(LESION_PATTERN)]
        )
        for number in range(options.videos)
    ]


def write_study(options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Write the result file: what was measured, on what, and what was found."""
    facts = {name: getattr(options, name) for name in ("checkpoint", "videos", "frames", "seed")}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, {"machine": describe(resolve_device(options.device)), **facts, **found})
