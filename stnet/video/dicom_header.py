"""What a DICOM file says about its frames, and where they lie in the file; nothing about the patient is read.

Only the elements listed here are ever parsed. What pydicom has to say about a file may quote its contents, so its
log and its warnings are silenced, and its exceptions are replaced by messages of our own.
"""

import logging
import math
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
from stnet.video.source import FPS_RANGE, check_size

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
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
)
PALETTE_ELEMENTS = tuple(
    f"{prefix}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for prefix, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
TIME_ELEMENTS = ("FrameIncrementPointer", "FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate")
REGION_ELEMENTS = ("SequenceOfUltrasoundRegions",)

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF

SPATIAL_FORMAT_2D = 1
TISSUE, COLOUR_FLOW = 1, 2

COMMON_RATES = tuple(Fraction(n) for n in range(1, 241)) + tuple(Fraction(n * 1000, 1001) for n in (24, 30, 60))
RATE_TOLERANCE = 2e-4
"""Headers round frame times: 33.333 ms means 30 frames per second."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; the last column and row are outside."""


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """The frames of a DICOM file as its header describes them, checked.

    `dataset` holds the listed elements and no others. `value` is where the pixel data begins and how long it is, cut
    to the file; `times` are seconds from the first frame, where the header lists them one by one. `fps` is None
    where it states none. `region` is the scan region where the header names a usable one.
    """

    dataset: Any
    syntax: Any
    frames: int
    height: int
    width: int
    fps: Fraction | None
    times: tuple[float, ...]
    region: Box | None
    region_note: str | None
    value: tuple[int, int]


def is_dicom(path: Path) -> bool:
    """Whether a file is to be treated as DICOM: by its mark behind the preamble, its first element, or its suffix.

    Files without preamble or damaged ones have patients' names for names, too.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(PREAMBLE_BYTES + 4)
    except OSError:
        return False
    return start[PREAMBLE_BYTES:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES or _begins_with_element(start)


def _begins_with_element(start: bytes) -> bool:
    """Whether the bytes begin like a data set without preamble: with an early element, with or without a type."""
    if len(start) < 8:
        return False
    group, element, length = struct.unpack("<HHL", start[:8])
    early = group in (0x0002, 0x0008) and element <= 0x0020
    return early and (start[4:6].decode("latin-1") in FIRST_TYPES or length <= 64)


def import_pydicom(name: str) -> ModuleType:
    """pydicom, kept quiet. Raises `VideoError` where it is not installed."""
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
    """Read and check the header of the DICOM file at `path`, which messages call `name`. Raises `VideoError`."""
    pydicom = import_pydicom(name)
    with _opened(path, name) as file, hiding_contents(name, "its header cannot be read; the file is damaged"):
        tags = [*IMAGE_ELEMENTS, *GRAY_ELEMENTS, *PALETTE_ELEMENTS, *TIME_ELEMENTS, *REGION_ELEMENTS]
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
        meta = dataset.file_meta
        if meta.get("MediaStorageSOPClassUID") == DICOMDIR_CLASS:
            raise VideoError(f"{name}: is a DICOMDIR, an index of other files; name the image files themselves")
        syntax = meta.get("TransferSyntaxUID")
        if syntax is None:
            raise VideoError(f"{name}: states no transfer syntax; the file is damaged or was saved without its header")
        if syntax == DEFLATED:
            raise VideoError(f"{name}: is deflated as a whole; save it as Explicit VR Little Endian first")
        value = _pixel_value(file, syntax, name)
    return _checked(dataset, syntax, value, name)


def _checked(dataset: Any, syntax: Any, value: tuple[int, int], name: str) -> DicomHeader:
    height, width = (round(_number(dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    check_size(name, height, width)
    stated = _number(dataset, "NumberOfFrames")
    frames = 1 if stated is None else round(min(stated, 2**31))
    region, note = _region(dataset, height, width)
    fps, times = _timing(dataset)
    return DicomHeader(
        dataset=dataset,
        syntax=syntax,
        frames=max(1, frames),
        height=height,
        width=width,
        fps=fps,
        times=times,
        region=region,
        region_note=note,
        value=value,
    )


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; only opening is to be caught)
    except OSError as error:
        raise VideoError(f"{name}: cannot be opened ({error.strerror})") from None
    with file:
        yield file


def _pixel_value(file: BinaryIO, syntax: Any, name: str) -> tuple[int, int]:
    """Where the value of the pixel data begins and how many bytes of it are there; `file` stands at its element."""
    order = "<" if syntax.is_little_endian else ">"
    element = file.read(8)
    if len(element) < 8 or struct.unpack(f"{order}HH", element[:4]) != PIXEL_DATA:
        raise VideoError(f"{name}: holds no image (no pixel data in it)")
    explicit_length = file.read(4) if not syntax.is_implicit_VR else element[4:]
    (length,) = struct.unpack(f"{order}L", explicit_length)
    start = file.tell()
    remaining = max(0, os.fstat(file.fileno()).st_size - start)
    return start, remaining if length == UNDEFINED_LENGTH else min(length, remaining)


def _number(dataset: Any, keyword: str) -> float | None:
    """A finite number, the first of several, or None where the element is absent, empty or no number."""
    numbers = _numbers(dataset, keyword, 1)
    return numbers[0] if numbers else None


def _numbers(dataset: Any, keyword: str, most: int) -> tuple[float, ...]:
    try:
        value = dataset.get(keyword)
        values = [] if value is None or value == "" else [value] if not hasattr(value, "__iter__") else list(value)
        numbers = tuple(float(number) for number in values[:most])
    except Exception:  # damaged elements are as good as absent
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _timing(dataset: Any) -> tuple[Fraction | None, tuple[float, ...]]:
    """Frame rate, and the frames' own times (seconds) where the header lists them."""
    steps = _numbers(dataset, "FrameTimeVector", MAX_FRAMES)
    if len(steps) > 1 and min(steps) >= 0 and sum(steps[1:]) > 0:
        clock, times = 0.0, [0.0]
        for step in steps[1:]:  # the first entry is no interval
            clock += step / 1000
            times.append(clock)
        rate = _rate((len(steps) - 1) / clock)
        if rate is not None:
            return rate, tuple(times)
    interval = _number(dataset, "FrameTime")
    if interval is not None and interval > 0 and (rate := _rate(1000 / interval)) is not None:
        return rate, ()
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        stated = _number(dataset, keyword)
        if stated is not None and (rate := _rate(stated)) is not None:
            return rate, ()
    return None, ()


def _rate(value: float) -> Fraction | None:
    if not FPS_RANGE[0] <= value <= FPS_RANGE[1]:
        return None
    nearest = min(COMMON_RATES, key=lambda rate: abs(rate - value))
    if abs(float(nearest) - value) <= RATE_TOLERANCE * value:
        return nearest
    return Fraction(value).limit_denominator(1001)


def _region(dataset: Any, height: int, width: int) -> tuple[Box | None, str | None]:
    """What the 2D tissue regions (else the 2D colour regions) cover together, and what is to be said about it."""
    boxes: dict[int, list[Box]] = {TISSUE: [], COLOUR_FLOW: []}
    try:
        for item in dataset.get("SequenceOfUltrasoundRegions") or ():
            kind = _number(item, "RegionDataType")
            corners = [_number(item, f"RegionLocation{corner}") for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
            if _number(item, "RegionSpatialFormat") == SPATIAL_FORMAT_2D and kind in boxes and None not in corners:
                x0, y0, x1, y1 = map(round, corners)
                boxes[round(kind)].append((x0, y0, x1 + 1, y1 + 1))
    except Exception:  # damaged elements are as good as absent
        boxes = {TISSUE: [], COLOUR_FLOW: []}
    found = boxes[TISSUE] or boxes[COLOUR_FLOW]
    if not found:
        return None, "its header names no 2D scan region"
    x0, y0 = min(box[0] for box in found), min(box[1] for box in found)
    x1, y1 = max(box[2] for box in found), max(box[3] for box in found)
    # Some scanners count the last column and row from 1.
    inside = 0 <= x0 < x1 - 1 <= width and 0 <= y0 < y1 - 1 <= height
    if not inside:
        return None, "the scan region in its header does not lie within the frame"
    return (x0, y0, min(x1, width), min(y1, height)), None
