"""How large phantom videos are."""

from stnet.errors import ConfigError

FRAMES = 24
HEIGHT = 128
WIDTH = 160
MIN_SIDE, MAX_SIDE = 48, 1024


def check_size(frames: int, height: int, width: int) -> None:
    """Require a number of frames and a size in pixels that can be rendered.

    Raises:
        ConfigError: they cannot.
    """
    if frames < 1:
        raise ConfigError(f"frames {frames}: give at least 1")
    for name, side in (("height", height), ("width", width)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise ConfigError(f"{name} {side}: give {MIN_SIDE} to {MAX_SIDE} pixels")
    if not 1 / 2 <= width / height <= 2:
        raise ConfigError(f"{width}x{height}: neither side may be more than twice the other")
