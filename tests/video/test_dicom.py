"""DICOM files as videos: pixels, times, regions, damage; and that nothing of the patient shows."""

import io
import itertools
import logging
import re
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stnet.errors import VideoError
from stnet.video import find_inputs, open_source
from stnet.video.dicom import DicomFile
from stnet.video.dicom_header import MAX_FRAMES

pydicom = pytest.importorskip("pydicom")
from pydicom import examples, uid  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from tests.video.dicom_making import dataset, jpeg_dataset, jpegs, loop, read, region, save  # noqa: E402


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


def test_gray_of_eight_bits(tmp_path):
    gray = loop()[..., 0].copy()
    for photometric, expected in (("MONOCHROME2", gray), ("MONOCHROME1", 255 - gray)):
        images, _ = read(dataset(gray, photometric), tmp_path / photometric)
        np.testing.assert_array_equal(images, np.repeat(expected[..., None], 3, axis=3))


def test_gray_of_more_bits_is_stretched_alike_in_all_frames(tmp_path):
    frames = np.array([[[0, 0], [0, 0]], [[100, 300], [500, 900]], [[100, 1500], [0, 500]]], dtype=np.uint16)
    images, source = read(dataset(frames, "MONOCHROME2", bits=12), tmp_path / "a")
    assert images[..., 0].tolist() == [[[0, 0], [0, 0]], [[17, 51], [85, 153]], [[17, 255], [0, 85]]]
    assert source.notes[-1] == "gray without a window: 0 is shown black and 1500 white"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", [0, 64, 128, 191, 255]),
        ("LINEAR_EXACT", [0, 64, 128, 191, 255]),
        ("SIGMOID", [30, 69, 128, 186, 225]),
    ],
)
def test_window_and_rescaling(tmp_path, function, expected):
    frames = np.array([[[-1000, -500, 0, 500, 1000]]], dtype=np.int16)
    elements = {"RescaleSlope": 2, "RescaleIntercept": 100, "WindowCenter": [100.5, 3], "WindowWidth": [4000, 5]}
    data = dataset(frames, "MONOCHROME2", VOILUTFunction=function, **elements)
    images, _ = read(data, tmp_path / "a")
    assert np.abs(images[0, 0, :, 0].astype(int) - expected).max() <= 1


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


@pytest.mark.parametrize(("has_bot", "fragments"), [*itertools.product([True, False], [1, 3])])
def test_fragments_and_offset_tables(tmp_path, has_bot, fragments):
    frames = loop(5, 40, 48)
    data = jpeg_dataset(tmp_path, frames, has_bot=has_bot, fragments_per_frame=fragments)
    images, source = read(data, tmp_path / "a")
    assert len(images) == 5 and source.status == "ok"
    expected = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int) for one in jpegs(frames, tmp_path)]
    assert np.abs(images - np.stack(expected)).max() <= 3


@pytest.mark.parametrize("claimed", [5, 1, 4, 900])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", [[], [0], "shifted", "every fragment", "last missing"])
def test_offset_tables_that_fit_the_fragments_but_not_the_frames(tmp_path, table, fragments, claimed):
    frames = loop(5, 40, 48)
    data = jpeg_dataset(tmp_path, frames, has_bot=False, fragments_per_frame=fragments)
    begins, position = [], 0
    for fragment in pydicom.encaps.generate_fragments(data.PixelData[8:]):
        begins.append(position)
        position += 8 + len(fragment)
    offsets = {"shifted": [0, *begins[2::fragments]], "every fragment": begins, "last missing": begins[:-1:fragments]}
    entries = np.array(offsets[table] if isinstance(table, str) else table, "<u4").tobytes()
    data.PixelData = struct.pack("<HHL", 0xFFFE, 0xE000, len(entries)) + entries + data.PixelData[8:]
    data.NumberOfFrames = claimed
    images, _ = read(data, tmp_path / "a")
    expected = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int) for one in jpegs(frames, tmp_path)]
    assert len(images) == 5 and np.abs(images - np.stack(expected)).max() <= 3


@pytest.mark.parametrize("table", [[0], [0, 70_000], [8]])
def test_run_lengths_with_wrong_offset_tables(tmp_path, table):
    data = dataset(loop())
    data.compress(uid.RLELossless, generate_instance_uid=False)
    fragments = list(generate_frames(data.PixelData, number_of_frames=6))
    entries = np.array(table, "<u4").tobytes()
    body = encapsulate(fragments, has_bot=False)[8:]
    data.PixelData = struct.pack("<HHL", 0xFFFE, 0xE000, len(entries)) + entries + body
    np.testing.assert_array_equal(read(data, tmp_path / "a")[0], loop())


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


