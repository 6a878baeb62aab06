"""DICOM files as videos: colours, syntaxes, times, what cannot be read."""

import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import examples, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from stnet.errors import VideoError
from stnet.video import open_source
from tests.video.dicom_making import dataset, jpeg_dataset, loop, read, save

pydicom = pytest.importorskip("pydicom")


def test_loop_that_comes_with_pydicom(tmp_path):
    with pytest.raises(VideoError, match="does not lie within the frame; ask for whole frames"):
        open_source(examples.get_path("ybr_color"))  # made smaller, with the header of the larger one
    source = open_source(examples.get_path("ybr_color"), full_frame=True)
    frames = list(source)
    assert (len(frames), source.status, source.fps) == (30, "ok", 30)
    assert [frame.index for frame in frames] == list(range(30)) and frames[3].time == pytest.approx(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.dcmread(examples.get_path("ybr_color")).pixel_array
    # JPEG decoders round differently.
    assert np.abs(np.stack([f.image for f in frames]).astype(int) - expected).max() <= 3
    assert source.scan({29}).length == 30


@pytest.mark.parametrize("name", ["rgb_color", "palette_color", "jpeg2k", "ct", "mr", "overlay"])
def test_stills_that_come_with_pydicom(name):
    (frame,) = open_source(examples.get_path(name), full_frame=True)
    assert frame.image.dtype == np.uint8 and 5 < frame.image.mean() < 200 and frame.image.std() > 10


def test_rgb_in_both_planar_configurations(tmp_path):
    frames = loop()
    images, source = read(dataset(frames), tmp_path / "a")
    np.testing.assert_array_equal(images, frames)
    assert source.status == "ok"
    planar = dataset(frames, PlanarConfiguration=1)
    planar.PixelData = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).tobytes()
    np.testing.assert_array_equal(read(planar, tmp_path / "b")[0], frames)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_uncompressed_luminance_and_chroma(tmp_path, photometric):
    frames = loop()
    # Chroma of the pairs that 4:2:2 stores together is made equal.
    frames[:, :, 1::2] = frames[:, :, ::2]
    stored = np.stack([np.asarray(Image.fromarray(frame).convert("YCbCr")) for frame in frames])
    data = dataset(stored, photometric)
    if photometric == "YBR_FULL_422":
        pairs = stored.reshape(*stored.shape[:2], -1, 2, 3)
        packed = [pairs[..., 0, 0], pairs[..., 1, 0], pairs[..., 0, 1], pairs[..., 0, 2]]
        data.PixelData = np.stack(packed, axis=-1).tobytes()
    images, source = read(data, tmp_path / "a")
    assert source.status == "ok" and np.abs(images.astype(int) - frames).max() <= 3


@pytest.mark.parametrize("depth", [8, 16])
def test_palette(tmp_path, depth):
    gray = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    tables = np.random.default_rng(1).integers(0, 256, (3, 256))
    data = dataset(gray, "PALETTE COLOR")
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, depth])
        entries = table.astype(np.uint8) if depth == 8 else (table << 8).astype("<u2")
        setattr(data, f"{colour}PaletteColorLookupTableData", entries.tobytes())
    images, _ = read(data, tmp_path / "a")
    np.testing.assert_array_equal(images, np.moveaxis(tables[:, gray], 0, -1))


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.ImplicitVRLittleEndian, uid.JPEGLSLossless]
)
def test_lossless_syntaxes(tmp_path, syntax):
    frames = loop()
    data = dataset(frames)
    if syntax == uid.ImplicitVRLittleEndian:
        data.file_meta.TransferSyntaxUID = syntax
    else:
        try:
            data.compress(syntax, generate_instance_uid=False)
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"no encoder here: {error}")
    images, source = read(data, tmp_path / "a")
    np.testing.assert_array_equal(images, frames)
    assert source.status == "ok"


@pytest.mark.parametrize(
    ("elements", "fps", "last"),
    [
        ({"FrameTime": "33.333"}, Fraction(30), 5 / 30),
        ({"FrameTime": "33.3667"}, Fraction(30000, 1001), 5 * 1001 / 30000),
        ({"FrameTime": "40", "CineRate": "10"}, Fraction(25), 0.2),
        ({"FrameTimeVector": ["0", "100", "100", "50", "50", "100"]}, Fraction(25, 2), 0.4),
        ({"CineRate": "20"}, Fraction(20), 0.25),
        ({"RecommendedDisplayFrameRate": "15"}, Fraction(15), 5 / 15),
        ({"FrameTime": "0", "CineRate": "1000000"}, Fraction(7), 5 / 7),
        ({}, Fraction(7), 5 / 7),
    ],
)
def test_times_come_from_the_header(tmp_path, elements, fps, last):
    source = open_source(save(dataset(loop(), **elements), tmp_path / "a"), fps=Fraction(7))
    frames = list(source)
    assert source.fps == fps and frames[-1].time == pytest.approx(last)


