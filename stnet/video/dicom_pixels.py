"""From the bytes of one DICOM frame to uint8 RGB."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from stnet.errors import VideoError
from stnet.video.depth import USUAL_BITS, Extremes
from stnet.video.dicom_codestream import decode_jpeg, read_codestream
from stnet.video.dicom_elements import number, text
from stnet.video.dicom_header import OVERLAY_POSITIONS, DicomHeader, cannot_decode, import_pydicom

COLOUR = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"))
GRAY = frozenset(("MONOCHROME1", "MONOCHROME2"))
PALETTE = "PALETTE COLOR"
RLE = "1.2.840.10008.1.2.5"
LEAST_CONTRAST = 0.125
"""Share of full brightness by which black and white must differ for a window to be believed."""


class UnstatedBits(VideoError):
    """Pixels that use other bits than their header states."""


class FrameDecoder:
    """Decodes frames of one file.

    Gray levels go through the header's modality and window transforms. Gray of more than 8 bits without a window is
    stretched, and colour of more than 8 bits scaled, by the extremes of all frames (`survey`), alike in all of them.
    What a compressed frame says of its colours goes before the header's word.

    Raises:
        VideoError: pixels or a compression that cannot be read.
    """

    def __init__(self, header: DicomHeader, name: str) -> None:
        self._header, self._name = header, name
        self._range: Extremes | None = None
        dataset = header.dataset
        self._photometric = header.photometric
        samples = 3 if self._photometric in COLOUR else 1
        if self._photometric not in COLOUR | GRAY | {PALETTE} or dataset.get("SamplesPerPixel") != samples:
            raise VideoError(
                f"{name}: its photometric interpretation cannot be shown; readable are RGB, YBR_FULL, YBR_FULL_422, "
                "YBR_RCT and YBR_ICT with three samples per pixel, MONOCHROME1, MONOCHROME2 and PALETTE COLOR with one"
            )
        allocated, stored = dataset.get("BitsAllocated"), dataset.get("BitsStored")
        if allocated not in (8, 16) or not isinstance(stored, int) or not 1 <= stored <= allocated:
            raise VideoError(f"{name}: its bits per sample cannot be used; expected 8, or up to 16 stored in 16")
        self._stored = stored
        self._shift = _bits_below(dataset, header.syntax)
        # Decoders deliver colours pixel by pixel, whatever the header says of the planes in its compressed frames.
        planar = dataset.get("PlanarConfiguration") == 1 and not header.syntax.is_encapsulated
        self._options = {
            "rows": header.height,
            "columns": header.width,
            "samples_per_pixel": samples,
            "photometric_interpretation": self._photometric,
            "bits_allocated": allocated,
            "bits_stored": stored + self._shift,
            "pixel_representation": 1 if dataset.get("PixelRepresentation") == 1 else 0,
            "planar_configuration": int(planar),
            "number_of_frames": 1,
            "pixel_keyword": "PixelData",
            "pixel_vr": "OW" if allocated == 16 else "OB",
            "correct_unused_bits": False,  # they are looked at here, see `_stated`
        }
        self._unused_bits = allocated - stored - self._shift
        self._overlay_bits = _overlay_bits(dataset, allocated)
        self._pydicom = import_pydicom(name)
        self._decoder = self._find_decoder()
        self._palette = Palette(dataset, self._pydicom) if self._photometric == PALETTE else None
        self.notes = tuple(self._without_nonsense()) if self._photometric in GRAY else ()

    def __call__(self, data: bytes) -> np.ndarray:
        """uint8 `[H, W, 3]` of the bytes of one frame. Raises anything on damaged bytes."""
        pixels = self._pixels(data)
        if self._photometric in GRAY:
            return np.repeat(self._gray(pixels)[:, :, None], 3, axis=2)
        if self._palette is not None:
            return self._palette(pixels)
        return self._colour(pixels)

    @property
    def needs_survey(self) -> bool:
        """Whether brightness depends on the extremes of all frames, or there are bits that none may use."""
        if self._unused_bits:
            return True
        return self._stretched if self._photometric in GRAY else self._photometric in COLOUR and self._stored > 8

    def _without_nonsense(self) -> Iterator[str]:
        """Drop transforms of gray that make all possible values look alike, and say so."""
        dataset = self._header.dataset
        for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
            if keyword in dataset and not _holds_table(dataset, keyword):
                stated = dataset[keyword].value
                del dataset[keyword]
                if stated:  # anonymizers leave empty ones
                    yield f"a table of gray levels in its header ({keyword}) cannot be read: not applied"
        if number(dataset, "RescaleSlope") == 0:
            del dataset.RescaleSlope
            yield "its header scales all gray to one value (rescale slope 0): not applied"
        window = _window(dataset)
        if window is None or "VOILUTSequence" in dataset:
            return
        signed = self._options["pixel_representation"]
        ends = np.array(
            [-(2 ** (self._stored - 1)), 2 ** (self._stored - 1) - 1] if signed else [0, 2**self._stored - 1]
        )
        shares = np.clip(_windowed(np.asarray(self._rescaled(ends), dtype=np.float64), *window), 0, 1)
        if abs(shares[1] - shares[0]) < LEAST_CONTRAST:
            del dataset.WindowCenter, dataset.WindowWidth
            centre, width, _ = window
            yield f"the window in its header (centre {centre:g}, width {width:g}) hides all contrast: not applied"

    def survey(self, frames: Iterable[bytes]) -> str | None:
        """Look at all frames' values before the first one is decoded; return what a user should know of it."""
        for data in frames:
            try:
                values = self._pixels(data)
                if self._photometric in GRAY:
                    values = self._rescaled(values)[~self._padding(values)]
                found = Extremes.of(np.asarray(values))
            except UnstatedBits:
                raise
            except Exception:  # damaged frames are told of when they are read; others may be nothing but padding
                continue
            self._range = found if self._range is None else self._range | found
        if self._photometric == PALETTE or (self._photometric in GRAY and not self._stretched):
            self._range = None
        if self._range is None:
            return None
        if self._photometric in GRAY:
            return f"gray without a window: {self._range.low:g} is shown black and {self._range.high:g} white"
        bits = self._colour_bits()
        return None if bits == self._stored else f"colours of {self._stored} bits that use {bits}: shown as {bits} bits"

    def _pixels(self, data: bytes) -> np.ndarray:
        """Return the values of one frame, colours as RGB."""
        import_pydicom(self._name)
        shape = (self._header.height, self._header.width)
        options = dict(self._options)
        compressed = self._header.syntax.is_encapsulated
        colour = self._photometric in COLOUR
        stated = read_codestream(data) if compressed and colour else None
        if stated is not None and stated.colours is not None:
            options["photometric_interpretation"] = stated.colours
        if stated is not None and stated.lossy_jpeg:
            pixels = decode_jpeg(data, options["photometric_interpretation"])
        else:
            source = self._pydicom.encaps.encapsulate([data]) if compressed else data
            pixels, properties = self._decoder.as_array(source, index=0, **options)
            if colour and properties["photometric_interpretation"] != "RGB":
                raise ValueError("colours were not converted to RGB")
        if pixels.shape != shape + ((3,) if colour else ()):
            raise ValueError(f"frame of shape {pixels.shape}")
        pixels = self._stated(pixels) if self._unused_bits else pixels
        return pixels >> self._shift if self._shift else pixels

    def _stated(self, pixels: np.ndarray) -> np.ndarray:
        """Return the bits that the header states, the sign in all above them; padding may lie beyond.

        Were others dropped in silence, values of 12 bits that are labelled as 8 would wrap around. Overlays of old
        files lie in them by the header's word.
        """
        bits = self._unused_bits + 8 * pixels.dtype.itemsize - self._options["bits_allocated"]
        if bits <= 0:
            return pixels
        kept = np.where(self._padding(pixels), pixels, (pixels << bits) >> bits)
        beyond = (pixels ^ kept).view(f"u{pixels.dtype.itemsize}")
        if np.any(beyond & ~beyond.dtype.type(self._overlay_bits)):
            raise UnstatedBits(
                f"{self._name}: its pixels use more bits than the {self._stored} that its header states; correct "
                "BitsStored and HighBit, or export it as a video file"
            )
        return kept

    def _padding(self, pixels: np.ndarray) -> np.ndarray:
        """Which stored values fill the space around the picture and are no brightness, by the header's word."""
        ends = [number(self._header.dataset, f"PixelPadding{part}") for part in ("Value", "RangeLimit")]
        if ends[0] is None:
            return np.zeros(pixels.shape, dtype=bool)
        low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
        return (pixels >= low) & (pixels <= high)

    def _find_decoder(self) -> Any:
        syntax = self._header.syntax
        title = syntax.name if syntax != syntax.name and not syntax.is_private else "an unknown transfer syntax"
        try:
            decoder = self._pydicom.pixels.get_decoder(syntax)
        except NotImplementedError:
            raise cannot_decode(self._name, title) from None
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies)
            raise VideoError(
                f"{self._name}: no decoder for its compression ({title}) is installed: pip install 'stnet[dicom]' "
                f"(or one of: {missing})"
            )
        return decoder

    @property
    def _stretched(self) -> bool:
        """Whether the header leaves open which gray levels are black and white."""
        dataset = self._header.dataset
        if "VOILUTSequence" in dataset or _window(dataset) is not None:
            return False
        rescaled = any(keyword in dataset for keyword in ("ModalityLUTSequence", "RescaleSlope"))
        return rescaled or self._stored > 8 or self._options["pixel_representation"] == 1

    def _rescaled(self, pixels: np.ndarray) -> np.ndarray:
        return self._pydicom.pixels.apply_modality_lut(pixels, self._header.dataset)

    def _gray(self, pixels: np.ndarray) -> np.ndarray:
        dataset = self._header.dataset
        values = self._rescaled(pixels)
        if "VOILUTSequence" in dataset:
            entries = dataset.VOILUTSequence[0].LUTDescriptor
            values = self._pydicom.pixels.processing.apply_voi(np.asarray(values, dtype=np.int32), dataset)
            shares = values / float(2 ** entries[2] - 1)
        elif (window := _window(dataset)) is not None:
            shares = _windowed(np.asarray(values, dtype=np.float64), *window)
        elif self._range is not None:
            low, high = self._range.low, self._range.high
            shares = (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-9)
        else:
            shares = values / float(2**self._stored - 1)
        shares = 1 - shares if self._photometric == "MONOCHROME1" else shares
        shares = np.where(self._padding(pixels), 0, shares)
        return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)

    def _colour(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.dtype.itemsize == 1 and self._stored == 8:
            return np.ascontiguousarray(pixels)
        shares = pixels / float(2 ** self._colour_bits() - 1)
        return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)

    def _colour_bits(self) -> int:
        """Bits of colour: those stated, unless two or more of them are never used."""
        if self._range is None or self._range.high >= 2 ** (self._stored - 2):
            return self._stored
        return _bits_holding(self._range.high)


