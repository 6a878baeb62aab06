"""What became of the contents of annotation files: placed, converted, left out and why."""

from collections import Counter

from stnet.data.formats.marks import FrameMarks
from stnet.errors import DataError

_EXAMPLES = 2


class Account:
    """Counts what is converted and what is left out, for the summary and for the verdict."""

    def __init__(self) -> None:
        self.listed_entries = 0
        self.listed_marks = 0
        self.notes: Counter[str] = Counter()
        """What was read in another way than written, or passed over, and how often."""
        self._files: dict[str, str] = {}
        self._left_out: dict[str, list[FrameMarks]] = {}
        self._lost_boxes: dict[str, list[str]] = {}

    def list_entry(self, frame: FrameMarks) -> None:
        """Count an entry that is to be placed."""
        self.listed_entries += 1
        self.listed_marks += len(frame.marks)

    def note_file(self, notes: Counter[str], file: str) -> None:
        """Take over what the reader of a file noted; the first file is named beside each note."""
        self.notes.update(notes)
        self._files = dict.fromkeys(notes, file) | self._files

    def leave_out(self, reason: str, frame: FrameMarks) -> None:
        """Count an entry that is placed on no frame."""
        self._left_out.setdefault(reason, []).append(frame)

    def lose_box(self, reason: str, where: str) -> None:
        """Count a single mark that is left out of a frame."""
        self._lost_boxes.setdefault(reason, []).append(where)

    @property
    def placed_entries(self) -> int:
        """How many entries found their frame."""
        return self.listed_entries - sum(map(len, self._left_out.values()))

    def lines(self) -> list[str]:
        """Return the summary: a line for each thing that is not as the files have it."""
        lines = []
        for reason, frames in self._left_out.items():
            marks = sum(len(frame.marks) for frame in frames)
            examples = "; ".join(frame.where for frame in frames[:_EXAMPLES])
            lost = f"{_count(len(frames), 'entry', 'entries')} with {_count(marks, 'mark', 'marks')}"
            lines.append(f"left out {lost}: {reason} ({examples})")
        for reason, places in self._lost_boxes.items():
            lines.append(f"left out {_count(len(places), 'mark', 'marks')}: {reason} ({'; '.join(places[:_EXAMPLES])})")
        return lines + [self._line(note, count) for note, count in self.notes.items()]

    def _line(self, note: str, count: int) -> str:
        details = [f"{count} times"] if count > 1 else []
        details += [f"first in {self._files[note]}"] if note in self._files else []
        return f"{note} ({', '.join(details)})" if details else note

    def judge(self) -> None:
        """Refuse a conversion that leaves out most of what it was given.

        Raises:
            DataError: more than half of the entries, or of the marks, found no place.
        """
        frames = [frame for group in self._left_out.values() for frame in group]
        marks = sum(len(frame.marks) for frame in frames) + sum(map(len, self._lost_boxes.values()))
        if 2 * len(frames) <= self.listed_entries and 2 * marks <= self.listed_marks:
            return
        if 2 * len(frames) > self.listed_entries:
            share = f"{len(frames)} of {_count(self.listed_entries, 'entry', 'entries')}"
        else:
            share = f"{marks} of {_count(self.listed_marks, 'mark', 'marks')}"
        reasons = [line for line in self.lines() if line.startswith("left out")]
        raise DataError(
            f"{share} would be left out; correct the annotations or say how to place them, "
            "or add --allow-left-out to convert the rest\n" + "\n".join(f"  {line}" for line in reasons[:8])
        )


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"
