"""DICOM files made for tests."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from stnet.video import VideoSource, open_source


def dataset(frames: np.ndarray, photometric: str = "RGB", *, bits: int | None = None, **elements) -> FileDataset:
    """An ultrasound loop of uncompressed frames `[N, H, W]` or `[N, H, W, 3]`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = frames.shape[1:3]
    data.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    data.PhotometricInterpretation = photometric
    data.NumberOfFrames = len(frames)
    data.BitsAllocated = 8 * frames.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(frames.dtype.kind == "i")
    if frames.ndim == 4:
        data.PlanarConfiguration = 0
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.PixelData = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    data["PixelData"].VR = "OW" if frames.dtype.itemsize == 2 else "OB"
    return data


def save(data: Dataset, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def loop(frames: int = 6, height: int = 20, width: int = 30) -> np.ndarray:
    """RGB frames that differ from each other."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (frames, -(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)[:, :height, :width]


def region(x0: int, y0: int, x1: int, y1: int, kind: int = 1, form: int = 1) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = form, kind
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1, y1
    return item


def read(data: Dataset, path: Path, **options) -> tuple[np.ndarray, VideoSource]:
    source = open_source(save(data, path), **options)
    return np.stack([frame.image for frame in source]), source


def jpegs(frames: np.ndarray, tmp_path: Path) -> list[bytes]:
    made = []
    for image in frames:
        Image.fromarray(image).save(tmp_path / "one.jpg", quality=95)
        made.append((tmp_path / "one.jpg").read_bytes())
    return [data + b"\0" * (len(data) % 2) for data in made]


def jpeg_dataset(tmp_path: Path, frames: np.ndarray, **layout) -> FileDataset:
    data = dataset(frames, "YBR_FULL_422")
    data.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    data.PixelData = encapsulate(jpegs(frames, tmp_path), **layout)
    data["PixelData"].is_undefined_length = True
    return data
