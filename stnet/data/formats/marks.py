"""What every reader of annotation files makes of them: marks on frames, each frame known by a name or by a number.

A reader states what its file says and no more. Which video an entry belongs to is decided in
`stnet.data.formats.assigning`, which frame of it in `stnet.data.formats.placing`, where its boxes lie on the frames
that are written in `stnet.data.formats.fitting`.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stnet.data.shapes import Box

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One thing that somebody drew on a frame.

    Attributes:
        label: the name of its class, as the file writes it.
        box: the box around it, in pixels of the picture it was drawn on; None where it gives no box of a lesion (a
            line, points, a crowd region): its frame is then not fully annotated.
        shape: what was drawn, for summaries: `box`, `polygon`, `crowd region`, ...
        instance: which lesion of the video it is, None where the file does not say.
    """

    label: str
    box: Box | None
    shape: str = "box"
    instance: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class FrameMarks:
    """What a file says of one frame.

    Attributes:
        where: the entry, for messages.
        marks: all that was drawn on it.
        size: of the picture the marks were drawn on, None where the file does not say.
        relative: boxes are shares of the picture's width and height instead of pixels; `size` is then None.
        unseen: why nobody looked at the frame although it is listed; empty where somebody did.
    """

    where: str
    marks: tuple[Mark, ...] = ()
    size: Size | None = None
    relative: bool = False
    unseen: str = ""


@dataclass(frozen=True, kw_only=True)
class StatedVideo:
    """What a file says of a whole video, to be compared with the video that is there.

    Attributes:
        where: the entry, for messages.
        frames: how many it has, None where the file does not say.
        size: of its frames, None where the file does not say.
    """

    where: str
    frames: int | None = None
    size: Size | None = None


@dataclass(frozen=True, kw_only=True)
class ImageMarks:
    """A frame that the file names by a file name.

    Attributes:
        name: as written, with forward slashes.
        video: the name of its video where the file states one beside the file name.
        stated: what the file says of that video.
        number: its number in the video where the file states one beside the file name.
        counts_from: what that number counts from, None where the format leaves it open.
        stated_step: whether the number already allows for frames that were passed over.
    """

    name: str
    frame: FrameMarks
    video: str | None = None
    stated: StatedVideo | None = None
    number: int | None = None
    counts_from: int | None = None
    stated_step: bool = False


@dataclass(frozen=True, kw_only=True)
class VideoMarks:
    """The frames of a video by number, counted from 0.

    Attributes:
        where: the file, and the task in it where there are several.
        video: the name of the video where the file states one.
        frames: those that carry marks, or of which the file says that nobody saw them.
        covers: the frames that were looked at, without marks they are negatives; None for all of the video.
        shown: the frames that the file says the video has, where those are more than `covers`.
        size: of the picture the marks were drawn on, None where the file does not say.
        stated: what the file says of the whole video.
        pace: how many frames two of its marks are apart, and how many seconds, where the file says both and not the
            length of the video.
        stated_step: whether the numbers already allow for frames that were passed over.
    """

    where: str
    video: str | None = None
    frames: dict[int, FrameMarks] = field(default_factory=dict)
    covers: range | None = None
    shown: range | None = None
    size: Size | None = None
    stated: StatedVideo | None = None
    pace: tuple[int, float] | None = None
    stated_step: bool = False

    def at(self, number: int) -> FrameMarks | None:
        """Return what is known of a frame, None where nobody looked at it."""
        if number in self.frames:
            return self.frames[number]
        if self.covers is None or number in self.covers:
            return FrameMarks(where=f"{self.where}: frame {number}", size=self.size)
        return None


@dataclass(frozen=True, kw_only=True)
class MarksFile:
    """The contents of one annotation file.

    Attributes:
        name: the file, for messages.
        stem: its name without folder and ending; a file may be called like the one video it belongs to.
        notes: what was read in another way than written, or passed over, and how often.
    """

    name: str
    stem: str
    images: tuple[ImageMarks, ...] = ()
    videos: tuple[VideoMarks, ...] = ()
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of_image(cls, file: Path, image: ImageMarks, statement: str) -> "MarksFile":
        """Return the contents of a file about one image, which its `statement` names; another name of its own is noted.

        Such a file may be a copy that was made for the image it is called like.
        """
        other = f"files that are not called like their image are placed by their {statement}"
        notes = Counter([other] if file.stem != PurePosixPath(image.name).stem else [])
        return cls(name=str(file), stem=file.stem, images=(image,), notes=notes)


@dataclass(frozen=True, kw_only=True)
class FoundBox:
    """A box to be written: in pixels of whole frames, with its class, its score and which lesion it is, where known."""

    label: str
    box: Box
    score: float | None = None
    instance: int | None = None


@dataclass(frozen=True, kw_only=True)
class VideoBoxes:
    """The detections or lesions of a video, to be written in a format of other tools.

    Attributes:
        name: of the video, without ending; frames are called `NAME/000012.png`.
        source: the name of the file that the video is.
        size: of whole frames.
        frames: how many there are.
        fps: frames per second.
        labels: the classes in order.
        boxes: by frame, counted from 0; frames without are left out.
    """

    name: str
    source: str
    size: Size
    frames: int
    fps: float
    labels: tuple[str, ...]
    boxes: dict[int, tuple[FoundBox, ...]]

    def tracks(self) -> list[list[tuple[int, FoundBox]]]:
        """Return the boxes of each lesion, in the order of frames; one that belongs to no lesion stands alone."""
        lesions: dict[object, list[tuple[int, FoundBox]]] = {}
        for number in sorted(self.boxes):
            for position, found in enumerate(self.boxes[number]):
                key = ("alone", number, position) if found.instance is None else (found.instance, found.label)
                lesions.setdefault(key, []).append((number, found))
        return list(lesions.values())
