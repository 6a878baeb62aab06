"""From the bytes of one DICOM frame to uint8 RGB."""

from typing import Any

import numpy as np

from stnet.errors import VideoError
from stnet.video.dicom_header import DicomHeader, import_pydicom

COLOUR = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"))
GRAY = frozenset(("MONOCHROME1", "MONOCHROME2"))
PALETTE = "PALETTE COLOR"


class FrameDecoder:
    """Decodes frames of one file. Raises `VideoError` for pixels or compression that cannot be read.

    Gray levels go through the header's modality and window transforms. Gray of more than 8 bits without a window is
    stretched from the darkest to the brightest value of the first frame decoded, alike in all frames.
    """

    def __init__(self, header: DicomHeader, name: str) -> None:
        self._header, self._name = header, name
        self._range: tuple[float, float] | None = None
        dataset = header.dataset
        self._photometric = str(dataset.get("PhotometricInterpretation", ""))
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
        self._options = {
            "rows": header.height,
            "columns": header.width,
            "samples_per_pixel": samples,
            "photometric_interpretation": self._photometric,
            "bits_allocated": allocated,
            "bits_stored": stored,
            "pixel_representation": 1 if dataset.get("PixelRepresentation") == 1 else 0,
            "planar_configuration": 1 if dataset.get("PlanarConfiguration") == 1 else 0,
            "number_of_frames": 1,
            "pixel_keyword": "PixelData",
            "pixel_vr": "OW" if allocated == 16 else "OB",
        }
        self._pydicom = import_pydicom(name)
        self._decoder = self._find_decoder()

    def __call__(self, data: bytes) -> np.ndarray:
        """uint8 `[H, W, 3]` of the bytes of one frame. Raises anything on damaged bytes."""
        import_pydicom(self._name)
        source = self._pydicom.encaps.encapsulate([data]) if self._header.syntax.is_encapsulated else data
        pixels, properties = self._decoder.as_array(source, index=0, **self._options)
        expected = (self._header.height, self._header.width) + ((3,) if self._options["samples_per_pixel"] == 3 else ())
        if pixels.shape != expected:
            raise ValueError(f"frame of shape {pixels.shape}")
        if self._photometric in GRAY:
            return _repeated(self._gray(pixels))
        if self._photometric == PALETTE:
            return self._paletted(pixels)
        if properties["photometric_interpretation"] != "RGB":
            raise ValueError("colours were not converted to RGB")
        return _to_bytes(pixels, properties["bits_stored"])

    def _find_decoder(self) -> Any:
        syntax = self._header.syntax
        title = syntax.name if syntax != syntax.name and not syntax.is_private else "an unknown transfer syntax"
        try:
            decoder = self._pydicom.pixels.get_decoder(syntax)
        except NotImplementedError:
            raise VideoError(
                f"{self._name}: its compression ({title}) cannot be decoded; export it as JPEG or uncompressed, or as "
                "a video file"
            ) from None
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies)
            raise VideoError(
                f"{self._name}: no decoder for its compression ({title}) is installed: pip install 'stnet[dicom]' "
                f"(or one of: {missing})"
            )
        return decoder

    def _gray(self, pixels: np.ndarray) -> np.ndarray:
        dataset = self._header.dataset
        values = self._pydicom.pixels.apply_modality_lut(pixels, dataset)
        if "VOILUTSequence" in dataset:
            entries = dataset.VOILUTSequence[0].LUTDescriptor
            values = self._pydicom.pixels.processing.apply_voi(np.asarray(values, dtype=np.int32), dataset)
            shares = values / float(2 ** entries[2] - 1)
        elif (window := _window(dataset)) is not None:
            shares = _windowed(np.asarray(values, dtype=np.float64), *window)
        elif self._stored <= 8 and values is pixels and pixels.dtype == np.uint8:
            shares = values / float(2**self._stored - 1)
        else:
            self._range = self._range or (float(values.min()), float(values.max()))
            low, high = self._range
            shares = (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-9)
        shares = 1 - shares if self._photometric == "MONOCHROME1" else shares
        return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)

    def _paletted(self, pixels: np.ndarray) -> np.ndarray:
        colours = self._pydicom.pixels.apply_color_lut(pixels, self._header.dataset)[..., :3]
        # Tables of 16 bits that hold bytes are common.
        deep = colours.dtype.itemsize > 1 and max(self._largest_entry(), int(colours.max())) > 255
        return np.ascontiguousarray((colours >> 8 if deep else colours).astype(np.uint8))

    def _largest_entry(self) -> int:
        tables = (self._header.dataset.get(f"{c}PaletteColorLookupTableData") for c in ("Red", "Green", "Blue"))
        entries = (np.frombuffer(table[: len(table) // 2 * 2], np.uint16) for table in tables if table)
        return max((int(table.max()) for table in entries if len(table)), default=0)


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
    return centre, width, str(dataset.get("VOILUTFunction") or "LINEAR")


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Shares of full brightness, the three functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5


def _to_bytes(pixels: np.ndarray, stored: int) -> np.ndarray:
    if pixels.dtype.itemsize > 1:
        pixels = pixels >> max(0, stored - 8)
    return np.ascontiguousarray(pixels.astype(np.uint8))


def _repeated(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)
