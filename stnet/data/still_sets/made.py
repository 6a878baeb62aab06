"""What videos are made of stills."""

from dataclasses import dataclass

from stnet.errors import ConfigError

SPLITS = ("train", "val")
MIN_SIDE, MAX_SIDE = 32, 1024


@dataclass(frozen=True, kw_only=True)
class Moving:
    """Every still becomes a pseudo-video of `frames` frames of `height` x `width` pixels."""

    frames: int = 12
    height: int = 160
    width: int = 192


@dataclass(frozen=True, kw_only=True)
class Held:
    """Every still becomes a video of one frame, its longer side at most `longest` pixels."""

    longest: int = 320


def check_shape(shape: Moving | Held) -> None:
    """Require sizes that can be made.

    Raises:
        ConfigError: one is out of range.
    """
    for name, value in vars(shape).items():
        least, most = (1, 10_000) if name == "frames" else (MIN_SIDE, MAX_SIDE)
        if not least <= value <= most:
            raise ConfigError(f"{name} {value}: give {least} to {most}")
