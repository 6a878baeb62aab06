"""From the picture that marks were drawn on to the frames that are written.

The two differ where the annotated picture was scaled, where frames are cut to a scan region, where a camera turned the
picture (EXIF, display matrix), or where pixels are not square and the picture was shown with square ones.
"""

from dataclasses import dataclass
from fractions import Fraction

from stnet.data.formats.marks import Box, Size
from stnet.errors import DataError
from stnet.video.geometry import SQUARE, UPRIGHT, Orientation


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Frames as they are read.

    Attributes:
        size: of the scan region, to which written frames are cut; where there is none, of the whole frames.
        whole: of the whole upright frames.
        origin: x, y of the corner of the scan region in the whole frames.
        uncut: whether whole frames are written although there is a scan region.
        pixel_aspect: width of a pixel divided by its height.
        orientation: how the stored pixels were laid upright.
    """

    size: Size
    whole: Size
    origin: tuple[int, int] = (0, 0)
    pixel_aspect: Fraction = SQUARE
    orientation: Orientation = UPRIGHT
    uncut: bool = False

    @property
    def from_whole(self) -> tuple[float, float]:
        """How marks on the whole frame move to the written one."""
        return (0.0, 0.0) if self.uncut else (-float(self.origin[0]), -float(self.origin[1]))

    @property
    def from_region(self) -> tuple[float, float]:
        """How marks on the scan region move to the written frame."""
        return (float(self.origin[0]), float(self.origin[1])) if self.uncut else (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How boxes move: laid upright, scaled, then shifted; `note` tells a user."""

    orientation: Orientation = UPRIGHT
    drawn: Size
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    note: str = ""

    def __call__(self, box: Box) -> Box:
        """Return a box in the coordinates of the written frames."""
        x0, y0, x1, y1 = _turned(box, self.drawn, self.orientation)
        return (
            x0 * self.scale[0] + self.shift[0],
            y0 * self.scale[1] + self.shift[1],
            x1 * self.scale[0] + self.shift[0],
            y1 * self.scale[1] + self.shift[1],
        )


def fit(drawn: Size | None, picture: Picture, where: str) -> Fit:
    """Find how marks move that were drawn on a picture of the size `drawn`, None where nothing states it.

    Raises:
        DataError: naming `where`: no scaling explains the sizes, or two do.
    """
    cut = picture.size != picture.whole
    if drawn is None or drawn == picture.whole:
        moved = _moved(picture, from_whole=True)
        return Fit(drawn=picture.whole, shift=picture.from_whole, note=f"marks are {moved}" if moved else "")
    if drawn == picture.size:
        stay = f"marks were drawn on the scan region of {_text(drawn)} and stay where they are"
        moved = _moved(picture, from_whole=False)
        return Fit(drawn=drawn, shift=picture.from_region, note=f"marks are {moved}" if moved else stay)
    orientation = UPRIGHT
    upright = drawn
    if picture.orientation.transposed and _scales(drawn[::-1], picture.whole, picture.pixel_aspect):
        orientation, upright = picture.orientation, drawn[::-1]
    to_whole = _scales(upright, picture.whole, picture.pixel_aspect)
    to_cut = cut and _scales(upright, picture.size, picture.pixel_aspect)
    if to_whole == to_cut:
        what = "the whole frame or its scan region" if to_whole else "another video, or cut"
        raise DataError(
            f"{where}: drawn on a picture of {_text(drawn)}, the frames are {_text(picture.whole)}"
            f"{f', their scan region {_text(picture.size)}' if cut else ''}: {what}? Give marks of the frames' own size"
        )
    target, shift = (picture.whole, picture.from_whole) if to_whole else (picture.size, picture.from_region)
    scaled = f"scaled from {_text(upright)} to {_text(target)}" if upright != target else ""
    turned = "turned upright as the file says" if orientation != UPRIGHT else ""
    return Fit(
        orientation=orientation,
        drawn=drawn,
        scale=(target[0] / upright[0], target[1] / upright[1]),
        shift=shift,
        note="marks are " + ", ".join(part for part in (turned, scaled, _moved(picture, from_whole=to_whole)) if part),
    )


def fit_shares(picture: Picture) -> Fit:
    """Find how marks move that are given as shares of the whole upright frame."""
    return Fit(
        drawn=(1, 1),
        scale=(float(picture.whole[0]), float(picture.whole[1])),
        shift=picture.from_whole,
    )


def _moved(picture: Picture, from_whole: bool) -> str:
    """Return what a user should know of marks that move between whole frames and their scan region; else empty."""
    if picture.size == picture.whole or from_whole == picture.uncut:
        return ""
    if from_whole:
        return f"moved from the whole frame to its scan region of {_text(picture.size)}"
    return f"moved from the scan region of {_text(picture.size)} to the whole frame"


def _scales(drawn: Size, frame: Size, pixel_aspect: Fraction) -> bool:
    """Whether one scale, rounded to whole pixels, leads from one size to the other, pixels shown square or stored."""
    return (
        _is_scaled(drawn, Fraction(frame[0], frame[1]))
        and (
            (drawn[0] == frame[0]) == (drawn[1] == frame[1])  # one side alone was cut or padded
        )
    ) or (pixel_aspect != SQUARE and _is_scaled(drawn, Fraction(frame[0], frame[1]) * pixel_aspect))


def _is_scaled(drawn: Size, shape: Fraction) -> bool:
    return abs(drawn[0] - drawn[1] * shape) <= 1 or abs(drawn[1] - drawn[0] / shape) <= 1


def _turned(box: Box, size: Size, orientation: Orientation) -> Box:
    """Return a box of a stored picture of `size` on the picture that is laid upright."""
    x0, y0, x1, y1 = box
    width, height = size
    if orientation.transposed:
        x0, y0, x1, y1, width, height = y0, x0, y1, x1, height, width
    if orientation.mirrored_x:
        x0, x1 = width - x1, width - x0
    if orientation.mirrored_y:
        y0, y1 = height - y1, height - y0
    return x0, y0, x1, y1


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
