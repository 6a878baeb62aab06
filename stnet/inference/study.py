"""All videos of a call, and what is written of them together by whoever ends last."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from stnet.console import Reporter
from stnet.errors import EXTERNAL, VideoError
from stnet.inference.common_list import CommonList, Group
from stnet.inference.folder_lock import FolderLock, lock_beside
from stnet.inference.jobs import Job
from stnet.inference.outputs import reason, unwritable
from stnet.inference.records import Records
from stnet.inference.report import REPORT_NAME, write_report
from stnet.inference.sink import RunFacts
from stnet.inference.summary import SUMMARY_NAME, VideoSummary, print_problems, print_summary, write_summary


class Study:
    """The videos that a call names, those of them that it does, and how they all end.

    Args:
        jobs: all videos, those of other parts included.
        missing: rows of names that stand for nothing.
        mine: those of this part.
        records: what is known of them.
        facts: what is told about the run.
        reporter: prints messages.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        missing: Sequence[VideoSummary],
        mine: Sequence[Job],
        records: Records,
        facts: RunFacts,
        reporter: Reporter,
    ) -> None:
        self._jobs, self._missing, self._mine = jobs, missing, mine
        self.records, self._facts, self._reporter = records, facts, reporter
        self._list: CommonList | None = None
        self.broken = False

    def share(self, group: Group, order: Callable[[Sequence[Job]], Sequence[int]], resume: bool) -> CommonList:
        """Return the list that this process takes its videos from; for the arguments see there.

        Raises:
            VideoError: the output folder cannot be written to.
        """
        output, tell = self._facts.output, self._reporter.message
        try:
            self._list = CommonList(
                self._mine, self.records, output, group=group, order=order, resume=resume, tell=tell
            )
        except OSError as error:
            raise unwritable(output, error) from error
        return self._list

    def conclude(self, own: Mapping[str, VideoSummary], group: Group, report: bool) -> list[VideoSummary]:
        """Print the table, and write what tells of all videos once they have all ended.

        Args:
            own: the rows of the videos that this process did, by name.
            group: the processes that share the list.
            report: write the page.

        Returns:
            The rows of this part that are known, those that are missing first.
        """
        rows = self._rows(self._mine, own)
        ended = [row for row in rows if row is not None]
        whole = self._rows(self._jobs, own) if len(self._mine) < len(self._jobs) else rows
        if group.size == 1:
            self._print([*self._missing, *ended], own)
        if any(row is None for row in whole):
            done = sum(row is not None for row in whole)
            self._reporter.message(
                f"{done} of {len(whole)} videos are done; whoever ends last writes {SUMMARY_NAME}"
                + (" and the report" if report else "")
            )
        else:
            self._write(whole, group, report)
        return [*self._missing, *ended]

    def _rows(self, jobs: Sequence[Job], own: Mapping[str, VideoSummary]) -> list[VideoSummary | None]:
        """Return how each of `jobs` ended, None for those that have not."""
        return [own[job.name] if job.name in own else self.records.ended(job) for job in jobs]

    def _print(self, rows: Sequence[VideoSummary], shown: Mapping[str, VideoSummary]) -> None:
        """Print the rows of this call, and how many others were finished before."""
        fresh = [row for row in rows if row in self._missing or row.name in shown]
        print_problems(fresh, self._reporter)
        print_summary(fresh, self._facts.score_threshold)
        if len(fresh) < len(rows):
            self._reporter.message(f"{len(rows) - len(fresh)} videos were finished before")

    def _write(self, rows: list[VideoSummary], group: Group, report: bool) -> None:
        """Write table and page, unless another process of the group does it, or has just done it."""
        lock = None
        if group.size > 1:
            try:
                lock = FolderLock(lock_beside(self._facts.output / SUMMARY_NAME))
            except VideoError:
                return
        try:
            if group.size > 1:
                if self._concluded():
                    return
                fresh = {job.name: row for job, row in zip(self._jobs, rows, strict=True) if self._is_fresh(job)}
                self._print([*self._missing, *rows], fresh)
            self._attempt(SUMMARY_NAME, lambda: write_summary(self._facts.output, [*self._missing, *rows]))
            if report and self._attempt(REPORT_NAME, lambda: write_report(self._facts, [*rows, *self._missing])):
                self._reporter.message(f"report: {self._facts.output / REPORT_NAME}")
        finally:
            if lock is not None:
                lock.release()

    def _attempt(self, name: str, write: Callable[[], object]) -> bool:
        """Write a file about all videos; return whether that was possible."""
        try:
            write()
        except EXTERNAL as error:
            self._reporter.message(f"error: {reason(self._facts.output / name, error)}")
            self.broken = True
            return False
        return True

    def _is_fresh(self, job: Job) -> bool:
        return self.records.known(job).written >= self._list.began_at

    def _concluded(self) -> bool:
        """Return whether the table was written after this process began and after the last video ended."""
        with suppress(OSError):
            written = (self._facts.output / SUMMARY_NAME).stat().st_mtime
            latest = max(self.records.known(job).written for job in self._jobs)
            return written >= max(latest, self._list.began_at)
        return False
