"""Brightness of DICOM files: bits, windows, padding, overlays."""

import re
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("pydicom")
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from stnet.errors import VideoError
from stnet.video import open_source
from tests.video.dicom_making import dataset, loop, read, save


def test_gray_of_eight_bits(tmp_path):
    gray = loop()[..., 0].copy()
    for photometric, expected in (("MONOCHROME2", gray), ("MONOCHROME1", 255 - gray)):
        images, _ = read(dataset(gray, photometric), tmp_path / photometric)
        np.testing.assert_array_equal(images, np.repeat(expected[..., None], 3, axis=3))


@pytest.mark.parametrize("words", [False, True])
def test_bytes_that_are_stored_as_words_of_the_other_order(tmp_path, words):
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 11), dtype=np.uint8)  # frames end inside of words
    data = dataset(frames, "MONOCHROME2")
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    data.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    if words:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data["PixelData"].VR = "OW"
    images, source = read(data, tmp_path / "a.dcm")
    np.testing.assert_array_equal(images[..., 0], frames)
    assert source.status == "ok"


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


GRAY_RAMP = np.arange(256, dtype=np.uint16).reshape(1, 16, 16).repeat(2, axis=0)


@pytest.mark.parametrize(
    ("frames", "elements", "note"),
    [
        (GRAY_RAMP << 8, {"bits": 12, "HighBit": 15}, "0 is shown black and 4080 white"),
        (GRAY_RAMP << 4, {"bits": 12, "HighBit": 3}, "0 is shown black and 4080 white"),
        (GRAY_RAMP.astype(np.uint8), {"WindowCenter": 2048, "WindowWidth": 4096}, "hides all contrast: not applied"),
        (GRAY_RAMP.astype(np.uint8), {"WindowCenter": 0, "WindowWidth": 1}, "hides all contrast: not applied"),
        (GRAY_RAMP.astype(np.uint8), {"RescaleSlope": 0, "RescaleIntercept": 0}, "rescale slope 0.: not applied"),
        (GRAY_RAMP.astype(np.uint8), {"VOILUTSequence": Sequence([])}, ""),
        (GRAY_RAMP.astype(np.uint8), {"ModalityLUTSequence": Sequence([])}, ""),
        (GRAY_RAMP.astype(np.uint8), {"VOILUTSequence": Sequence([Dataset()])}, "VOILUTSequence. cannot be read: not"),
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