@pytest.mark.parametrize(
    ("elements", "note"),
    [
        ({}, "states no frame rate: 7"),
        ({"FrameTime": "0"}, "states a frame time of 0: 7"),
        ({"FrameTime": "0", "CineRate": "20"}, None),
        ({"CineRate": "1000000"}, "no believable frame rate: 7"),
        ({"FrameTimeVector": ["0"] * 6}, "no believable frame rate: 7"),
    ],
)
def test_missing_times_are_said(tmp_path, elements, note):
    path = save(dataset(loop(), **elements), tmp_path / "a")
    notes = open_source(path, fps=Fraction(7)).notes
    assert (note is None and "frame" not in "".join(notes[1:])) or note in notes[1]
    single = save(dataset(loop(1), **elements), tmp_path / "b")
    assert not any("assumed" in remark for remark in open_source(single).notes)


def test_enhanced_volumes(tmp_path):
    frames = np.tile(np.array([0, 50, 100], np.uint8), (4, 20, 10))
    data = dataset(frames, "MONOCHROME2")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.EnhancedUSVolumeStorage
    measures, window, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.2, 0.1], 1
    window.WindowCenter, window.WindowWidth = 50.5, 101
    shared.PixelMeasuresSequence, shared.FrameVOILUTSequence = Sequence([measures]), Sequence([window])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    images, source = read(data, tmp_path / "a")
    assert images.shape == (4, 20, 30, 3) and images[0, 0, :3, 0].tolist() == [0, 128, 255]
    assert source.pixel_aspect == Fraction(1, 2) and any("slices of a volume" in note for note in source.notes)


@pytest.mark.parametrize(
    ("syntax", "title"),
    [
        ("1.2.840.113619.5.2", "a transfer syntax of its maker"),
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.10008.1.2.4.77777", "an unknown transfer syntax"),
    ],
)
def test_unknown_compressions_are_not_called_damage(tmp_path, syntax, title):
    placeholder = uid.UID("1.2.840.10008.1.2.1")
    path = save(dataset(loop()), tmp_path / "DOE")
    data = path.read_bytes()
    old, new = (value.encode() + b"\0" * (len(value) % 2) for value in (placeholder, syntax))
    start = data.index(old)
    changed = data[: start - 2] + struct.pack("<H", len(new)) + new + data[start + len(old) :]
    length = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    group = struct.unpack("<L", data[length : length + 4])[0] + len(new) - len(old)
    path.write_bytes(changed[:length] + struct.pack("<L", group) + changed[length + 4 :])
    with pytest.raises(VideoError, match=rf"its compression \({title}\) cannot be decoded; export it"):
        open_source(path)


def test_missing_decoder_is_named(tmp_path, monkeypatch):
    data = jpeg_dataset(tmp_path, loop())
    path = save(data, tmp_path / "a")
    decoder = pydicom.pixels.get_decoder(uid.JPEGBaseline8Bit)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(VideoError, match=r"no decoder for its compression \(JPEG Baseline.*stnet\[dicom\].*gdcm"):
        open_source(path)


def test_without_pydicom(tmp_path):
    save(dataset(loop()), tmp_path / "DOE.dcm")
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from stnet.video import open_source\n"
        "from stnet.errors import VideoError\n"
        "try: open_source('DOE.dcm')\n"
        "except VideoError as error: print(error)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.stdout.startswith("dicom-") and "pip install 'stnet[dicom]'" in done.stdout and not done.stderr


def test_the_pointer_says_which_frame_times_count(tmp_path):
    times = {"FrameTime": 40, "FrameTimeVector": [0, 100]}
    for pointer, expected in ((0x00181063, 0.04), (0x00181065, 0.1)):
        data = dataset(
            np.arange(512, dtype=np.uint8).reshape(2, 16, 16), "MONOCHROME2", **times, FrameIncrementPointer=pointer
        )
        source = open_source(save(data, tmp_path / "x.dcm"))
        assert [frame.time for frame in source] == [0, expected]
