"""DICOM files show tissue alone: regions, burned-in text, and no word of the patient anywhere."""

import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom")
from pydicom import examples, uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from stnet.errors import VideoError
from stnet.video import find_inputs, open_source
from tests.video.dicom_making import dataset, jpeg_dataset, loop, read, region, save


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


def test_the_index_of_a_disc_is_no_video_of_its_folder(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(Path(examples.get_path("dicomdir")).read_bytes())
    (tmp_path / "IMAGES").mkdir()
    save(dataset(loop()), tmp_path / "IMAGES" / "IM000001")
    (video,) = find_inputs([tmp_path])
    assert video.dicom and len(list(video.open())) == 6
    with pytest.raises(VideoError, match="is a DICOMDIR"):
        open_source(tmp_path / "DICOMDIR")


def test_foreign_words_in_numbers_are_not_repeated(tmp_path, caplog):
    path = save(dataset(loop(), FrameTime="33", CineRate="20"), tmp_path / "a")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"DS\x02\x0033", b"DS\x02\x00DO").replace(b"IS\x02\x0020", b"IS\x02\x00EJ"))
    with warnings.catch_warnings(record=True) as told, caplog.at_level(logging.DEBUG):
        source = open_source(path)
        assert len(list(source)) == 6 and source.fps == 25
    assert [str(warning.message) for warning in told] == []
    assert caplog.text == ""