class Palette:
    """The colours of a file with a palette, uint8 `[N, 3]`.

    Tables of 16 bits often hold fewer: the largest entry of the whole table, segmented or not, tells how many.
    """

    def __init__(self, dataset: Any, pydicom: Any) -> None:
        entries, self._first, _ = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
        self._last = (entries or 2**16) - 1
        places = np.arange(self._last + 1, dtype=np.int32) + self._first
        colours = pydicom.pixels.apply_color_lut(places, dataset)[..., :3]
        self._colours = (colours >> (_bits_holding(float(colours.max())) - 8)).astype(np.uint8)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the colours `[H, W, 3]` of palette entries `[H, W]`."""
        return self._colours[np.clip(pixels.astype(np.int32) - self._first, 0, self._last)]


def _bits_below(dataset: Any, syntax: Any) -> int:
    """How many bits of a sample lie unused below the stored ones; compressed images but RLE hold none of them."""
    high = dataset.get("HighBit")
    if not isinstance(high, int) or (syntax.is_encapsulated and syntax != RLE):
        return 0
    return high + 1 - dataset.BitsStored if dataset.BitsStored <= high < dataset.BitsAllocated else 0


def _overlay_bits(dataset: Any, allocated: int) -> int:
    """Return the bits of a sample that are said to hold overlays."""
    positions = [dataset[tag].value for tag in OVERLAY_POSITIONS if tag in dataset]
    return sum({1 << position for position in positions if isinstance(position, int) and 0 < position < allocated})


def _bits_holding(largest: float) -> int:
    return next(bits for bits in USUAL_BITS if largest <= 2**bits - 1)


def _holds_table(dataset: Any, keyword: str) -> bool:
    """Whether a sequence of tables has one that can be read."""
    try:
        item = dataset[keyword].value[0]
        entries, _, bits = item.LUTDescriptor
        return entries >= 0 and 8 <= bits <= 16 and bool(item.LUTData)
    except Exception:  # absent, empty or damaged
        return False


def _window(dataset: Any) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window, or None where the header has no usable one."""
    try:
        centre, width = (
            float(value[0] if hasattr(value, "__iter__") else value)
            for value in (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
        )
    except Exception:  # absent, empty or damaged
        return None
    if not (np.isfinite(centre) and np.isfinite(width) and width >= 1):
        return None
    return centre, width, text(dataset, "VOILUTFunction") or "LINEAR"


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Shares of full brightness, the three functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
