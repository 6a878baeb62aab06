"""What a DICOM file says about its frames, and where they lie in the file; nothing about the patient is read.

Only the elements listed here are ever parsed. What pydicom has to say about a file may quote its contents, so its
log and its warnings are silenced, and its exceptions are replaced by messages of our own.
"""

import logging
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from stnet.errors import VideoError
from stnet.video.dicom_elements import number, numbers, text
from stnet.video.dicom_regions import ScanArea, read_scan_area
from stnet.video.geometry import believable_aspect
from stnet.video.rates import frame_rate
from stnet.video.scale import PixelScale, uniform_scale
from stnet.video.source import check_size

MAX_FRAMES = 100_000
"""Most frames that are read from one file: almost an hour at 30 frames per second."""

PREAMBLE_BYTES = 128
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".dic", ".ima"))
FIRST_TYPES = frozenset(("UL", "OB", "UI", "CS", "DA", "TM", "LO", "SH"))

IMAGE_ELEMENTS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
)
GRAY_ELEMENTS = (
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"),
)
PALETTE_ELEMENTS = tuple(
    f"{prefix}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for prefix, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
TIME_ELEMENTS = ("FrameIncrementPointer", "FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate")
REGION_ELEMENTS = ("SequenceOfUltrasoundRegions", "BurnedInAnnotation", "PixelAspectRatio", "PixelSpacing")
OVERLAY_POSITIONS = tuple(0x60000102 + (group << 16) for group in range(0, 32, 2))
"""Which bit of the pixels each overlay lies in, where it lies there; 0 where it is stored apart."""

VOLUME_ELEMENTS = ("SOPClassUID", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
FRAME_TIME = 0x00181063
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF

FUNCTIONAL_GROUPS = {
    "PixelMeasuresSequence": ("a size of pixels", ("PixelSpacing",)),
    "FrameVOILUTSequence": ("a window", ("WindowCenter", "WindowWidth", "VOILUTFunction")),
    "PixelValueTransformationSequence": ("a scale of gray", ("RescaleSlope", "RescaleIntercept")),
}
"""Functional groups of enhanced files that say the same as elements of other files, and what that is."""

UNNAMED_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
"""Transfer syntaxes of the standard that pydicom does not know."""


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """The frames of a DICOM file as its header describes them, checked.

    `dataset` holds the listed elements and no others. `value` is where the pixel data begins and how long it is, cut
    to the file; `swapped` where each two of its bytes have changed places: samples of 8 bits stored as words (OW)
    whose upper byte comes first. `times` are seconds from the first frame, where the header lists them one by one.
    `fps` is None where it states none, and `timing_note` then says what is wrong. `photometric` is what the pixels
    are, corrected where the length of the pixel data shows that the header is wrong. `area` is what of the frames is
    scan, `pixel_aspect` the width of a pixel over its height, `scale` the size of pixels (None where they are not
    stated). `volume`: an Enhanced US Volume. `notes` say what of the header is not applied.
    """

    dataset: Any
    syntax: Any
    frames: int
    height: int
    width: int
    fps: Fraction | None
    times: tuple[float, ...]
    photometric: str
    area: ScanArea
    pixel_aspect: Fraction | None
    scale: PixelScale | None
    timing_note: str | None
    volume: bool
    value: tuple[int, int]
    swapped: bool
    notes: tuple[str, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file is to be treated as DICOM: by its mark behind the preamble, its first element, or its suffix.

    Files without preamble or damaged ones have patients' names for names, too.
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(PREAMBLE_BYTES + 4)
    except OSError:
        return False
    return start[PREAMBLE_BYTES:] == b"DICM" or _begins_with_element(start)


def _begins_with_element(start: bytes) -> bool:
    """Whether the bytes begin like a data set without preamble: with an early element, with or without a type."""
    if len(start) < 8:
        return False
    group, element, length = struct.unpack("<HHL", start[:8])
    early = group in (0x0002, 0x0008) and element <= 0x0020
    return early and (start[4:6].decode("latin-1") in FIRST_TYPES or length <= 64)


def import_pydicom(name: str) -> ModuleType:
    """Return pydicom, kept quiet.

    Raises:
        VideoError: it is not installed.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise VideoError(
            f"{name}: reading DICOM files needs pydicom, which is not installed: pip install 'stnet[dicom]'"
        ) from error
    # At every use, since `warnings.catch_warnings` takes filters away again; a repeated filter is kept once.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pylibjpeg").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"(pydicom|pylibjpeg|openjpeg|libjpeg)(\.|$)")
    return pydicom


@contextmanager
def hiding_contents(name: str, failure: str) -> Iterator[None]:
    """Replace whatever a foreign parser raises on hostile bytes by a message without a word of the file."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:  # a parser on damaged data raises almost anything
        raise VideoError(f"{name}: {failure} ({type(error).__name__})") from None


def read_header(path: Path, name: str) -> DicomHeader:
    """Read and check the header of the DICOM file at `path`, which messages call `name`.

    Raises:
        VideoError: it cannot be read, or says what is not possible or not supported.
    """
    pydicom = import_pydicom(name)
    with _opened(path, name) as file, hiding_contents(name, "its header cannot be read; the file is damaged"):
        tags = [*IMAGE_ELEMENTS, *GRAY_ELEMENTS, *PALETTE_ELEMENTS, *TIME_ELEMENTS, *REGION_ELEMENTS, *VOLUME_ELEMENTS]
        tags += OVERLAY_POSITIONS
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
        meta = dataset.file_meta
        if meta.get("MediaStorageSOPClassUID") == DICOMDIR_CLASS:
            raise VideoError(
                f"{name}: is a DICOMDIR, an index of other files; name the image files themselves, or their folder"
            )
        syntax = meta.get("TransferSyntaxUID")
        if syntax is None:
            raise VideoError(f"{name}: states no transfer syntax; the file is damaged or was saved without its header")
        _check_known(syntax, name)
        if syntax == DEFLATED:
            raise VideoError(f"{name}: is deflated as a whole; save it as Explicit VR Little Endian first")
        value, words = _pixel_value(file, syntax, name)
    return _checked(dataset, syntax, value, words, name)


def cannot_decode(name: str, title: str) -> VideoError:
    """Return the error for a compression that nothing here can decode."""
    return VideoError(
        f"{name}: its compression ({title}) cannot be decoded; export it as JPEG or uncompressed, or as a video file"
    )


def _check_known(syntax: Any, name: str) -> None:
    try:
        known = syntax.is_transfer_syntax and syntax.is_encapsulated in (False, True)
    except ValueError:
        known = False
    if not known:
        private = "a transfer syntax of its maker" if syntax.is_private else "an unknown transfer syntax"
        raise cannot_decode(name, UNNAMED_SYNTAXES.get(str(syntax), private))


def _lift_functional_groups(dataset: Any) -> tuple[str, ...]:
    """Put what enhanced files say of all frames alike where other files have it; say what they say of single frames."""
    notes = []
    shared = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
    frames = _items(dataset, "PerFrameFunctionalGroupsSequence")
    for group, (name, keywords) in FUNCTIONAL_GROUPS.items():
        for of_all in (shared, frames):
            stated = [_group(item, group, keywords) for item in of_all]
            if not any(stated):
                continue
            if all(found == stated[0] for found in stated):
                for keyword, element in stated[0].items():
                    if keyword not in dataset:
                        dataset[keyword] = element
            else:
                notes.append(f"its header states {name} for single frames, which is not applied")
    return tuple(notes)


def _items(dataset: Any, keyword: str) -> list[Any]:
    """Return the items of a sequence, which is taken away; none where it is absent or damaged."""
    try:
        found = list(dataset[keyword].value)
        del dataset[keyword]
    except Exception:  # absent or damaged
        return []
    return found


def _group(item: Any, group: str, keywords: tuple[str, ...]) -> dict[str, Any]:
    """Return what an item of functional groups states in one of them."""
    try:
        found = item[group].value[0]
        return {keyword: found[keyword] for keyword in keywords if keyword in found}
    except Exception:  # absent or damaged
        return {}


def _checked(dataset: Any, syntax: Any, value: tuple[int, int], words: bool, name: str) -> DicomHeader:
    notes = _lift_functional_groups(dataset)
    height, width = (round(number(dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    check_size(name, height, width)
    stated = number(dataset, "NumberOfFrames")
    frames = max(1, 1 if stated is None else round(min(stated, 2**31)))
    area = read_scan_area(dataset, height, width)
    fps, times = _timing(dataset)
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric == "YBR_FULL_422" and not syntax.is_encapsulated and _is_full(value[1], height * width, frames):
        photometric = "YBR_FULL"
    return DicomHeader(
        dataset=dataset,
        syntax=syntax,
        frames=frames,
        height=height,
        width=width,
        fps=fps,
        times=times,
        photometric=photometric,
        area=area,
        pixel_aspect=_pixel_aspect(dataset, area),
        scale=area.scale or _spacing(dataset),
        timing_note=_timing_note(dataset) if fps is None else None,
        volume=dataset.get("SOPClassUID") == ENHANCED_US_VOLUME,
        value=value,
        swapped=words and not syntax.is_little_endian and dataset.get("BitsAllocated") == 8,
        notes=notes,
    )


def _is_full(length: int, pixels: int, frames: int) -> bool:
    """Return whether pixel data labelled YBR_FULL_422 has all its chroma: three bytes a pixel instead of two.

    Its length says so: for the frames declared, else for whole frames.
    """
    for of_frames in (frames, 0):
        full, halved = (
            length - size * of_frames in (0, 1) if of_frames else length % size in (0, 1)
            for size in (3 * pixels, 2 * pixels)
        )
        if full != halved:
            return full
    return False


def _pixel_aspect(dataset: Any, area: ScanArea) -> Fraction | None:
    """Width of a pixel over its height, as the header has it."""
    ratio = numbers(dataset, "PixelAspectRatio", 2)  # vertical, horizontal
    if len(ratio) == 2:
        return believable_aspect(ratio[1], ratio[0])
    spacing = numbers(dataset, "PixelSpacing", 2)  # between rows, between columns
    if len(spacing) == 2:
        return believable_aspect(round(spacing[1], 9), round(spacing[0], 9))
    return area.pixel_aspect


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; only opening is to be caught)
    except OSError as error:
        raise VideoError(f"{name}: cannot be opened ({error.strerror})") from None
    with file:
        yield file


def _pixel_value(file: BinaryIO, syntax: Any, name: str) -> tuple[tuple[int, int], bool]:
    """Where the value of the pixel data begins and how many bytes of it are there, and whether it is one of words.

    `file` stands at its element.
    """
    order = "<" if syntax.is_little_endian else ">"
    element = file.read(8)
    if len(element) < 8 or struct.unpack(f"{order}HH", element[:4]) != PIXEL_DATA:
        raise VideoError(f"{name}: holds no image (no pixel data in it)")
    explicit_length = file.read(4) if not syntax.is_implicit_VR else element[4:]
    (length,) = struct.unpack(f"{order}L", explicit_length)
    start = file.tell()
    remaining = max(0, os.fstat(file.fileno()).st_size - start)
    value = start, remaining if length == UNDEFINED_LENGTH else min(length, remaining)
    return value, syntax.is_implicit_VR or element[4:6] == b"OW"


def _spacing(dataset: Any) -> PixelScale | None:
    """Return the size of pixels where it is one for the whole frame."""
    spacing = numbers(dataset, "PixelSpacing", 2)  # between rows, between columns
    return uniform_scale(spacing[1], spacing[0]) if len(spacing) == 2 else None


def _timing(dataset: Any) -> tuple[Fraction | None, tuple[float, ...]]:
    """Frame rate, and the frames' own times (seconds) where the header lists them."""
    # Both may be there: the pointer says which of them counts.
    pointed = dataset.get("FrameIncrementPointer") == FRAME_TIME and number(dataset, "FrameTime")
    steps = () if pointed else numbers(dataset, "FrameTimeVector", MAX_FRAMES)
    if len(steps) > 1 and min(steps) >= 0 and sum(steps[1:]) > 0:
        clock, times = 0.0, [0.0]
        for step in steps[1:]:  # the first entry is no interval
            clock += step / 1000
            times.append(clock)
        rate = frame_rate((len(steps) - 1) / clock)
        if rate is not None:
            return rate, tuple(times)
    interval = number(dataset, "FrameTime")
    if interval is not None and interval > 0 and (rate := frame_rate(1000 / interval)) is not None:
        return rate, ()
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        stated = number(dataset, keyword)
        if stated is not None and (rate := frame_rate(stated)) is not None:
            return rate, ()
    return None, ()


def _timing_note(dataset: Any) -> str:
    stated = [keyword for keyword in ("FrameTime", "FrameTimeVector", "CineRate") if numbers(dataset, keyword, 1)]
    if "FrameTime" in stated and number(dataset, "FrameTime") == 0:
        return "its header states a frame time of 0"
    return "its header states no believable frame rate" if stated else "its header states no frame rate"
