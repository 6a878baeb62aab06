"""Errors that a user's input can cause. Every message names the file or argument, the value and the remedy."""

from collections.abc import Sequence


class StnetError(Exception):
    """Base of all errors that command lines report as `error: ...` instead of a traceback."""


class ConfigError(StnetError):
    """A configuration value or command-line option that cannot be used."""


class DataError(StnetError):
    """A data set, an annotation file or an image that cannot be used."""


class VideoError(StnetError):
    """A video that cannot be read or written."""


class CheckpointError(StnetError):
    """A checkpoint that cannot be read, or does not fit the model."""


class KernelError(StnetError):
    """A GPU kernel that cannot be compiled on this machine."""


class NonFiniteError(StnetError):
    """Predictions, losses or gradients that are NaN or infinite.

    Attributes:
        frames: flat indices of the frames concerned; empty where the cause cannot be told apart by frame.
    """

    def __init__(self, message: str, frames: Sequence[int] = ()):
        super().__init__(message)
        self.frames = tuple(frames)


EXTERNAL = (StnetError, OSError, UnicodeError, MemoryError)
"""Errors that a user, a file, a disk or a machine causes: commands tell them in one line, and go on where they can."""