def test_frames_are_cut_to_the_tissue_region(tmp_path):
    frames = loop(2, 40, 60)
    regions = [region(10, 5, 39, 24), region(0, 30, 59, 39, kind=10, form=4), region(12, 8, 30, 20, kind=2)]
    path = save(dataset(frames, FrameTime="40", SequenceOfUltrasoundRegions=Sequence(regions)), tmp_path / "a")
    source = open_source(path)
    assert (source.origin, source.width, source.height) == ((10, 5), 30, 20)
    assert (source.full_width, source.full_height, source.notes) == (60, 40, ())
    for frame, expected in zip(source, frames, strict=True):
        np.testing.assert_array_equal(frame.image, expected[5:25, 10:40])
        assert frame.origin == (10, 5)
    whole = find_inputs([path])[0].open(full_frame=True)
    np.testing.assert_array_equal(next(iter(whole)).image, frames[0])
    assert "burned into" in whole.notes[0]


def test_only_what_regions_cover_is_shown(tmp_path):
    frames = np.full((2, 60, 80, 3), 255, np.uint8)
    regions = [region(0, 0, 29, 19), region(50, 30, 79, 59), region(40, 0, 120, 9)]
    data = dataset(frames, FrameTime="40", SequenceOfUltrasoundRegions=Sequence(regions))
    images, source = read(data, tmp_path / "a")
    expected = np.zeros_like(frames)
    expected[:, :20, :30] = expected[:, 30:, 50:] = 255
    np.testing.assert_array_equal(images, expected)
    assert source.notes == ("1 of 3 scan regions in its header fit no scan: left out",)


def test_region_that_is_the_whole_frame_is_said(tmp_path):
    _, source = read(
        dataset(loop(2, 40, 60), SequenceOfUltrasoundRegions=Sequence([region(0, 0, 59, 39)])), tmp_path / "a"
    )
    assert "text burned into the frames shows" in source.notes[0]


@pytest.mark.parametrize(
    "box", [(10, 5, 95, 24), (30, 5, 10, 24), (0, 0, 4_000_000_000, 5), (-9, 0, 30, 30), (5, 5, 9, 30)]
)
def test_frames_with_impossible_regions_must_be_asked_for(tmp_path, box):
    item = Dataset()
    for element, value in zip((0x6018, 0x601A, 0x601C, 0x601E), box, strict=True):
        item.add_new((0x0018, element), "UL" if value >= 0 else "SL", value)
    item.RegionSpatialFormat = item.RegionDataType = 1
    path = save(dataset(loop(2, 40, 60), SequenceOfUltrasoundRegions=Sequence([item])), tmp_path / "a")
    with pytest.raises(VideoError, match="does not lie within the frame; ask for whole frames"):
        open_source(path)
    source = open_source(path, full_frame=True)
    assert (source.origin, source.width) == ((0, 0), 60) and "burned into" in source.notes[0]


def test_frames_with_burned_in_text_and_no_region_must_be_asked_for(tmp_path):
    path = save(dataset(loop(), BurnedInAnnotation="YES"), tmp_path / "a")
    with pytest.raises(VideoError, match="text is burned into the frames; ask for whole frames"):
        open_source(path)
    assert len(list(open_source(path, full_frame=True))) == 6


def test_region_that_counts_from_one(tmp_path):
    data = dataset(loop(2, 40, 60), SequenceOfUltrasoundRegions=Sequence([region(10, 5, 60, 40)]))
    source = open_source(save(data, tmp_path / "a"))
    assert (source.width, source.height) == (50, 35) and next(iter(source)).image.shape == (35, 50, 3)


def test_recognized_by_content_and_named_after_it(tmp_path):
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("b.png", "a.mp4", "IM0001")):
        save(dataset(loop(), InstanceNumber=number), tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not a video")
    names = [video.name for video in find_inputs([tmp_path / "in"])]
    assert len(set(names)) == 3 and all(re.fullmatch("dicom-[0-9a-f]{12}", name) for name in names)
    (tmp_path / "moved").mkdir()
    (tmp_path / "in" / "IM0001").rename(tmp_path / "moved" / "DOE")
    assert find_inputs([tmp_path / "moved"])[0].name == names[0]
    assert all(len(list(video.open())) == 6 for video in find_inputs([tmp_path / "in" / "*"]) if video.dicom)
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "real.jpg")
    with pytest.raises(VideoError, match="holds DICOM files and images") as caught:
        find_inputs([tmp_path / "in"])
    assert str(tmp_path) not in str(caught.value)


