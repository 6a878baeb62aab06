"""The weights that are shipped with the package, and which file a name stands for."""

from pathlib import Path

from stnet.errors import CheckpointError

SHIPPED = Path(__file__).parent / "weights"


def shipped_names() -> list[str]:
    """Return the names that `stnet.load` takes instead of a path."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def require_checkpoint(name_or_path: str | Path) -> None:
    """Require that there is something behind the name of a checkpoint.

    Raises:
        CheckpointError: there is not.
    """
    if str(name_or_path) not in shipped_names() and not Path(name_or_path).exists():
        raise no_such_checkpoint(name_or_path)


def no_such_checkpoint(path: str | Path) -> CheckpointError:
    """Return the error of a path without a file."""
    return CheckpointError(f"{path}: no such file; shipped checkpoints are {', '.join(shipped_names()) or 'none'}")
