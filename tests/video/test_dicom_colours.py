"""Colours of DICOM files come out right where their headers are wrong: what the pixels say goes first."""

import io

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

from stnet.video.dicom_codestream import read_codestream  # noqa: E402
from tests.video.dicom_making import dataset, loop, read  # noqa: E402


def smooth(frames: int = 2, height: int = 40, width: int = 48) -> np.ndarray:
    """Colours that change slowly, so that lossy compression keeps them."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([3 * x + 40 + 9 * i, 180 - 3 * y, x + y + 20], -1) for i in range(frames)]).astype(
        np.uint8
    )


def compressed(frames: np.ndarray, streams: list[bytes], syntax: str, photometric: str, **elements):
    data = dataset(frames, photometric, **elements)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2) for stream in streams])
    data["PixelData"].is_undefined_length = True
    return data


def jpeg(image: np.ndarray, *, rgb: bool = False, subsampling: str = "4:2:0", bare: bool = False) -> bytes:
    """A JPEG; `rgb` without a colour transform (Adobe's mark says so), `bare` without any mark of colours."""
    stream = io.BytesIO()
    if rgb:
        Image.fromarray(image).save(stream, "JPEG", quality=97, keep_rgb=True)
    else:
        Image.fromarray(image).save(stream, "JPEG", quality=97, subsampling=subsampling)
    data = stream.getvalue()
    return without_marks(data) if bare else data


def without_marks(data: bytes) -> bytes:
    kept, position = data[:2], 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        kept += b"" if data[position + 1] in (0xE0, 0xEE) else data[position:end]
        position = end
    return kept + data[position:]


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": "4:4:4"},
        {"bare": True},
        {"subsampling": "4:2:2", "bare": True},
        {"rgb": True},
        {"rgb": True, "bare": True},
    ],
    ids=str,
)
def test_jpeg_says_what_its_colours_are(tmp_path, photometric, planar, options):
    frames = smooth()
    streams = [jpeg(frame, **options) for frame in frames]
    data = compressed(frames, streams, uid.JPEGBaseline8Bit, photometric, PlanarConfiguration=planar)
    images, source = read(data, tmp_path / "a")
    assert source.status == "ok" and np.abs(images.astype(int) - frames).max() <= 12


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_jpeg_that_says_nothing_is_what_the_header_says(tmp_path, photometric):
    frames = smooth()
    stored = frames if photometric == "RGB" else [np.asarray(Image.fromarray(f).convert("YCbCr")) for f in frames]
    streams = []
    for components in stored:
        stream = jpeg(components, rgb=True, bare=True)
        position = stream.index(b"\xff\xc0") + 10
        scan = stream.index(b"\xff\xda") + 5
        stream = bytearray(stream)
        for number in range(3):  # names of components that mean nothing
            stream[position + 3 * number] = stream[scan + 2 * number] = number + 1
        streams.append(bytes(stream))
    assert read_codestream(streams[0]).colours is None
    images, _ = read(compressed(frames, streams, uid.JPEGBaseline8Bit, photometric), tmp_path / "a")
    assert np.abs(images.astype(int) - frames).max() <= 12


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"])
@pytest.mark.parametrize("planar", [0, 1])
def test_jpeg_2000_with_its_colour_transform(tmp_path, photometric, planar):
    openjpeg = pytest.importorskip("openjpeg.utils")
    frames = np.ascontiguousarray(loop(2, 40, 48))
    streams = [openjpeg.encode_array(frame, photometric_interpretation=1, use_mct=True) for frame in frames]
    data = compressed(frames, streams, uid.JPEG2000Lossless, photometric, PlanarConfiguration=planar)
    np.testing.assert_array_equal(read(data, tmp_path / "a")[0], frames)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("planar", [0, 1])
def test_jpeg_2000_without_colour_transform_is_what_the_header_says(tmp_path, photometric, planar):
    openjpeg = pytest.importorskip("openjpeg.utils")
    frames = np.ascontiguousarray(loop(2, 40, 48))
    stored = frames if photometric == "RGB" else [np.asarray(Image.fromarray(f).convert("YCbCr")) for f in frames]
    streams = [openjpeg.encode_array(np.array(f), photometric_interpretation=1, use_mct=False) for f in stored]
    data = compressed(frames, streams, uid.JPEG2000Lossless, photometric, PlanarConfiguration=planar)
    assert np.abs(read(data, tmp_path / "a")[0].astype(int) - frames).max() <= 3


@pytest.mark.parametrize("planar", [0, 1])
def test_run_lengths(tmp_path, planar):
    frames = loop()
    data = dataset(frames)
    data.compress(uid.RLELossless, generate_instance_uid=False)
    data.PlanarConfiguration = planar
    np.testing.assert_array_equal(read(data, tmp_path / "a")[0], frames)


@pytest.mark.parametrize("declared", [6, 4, 9])
@pytest.mark.parametrize("full", [True, False])
def test_length_tells_whether_chroma_is_halved(tmp_path, full, declared):
    frames = loop()
    frames[:, :, 1::2] = frames[:, :, ::2]
    stored = np.stack([np.asarray(Image.fromarray(frame).convert("YCbCr")) for frame in frames])
    data = dataset(stored, "YBR_FULL_422")
    data.NumberOfFrames = declared if full else 6
    if not full:
        pairs = stored.reshape(*stored.shape[:2], -1, 2, 3)
        packed = [pairs[..., 0, 0], pairs[..., 1, 0], pairs[..., 0, 1], pairs[..., 0, 2]]
        data.PixelData = np.stack(packed, axis=-1).tobytes()
    if full and declared == 9:
        pytest.skip("as long as nine frames with halved chroma: the header is consistent")
    images, _ = read(data, tmp_path / "a")
    if declared == 6:
        assert images.shape == frames.shape and np.abs(images.astype(int) - frames).max() <= 3


@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (12, 4095), (16, 65535)])
def test_segmented_palettes_are_alike_in_all_frames(tmp_path, bits, largest):
    places = np.zeros((2, 4, 64), np.uint16)
    places[0], places[1] = np.arange(64) % 16, np.arange(64) * 64
    data = dataset(places, "PALETTE COLOR", bits=12)
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [4096, 0, 16])
        segments = np.array([0, 1, 0, 1, 4095, largest], np.uint16)
        setattr(data, f"Segmented{colour}PaletteColorLookupTableData", segments.tobytes())
    images, _ = read(data, tmp_path / "a")
    assert images[0].max() <= 1 and images[1].max() >= 245


@pytest.mark.parametrize("held", [8, 12, 16])
def test_deep_colour_is_shown_by_the_bits_it_uses(tmp_path, held):
    frames = loop().astype(np.uint16)
    frames[0] //= 40
    images, source = read(dataset(frames << (held - 8), "RGB", FrameTime="40"), tmp_path / "a")
    assert np.abs(images.astype(int) - frames).max() <= 1
    assert bool(source.notes[1:]) == (held < 16)