def test_preamble_of_an_executable_is_no_obstacle(tmp_path):
    data = dataset(loop())
    data.preamble = b"MZ" + b"\x90" * 126
    assert len(read(data, tmp_path / "a")[0]) == 6


def test_files_without_preamble_are_dicom_too(tmp_path):
    frames = loop()
    data = save(dataset(frames), tmp_path / "whole").read_bytes()
    for name in ("DOE", "DOE.dcm"):
        (tmp_path / name).write_bytes(data[132:])
        source = open_source(tmp_path / name)
        assert source.name.startswith("dicom-")
        np.testing.assert_array_equal(np.stack([frame.image for frame in source]), frames)


@pytest.mark.parametrize("content", [b"", b"\x08\x00", b"DOE" * 300, b"\xff\xd8\xff\xe0" + bytes(300)])
def test_what_is_named_like_dicom_never_shows_its_name(tmp_path, content):
    path = tmp_path / "DOE.DCM"
    path.write_bytes(content)
    (video,) = find_inputs([path])
    assert (video.origin, video.dicom) == (video.name, True) and re.fullmatch("dicom-[0-9a-f]{12}", video.name)
    with pytest.raises(VideoError, match=f"{video.name}: ") as caught:
        video.open()
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize("claimed", [1, 3, 7, 1000, 2**31 - 1, 10**30])
@pytest.mark.parametrize("compressed", [False, True])
def test_lying_frame_counts(tmp_path, claimed, compressed):
    frames = loop(6, 40, 48)
    data = jpeg_dataset(tmp_path, frames, has_bot=False) if compressed else dataset(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.NumberOfFrames = claimed if claimed < 2**31 else str(claimed)[:12]
    images, source = read(data, tmp_path / "a")
    assert len(images) == 6 and source.declared_frames == 6
    assert source.status == ("truncated" if claimed > 6 else "corrupt")
    assert "6" in source.problems[0]


@pytest.mark.parametrize("share", [0.95, 0.5, 0.2])
@pytest.mark.parametrize("layout", ["native", "table", "no table"])
def test_cut_files(tmp_path, cut, share, layout):
    frames = loop(10, 40, 48)
    data = dataset(frames) if layout == "native" else jpeg_dataset(tmp_path, frames, has_bot=layout == "table")
    source = open_source(cut(save(data, tmp_path / "a"), share))
    images = list(source)
    assert source.status == "truncated" and len(images) == pytest.approx(10 * share, abs=1.5)


def test_damaged_frames_are_skipped(tmp_path):
    frames = loop(6, 40, 48)
    data = jpeg_dataset(tmp_path, frames)
    fragments = list(generate_frames(data.PixelData, number_of_frames=6))
    fragments[2] = fragments[2][:20] + b"\0" * (len(fragments[2]) - 20)
    data.PixelData = encapsulate(fragments)
    source = open_source(save(data, tmp_path / "a"))
    images = list(source)
    assert [frame.index for frame in images] == [0, 1, 2, 3, 4]
    assert images[2].time == pytest.approx(3 / 25)  # the frames after the gap keep their times
    assert (source.status, source.problems) == ("corrupt", ("1 frames cannot be decoded",))


def test_huge_claims_allocate_nothing(tmp_path):
    data = dataset(loop())
    data.Rows, data.Columns, data.NumberOfFrames = 65535, 65535, 2**31 - 1
    with pytest.raises(VideoError, match="exceed the limit"):
        open_source(save(data, tmp_path / "a"))
    frames = loop(2, 40, 48)
    data = jpeg_dataset(tmp_path, frames)
    bomb = bytearray(jpegs(frames, tmp_path)[0])
    size = bomb.index(b"\xff\xc0") + 5
    bomb[size : size + 4] = b"\xff\xff\xff\xff"
    data.PixelData = encapsulate([bytes(bomb), jpegs(frames, tmp_path)[1]])
    source = open_source(save(data, tmp_path / "b"))
    assert len(list(source)) == 1 and source.status == "corrupt"


def test_frames_beyond_the_cap_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("stnet.video.dicom_frames.MAX_FRAMES", 4)
    images, source = read(dataset(loop()), tmp_path / "a")
    assert len(images) == 4 and source.status == "truncated" and f"first {MAX_FRAMES}" in source.problems[0]


def test_refusals_tell_what_to_do_and_name_no_file(tmp_path):
    directory = Path(examples.get_path("dicomdir"))
    no_pixels, deflated, partial, float_bits = (dataset(loop()) for _ in range(4))
    del no_pixels.PixelData
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    partial.PhotometricInterpretation = "YBR_PARTIAL_422"
    float_bits.BitsAllocated = 32
    video = jpeg_dataset(tmp_path, loop())
    video.file_meta.TransferSyntaxUID = uid.MPEG4HP41
    cases = {
        "is a DICOMDIR": directory,
        "no pixel data": save(no_pixels, tmp_path / "DOE1"),
        "deflated": save(deflated, tmp_path / "DOE2"),
        "photometric interpretation": save(partial, tmp_path / "DOE3"),
        "bits per sample": save(float_bits, tmp_path / "DOE4"),
        "cannot be opened as a video": save(video, tmp_path / "DOE5"),
    }
    for message, path in cases.items():
        with pytest.raises(VideoError, match=message) as caught:
            open_source(path)
        assert str(caught.value).startswith("dicom-") and "DOE" not in str(caught.value)


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


def test_foreign_words_in_numbers_are_not_repeated(tmp_path, caplog):
    path = save(dataset(loop(), FrameTime="33", CineRate="20"), tmp_path / "a")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"DS\x02\x0033", b"DS\x02\x00DO").replace(b"IS\x02\x0020", b"IS\x02\x00EJ"))
    with warnings.catch_warnings(record=True) as told, caplog.at_level(logging.DEBUG):
        source = open_source(path)
        assert len(list(source)) == 6 and source.fps == 25
    assert [str(warning.message) for warning in told] == []
    assert caplog.text == ""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    # Most of the header is in the first kilobytes.
    limits = [min(len(data), 3000)] * 4 + [len(data)] * 4
    for limit in limits[: rng.integers(1, 9)]:
        changed[rng.integers(132, limit)] = rng.integers(256)
    if rng.random() < 0.2:
        del changed[rng.integers(200, len(data)) :]
    return bytes(changed)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_mutations_never_escape(tmp_path, count, capfd):
    rng = np.random.default_rng(count)
    frames = loop(4, 24, 32)
    regions = Sequence([region(2, 2, 20, 20)])
    originals = [
        dataset(frames, SequenceOfUltrasoundRegions=regions, FrameTime="40"),
        jpeg_dataset(tmp_path, frames),
        dataset(frames[..., 0].copy(), "MONOCHROME2", WindowCenter="100", WindowWidth="50"),
    ]
    rle = dataset(frames)
    rle.compress(uid.RLELossless, generate_instance_uid=False)
    files = [save(data, tmp_path / "whole").read_bytes() for data in [*originals, rle]]
    usable = 0
    for number in range(count):
        path = tmp_path / "DOE"
        path.write_bytes(mutated(files[number % len(files)], rng))
        try:
            source = DicomFile(path, "dicom-1")
            usable += len(list(source)) > 0 and source.status in ("ok", "truncated", "corrupt")
        except VideoError as error:
            assert "DOE" not in str(error)
    assert usable > count // 4
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


