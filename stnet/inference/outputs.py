"""All formats of a run together: one that fails is given up, the others go on."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stnet.command_line import explain
from stnet.errors import EXTERNAL, ConfigError, VideoError
from stnet.files import PARTIAL
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.folder_lock import FolderLock
from stnet.inference.formats import PER_VIDEO, SINKS
from stnet.inference.frame_results import FrameResult
from stnet.inference.lesion_collector import LesionCollector
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion

LOCK_NAME = ".running"


def refuse_existing(paths: Iterable[Path]) -> None:
    """Refuse to go on where results of a former run are.

    Raises:
        ConfigError: naming some of them.
    """
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise ConfigError(
            f"results exist already: {', '.join(existing[:3])}{more}; add --overwrite to replace them, "
            "or choose another --output"
        )


def _remove(path: Path) -> None:
    """Remove a file of results, or a folder of them."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unwritable(folder: Path, error: OSError) -> VideoError:
    """Return the error of a folder that results cannot go to."""
    return VideoError(f"{folder}: cannot be written to ({error.strerror or error}); choose another --output")


def reason(path: Path, error: Exception) -> str:
    """Return in a line why a file of results could not be written."""
    if not isinstance(error, OSError):
        return explain(error)
    return f"{path}{PARTIAL}: cannot be written ({error.strerror or error})"


class Outputs:
    """Writes the results of a run, video after video.

    Only one run writes to the folder of a video at a time. Files that a former run left there are removed first, so
    that a folder never mixes two runs. A format that cannot be written is given up for this video, and said so at once.

    Args:
        formats: names of `SINKS`.
        run: what all videos have in common.
        overwrite: replace the results of a former run.
        tell: prints a message.

    Raises:
        VideoError: the output folder cannot be made.
    """

    def __init__(self, formats: Iterable[str], run: RunFacts, overwrite: bool, tell: Callable[[str], None]) -> None:
        try:
            run.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(run.output, error) from error
        self._overwrite, self._tell = overwrite, tell
        self._alive = [SINKS[name](run) for name in formats]
        self._failed: list[Sink] = []
        self._lesions = LesionCollector(run.class_names, run.score_threshold)
        self._explain = run.explain
        self._video: VideoFacts | None = None
        self._lock: FolderLock | None = None
        self.broken = False
        self.lesions: Sequence[Lesion] = ()  # of the video that ended last

    @property
    def needs_images(self) -> bool:
        """Whether results have to carry their frames."""
        return any(sink.needs_images for sink in self._alive)

    def begin(self, video: VideoFacts) -> bool:
        """Start a video.

        Returns:
            Whether anything can be written of it.

        Raises:
            OSError, StnetError: another run writes to its folder, or it holds results, or cannot be made.
        """
        video.folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(video.folder / LOCK_NAME)
        try:
            former = [video.folder / name for name in PER_VIDEO]
            if not self._overwrite:
                refuse_existing(former)
            for path in former:
                _remove(path)
        except BaseException:
            lock.release()
            raise
        self._video, self._lock, self._lesions = video, lock, self._lesions.fresh()
        return self._each(lambda sink: sink.begin(video))

    def write(self, result: FrameResult) -> bool:
        """Append one frame; return whether more can be written."""
        self._lesions.add(result)
        return self._each(lambda sink: sink.write(result))

    def end(self, end: VideoEnd) -> bool:
        """Finish a video; return whether all formats were written in full."""
        self.lesions = self._lesions.found()
        self._each(lambda sink: sink.lesions(self.lesions))
        self._explained(self.lesions)
        self._each(lambda sink: sink.end(end))
        return self._leave()

    def _explained(self, lesions: Sequence[Lesion]) -> None:
        if self._explain is None:
            return
        try:
            found = self._explain(self._video.source, self._video.frames, lesions)
        except EXTERNAL as error:
            self._tell(f"error: {explain(error)}")
            self.broken = True
        else:
            self._each(lambda sink: sink.explained(found))

    def abandon(self, error: BaseException) -> bool:
        """Leave what there is of a video under partial names; return whether it could all be written until now."""
        for sink in self._alive:
            sink.abandon(error)
        return self._leave()

    def _each(self, action: Callable[[Sink], None]) -> bool:
        """Let every format do something; return whether any is still written."""
        for sink in list(self._alive):
            try:
                action(sink)
            except EXTERNAL as error:
                self._alive.remove(sink)
                self._give_up(sink, error)
        return bool(self._alive)

    def _give_up(self, sink: Sink, error: Exception) -> None:
        self._tell(f"error: {reason(self._video.folder / sink.file_name, error)}")
        sink.abandon(error)
        self.broken = True
        self._failed.append(sink)

    def _leave(self) -> bool:
        """Let others write to the video's folder; formats that failed there may work in the next."""
        whole = not self._failed
        self._alive += self._failed
        self._failed, self._video = [], None
        if self._lock is not None:
            self._lock.release()
        self._lock = None
        return whole
