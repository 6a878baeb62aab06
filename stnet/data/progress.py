"""How far a command has come, shown where a terminal looks on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def counting(title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on stderr that moves by one at every call of what is given, and goes away at the end."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