GRAY_RAMP = np.arange(256, dtype=np.uint16).reshape(1, 16, 16).repeat(2, axis=0)


@pytest.mark.parametrize(
    ("frames", "elements", "note"),
    [
        (GRAY_RAMP << 8, {"bits": 12, "HighBit": 15}, "0 is shown black and 4080 white"),
        (GRAY_RAMP << 4, {"bits": 12, "HighBit": 3}, "0 is shown black and 4080 white"),
        (GRAY_RAMP.astype(np.uint8), {"WindowCenter": 2048, "WindowWidth": 4096}, "hides all contrast: not applied"),
        (GRAY_RAMP.astype(np.uint8), {"WindowCenter": 0, "WindowWidth": 1}, "hides all contrast: not applied"),
        (GRAY_RAMP.astype(np.uint8), {"RescaleSlope": 0, "RescaleIntercept": 0}, "rescale slope 0.: not applied"),
    ],
)
def test_headers_that_cannot_be_right_about_gray_do_not_spoil_it(tmp_path, frames, elements, note):
    source = open_source(save(dataset(frames, "MONOCHROME2", **elements), tmp_path / "x.dcm"))
    images = [frame.image[..., 0] for frame in source]
    np.testing.assert_array_equal(images, GRAY_RAMP)
    assert re.search(note, " ".join(source.notes))


