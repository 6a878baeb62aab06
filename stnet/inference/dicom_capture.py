"""Annotated frames as a DICOM multi-frame secondary capture, compressed as JPEG one by one, by pydicom."""

import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import stnet
from stnet.errors import VideoError
from stnet.inference.dicom_source import copy_reference

QUALITY = 90
"""Of the JPEG."""

SERIES_NUMBER = 9002

MOST_LISTED = 5000
"""Numbers that one element can hold for sure: its length is told in 16 bits."""

MOST_BYTES = 2**32 - 1
"""Bytes of one frame."""

MULTI_FRAME_TRUE_COLOR = "1.2.840.10008.5.1.4.1.1.7.4"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
PIXEL_DATA, ITEM, END = (struct.pack("<HH", *tag) for tag in ((0x7FE0, 0x0010), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)))


class SecondaryCapture:
    """Takes frames and writes them as one file; compressed frames wait in a temporary file beside it, not in memory.

    Args:
        reference: the source, as `read_reference` gives it.
        folder: for the temporary file.
    """

    def __init__(self, reference: Any, folder: Path) -> None:
        self._reference = reference
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by `close`
        self._lengths: list[int] = []
        self._times: list[float] = []
        self._numbers: list[int] = []
        self._size = (0, 0)

    def add(self, image: np.ndarray, time: float, number: int) -> None:
        """Append a frame.

        Args:
            image: uint8 RGB `[H, W, 3]`, of one size for all.
            time: in seconds.
            number: of the frame in the source, from 1.
        """
        buffer = io.BytesIO()
        # Half the colours of a row, which `YBR_FULL_422` states.
        Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY, subsampling="4:2:2")
        data = buffer.getvalue()
        self._spool.write(data + b"\0" * (len(data) % 2))
        self._lengths.append(len(data) + len(data) % 2)
        self._times.append(time)
        self._numbers.append(number)
        self._size = image.shape[:2]

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            VideoError: there is no frame.
        """
        if not self._lengths:
            raise VideoError("no frame to write")
        from pydicom import dcmwrite

        dcmwrite(path, self._dataset(), enforce_file_format=True)
        self._spool.seek(0)
        with open(path, "ab") as file:
            # The dataset ends where its last element, the pixels, begins; no library writes these from a file.
            file.write(PIXEL_DATA + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFF))
            table = self._offsets()
            file.write(ITEM + struct.pack("<I", len(table)) + table)
            for length in self._lengths:
                file.write(ITEM + struct.pack("<I", length) + self._spool.read(length))
            file.write(END + struct.pack("<I", 0))

    def close(self) -> None:
        """Remove the temporary file."""
        self._spool.close()

    def _offsets(self) -> bytes:
        """Return the table of where each frame begins, which is empty where 32 bits do not suffice."""
        starts = np.cumsum([0, *(length + 8 for length in self._lengths[:-1])])
        return starts.astype("<u4").tobytes() if starts[-1] <= MOST_BYTES else b""

    def _dataset(self) -> Any:
        from pydicom import Dataset
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import generate_uid

        height, width = self._size
        data = Dataset()
        copy_reference(self._reference, data)
        data.setdefault("PatientOrientation", "")
        data.setdefault("Laterality", "")
        data.SOPClassUID, data.SOPInstanceUID = MULTI_FRAME_TRUE_COLOR, generate_uid()
        data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = generate_uid(), SERIES_NUMBER, 1
        data.SeriesDescription = "Lesions found by software, drawn, unverified"
        data.Modality, data.ConversionType = "US", "WSD"
        data.Manufacturer, data.ManufacturerModelName = "stnet", "stnet"
        data.SoftwareVersions = stnet.__version__
        data.ImageType = ["DERIVED", "SECONDARY"]
        data.DerivationDescription = f"Lesions drawn by stnet {stnet.__version__}; research software, not for diagnosis"
        data.SourceImageSequence = [self._source()]
        # What the source had burned in is still there, where it lies in the region that was looked at.
        data.BurnedInAnnotation = "YES"
        self._describe_time(data)
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
        data.Rows, data.Columns = height, width
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
        data.LossyImageCompressionRatio = round(3 * height * width * len(self._lengths) / sum(self._lengths), 2)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = JPEG_BASELINE
        return data

    def _describe_time(self, data: Any) -> None:
        data.NumberOfFrames = len(self._lengths)
        if len(self._lengths) == 1:
            return
        steps = 1000 * np.diff(self._times)
        data.RecommendedDisplayFrameRate = max(1, round(1000 / max(1e-3, float(steps.mean()))))
        if np.ptp(steps) < 1 or len(steps) >= MOST_LISTED:
            data.FrameIncrementPointer = 0x00181063
            data.FrameTime = round(float(steps.mean()), 6)
        else:
            data.FrameIncrementPointer = 0x00181065
            data.FrameTimeVector = [0, *(round(float(step), 3) for step in steps)]

    def _source(self) -> Any:
        from pydicom import Dataset
        from pydicom.sr.codedict import codes

        source, purpose, code = Dataset(), Dataset(), codes.DCM.SourceImageForImageProcessingOperation
        source.ReferencedSOPClassUID = self._reference.SOPClassUID
        source.ReferencedSOPInstanceUID = self._reference.SOPInstanceUID
        # Without a list the whole source is meant.
        if int(self._reference.NumberOfFrames) > 1 and len(self._numbers) <= MOST_LISTED:
            source.ReferencedFrameNumber = self._numbers
        purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code[:3]
        source.PurposeOfReferenceCodeSequence = [purpose]
        return source