@pytest.mark.parametrize(
    "padding", [{"PixelPaddingValue": -2000}, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1}]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_no_brightness(tmp_path, padding, photometric):
    frames = GRAY_RAMP.astype(np.int16) * 2
    frames[:, :4] = -2000
    frames[1] = -2000  # nothing else
    data = dataset(frames, photometric)
    for keyword, value in padding.items():
        data.add_new(keyword, "SS", value)
    source = open_source(save(data, tmp_path / "x.dcm"))
    images = np.array([frame.image[..., 0] for frame in source])
    assert not images[0, :4].any() and not images[1].any() and "128 is shown black and 510 white" in source.notes[-1]
    assert sorted(images[0, 4:].flat[::191]) == [0, 255]


def test_the_pointer_says_which_frame_times_count(tmp_path):
    times = {"FrameTime": 40, "FrameTimeVector": [0, 100]}
    for pointer, expected in ((0x00181063, 0.04), (0x00181065, 0.1)):
        data = dataset(GRAY_RAMP.astype(np.uint8), "MONOCHROME2", **times, FrameIncrementPointer=pointer)
        source = open_source(save(data, tmp_path / "x.dcm"))
        assert [frame.time for frame in source] == [0, expected]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize("bits", [8, 10, 11])
def test_pixels_that_use_more_bits_than_the_header_states_are_refused(tmp_path, bits, syntax):
    data = dataset(GRAY_RAMP * 16, "MONOCHROME2", WindowCenter=2**bits / 2, WindowWidth=2**bits)
    if syntax != data.file_meta.TransferSyntaxUID:
        data.compress(syntax, generate_instance_uid=False)
    data.BitsStored, data.HighBit = bits, bits - 1
    with pytest.raises(VideoError, match=f"more bits than the {bits} that its header states; correct BitsStored"):
        open_source(save(data, tmp_path / "x.dcm"))
    source = open_source(save(dataset(GRAY_RAMP, "MONOCHROME2", bits=max(bits, 8)), tmp_path / "y.dcm"))
    assert len(list(source)) == 2


def test_bits_of_overlays_signs_and_padding_are_no_brightness(tmp_path):
    window = {"WindowCenter": 128, "WindowWidth": 256}
    with_overlay = GRAY_RAMP | np.where(GRAY_RAMP > 200, np.uint16(1 << 12), np.uint16(0))
    data = dataset(with_overlay, "MONOCHROME2", bits=12, **window)
    data.add_new(0x60000102, "US", 12)
    np.testing.assert_array_equal(read(data, tmp_path / "overlay")[0][..., 0], GRAY_RAMP)
    del data[0x60000102]
    with pytest.raises(VideoError, match="more bits than the 12"):
        open_source(save(data, tmp_path / "unstated"))
    signed = GRAY_RAMP.astype(np.int16) - 128
    signed_data = dataset(signed, "MONOCHROME2", bits=9, WindowCenter=0, WindowWidth=256)
    np.testing.assert_array_equal(read(signed_data, tmp_path / "signed")[0][..., 0], GRAY_RAMP)
    padded = GRAY_RAMP.copy()
    padded[:, :4] = 65535
    data = dataset(padded, "MONOCHROME2", bits=12, **window)
    data.add_new("PixelPaddingValue", "US", 65535)
    assert not read(data, tmp_path / "padded")[0][:, :4].any()


@pytest.mark.parametrize("alike", [True, False])
def test_what_is_stated_of_each_frame_is_applied_or_told(tmp_path, alike):
    data = dataset(np.tile(np.array([0, 50, 100], np.uint8), (4, 20, 10)), "MONOCHROME2")
    items = []
    for number in range(4):
        item, window, measures = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = 50.5, 101 if alike else 101 + number
        measures.PixelSpacing = [0.2, 0.1]
        item.FrameVOILUTSequence, item.PixelMeasuresSequence = Sequence([window]), Sequence([measures])
        items.append(item)
    if not alike:
        del items[2].PixelMeasuresSequence
    data.PerFrameFunctionalGroupsSequence = Sequence(items)
    images, source = read(data, tmp_path / "a")
    told = [note for note in source.notes if "for single frames, which is not applied" in note]
    if alike:
        assert images[0, 0, :3, 0].tolist() == [0, 128, 255] and source.pixel_aspect == Fraction(1, 2) and not told
        assert source.scale is not None
    else:
        assert images[0, 0, :3, 0].tolist() == [0, 50, 100] and source.scale is None
        assert [note.split()[3:7] for note in told] == [["a", "size", "of", "pixels"], ["a", "window", "for", "single"]]
