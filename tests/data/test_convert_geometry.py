"""A mark on a visible pixel stays on it, whatever the source, and whatever picture the mark was drawn on."""

import json
import struct
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from stnet.data.convert import convert
from stnet.data.convert_command import main
from stnet.data.formats.fitting import Picture, fit
from stnet.data.index import load_index
from stnet.errors import DataError
from stnet.video.geometry import Orientation

HEIGHT, WIDTH = 36, 52  # no two of the sizes below are alike
REGION = (9, 4, 44, 31)
"""Scan region of the DICOM source: x0, y0, x1, y1."""


def picture(x: int, y: int) -> np.ndarray:
    """The upright frame: dark but for one pixel, uint8 [H, W, 3]."""
    image = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    image[y, x] = 250
    return image


def images(folder: Path, upright: np.ndarray, orientation: int) -> tuple[Path, str]:
    """A folder of one image stored so that EXIF `orientation` makes it upright."""
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    turned = Image.fromarray(upright)
    exif = turned.getexif()
    exif[0x0112] = inverse
    turned.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (folder / "clip").mkdir()
    stored.save(folder / "clip" / "shot.png", exif=exif)
    return folder / "clip", "shot.png"


def wide_images(folder: Path, upright: np.ndarray, _: int) -> tuple[Path, str]:
    """A folder of one image of pixels twice as wide as high."""
    (folder / "clip").mkdir()
    Image.fromarray(upright).save(folder / "clip" / "shot.png", dpi=(100, 200))
    return folder / "clip", "shot.png"


def video(folder: Path, upright: np.ndarray, _: int) -> tuple[Path, str]:
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(upright, format="rgb24")))
        container.mux(stream.encode())
    return folder / "clip.mkv", "clip/000000.png"


def turned_video(folder: Path, upright: np.ndarray, orientation: int) -> tuple[Path, str]:
    """A video whose display matrix says what the EXIF `orientation` does."""
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = Orientation.from_exif(inverse).apply(upright)
    path = folder / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    laid = Orientation.from_exif(orientation)
    x, y = (-1 if mirrored else 1 for mirrored in (laid.mirrored_x, laid.mirrored_y))
    a, b, c, d = (value << 16 for value in ((0, y, x, 0) if laid.transposed else (x, 0, 0, y)))
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path, "clip/000000.png"


def dicom(folder: Path, upright: np.ndarray, _: int, region_box=REGION) -> tuple[Path, str]:
    pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset

    content, region = Dataset(), Dataset()
    content.file_meta = FileMetaDataset()
    kind = "1.2.840.10008.5.1.4.1.1.3.1"
    content.file_meta.MediaStorageSOPClassUID, content.file_meta.MediaStorageSOPInstanceUID = kind, "1.2.3.4"
    content.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    content.SOPClassUID, content.SOPInstanceUID, content.Modality = kind, "1.2.3.4", "US"
    content.SamplesPerPixel, content.PhotometricInterpretation, content.PlanarConfiguration = 3, "RGB", 0
    content.Rows, content.Columns, content.NumberOfFrames = HEIGHT, WIDTH, 1
    content.BitsAllocated, content.BitsStored, content.HighBit, content.PixelRepresentation = 8, 8, 7, 0
    content.PixelData = upright.tobytes()
    region.RegionSpatialFormat = region.RegionDataType = 1
    region.RegionLocationMinX0, region.RegionLocationMinY0 = region_box[:2]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = region_box[2] - 1, region_box[3] - 1
    content.SequenceOfUltrasoundRegions = [region]
    content.save_as(folder / "clip.dcm", enforce_file_format=True)
    return folder / "clip.dcm", "clip/000000.png"


@settings(max_examples=50, deadline=None)
@given(
    source=st.sampled_from((images, turned_video, wide_images, video, dicom)),
    orientation=st.integers(1, 8),
    x=st.integers(REGION[0], REGION[2] - 1),
    y=st.integers(REGION[1], REGION[3] - 1),
    scale=st.sampled_from((1, 2, 3, Fraction(1, 2))),
    raw=st.booleans(),
    cut=st.booleans(),
)
@example(source=turned_video, orientation=6, x=12, y=7, scale=1, raw=True, cut=False)
@example(source=turned_video, orientation=7, x=12, y=7, scale=2, raw=True, cut=False)
def test_a_mark_on_a_pixel_stays_on_it(source, orientation, x, y, scale, raw, cut):
    """The mark is drawn on the upright frame, on what is stored or shown (where the size tells), or on the region."""
    box, size = np.array([x, y, x + 1, y + 1], dtype=float), (WIDTH, HEIGHT)
    if source in (images, turned_video) and raw and orientation >= 5:
        across, down = {5: (y, x), 6: (y, WIDTH - 1 - x), 7: (HEIGHT - 1 - y, WIDTH - 1 - x), 8: (HEIGHT - 1 - y, x)}[
            orientation
        ]
        box, size = np.array([across, down, across + 1, down + 1], dtype=float), (HEIGHT, WIDTH)
    if source is wide_images and raw:
        box, size = box * [2, 1, 2, 1], (2 * WIDTH, HEIGHT)  # as a viewer shows it
    if source is dicom and cut:
        box = box - [REGION[0], REGION[1]] * 2
        size, scale = (REGION[2] - REGION[0], REGION[3] - REGION[1]), 1
    box, size = box * float(scale), [int(side * scale) for side in size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, entry = source(folder, picture(x, y), orientation)
        document = {
            "images": [{"id": 1, "file_name": entry, "width": size[0], "height": size[1]}],
            "annotations": [
                {"image_id": 1, "category_id": 1, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            ],
            "categories": [{"id": 1, "name": "benign"}],
        }
        (folder / "marks.json").write_text(json.dumps(document))
        convert(path, folder / "marks.json", folder / "out", split="train")
        frame = load_index(folder / "out", "train").videos[0].frames[0]
        with Image.open(frame.path) as written:
            pixels = np.asarray(written.convert("L"))
    assert pixels.shape == (frame.height, frame.width)
    bright = np.argwhere(pixels > 200)[0]
    np.testing.assert_allclose(frame.boxes[0], [bright[1], bright[0], bright[1] + 1, bright[0] + 1], atol=0.02)


@pytest.mark.parametrize("region", [REGION, (9, 4, WIDTH + 30, 31)])
@pytest.mark.parametrize("drawn", ["whole", "twice", "region", "share"])
def test_whole_frames_of_dicom_files(tmp_path, capsys, region, drawn):
    """With --full-frame nothing is cut, whatever the header says of the scan region; marks on the cut are moved."""
    trusted = region == REGION
    path, entry = dicom(tmp_path, picture(20, 11), 1, region)
    box, size = np.array([20, 11, 1, 1]), (WIDTH, HEIGHT)
    if drawn == "twice":
        box, size = 2 * box, (2 * WIDTH, 2 * HEIGHT)
    if drawn == "region":
        box, size = box - [*REGION[:2], 0, 0], (REGION[2] - REGION[0], REGION[3] - REGION[1])
    document = {
        "images": [{"id": 1, "file_name": entry, "width": size[0], "height": size[1]}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box.tolist()}],
        "categories": [{"id": 1, "name": "benign"}],
    }
    marks = tmp_path / "marks.json"
    marks.write_text(json.dumps(document))
    if drawn == "share":
        marks = tmp_path / "labels"
        marks.mkdir()
        (marks / "classes.txt").write_text("benign\n")
        shares = " ".join(map(str, (20.5 / WIDTH, 11.5 / HEIGHT, 1 / WIDTH, 1 / HEIGHT)))
        (marks / "clip_000000.txt").write_text(f"0 {shares}\n")
    out = tmp_path / "out"
    arguments = [str(path), str(marks), str(out), "--split", "train", "--numbering", "0"]
    if not trusted:
        assert main(arguments) == 2 and "--full-frame" in capsys.readouterr().err and not out.exists()
    done = main([*arguments, "--full-frame"])
    if drawn == "region" and not trusted:
        assert done == 2 and "another video, or cut" in capsys.readouterr().err
        return
    assert done == 0 and "whole frames are used" in capsys.readouterr().err
    frame = load_index(out, "train").videos[0].frames[0]
    assert (frame.height, frame.width) == (HEIGHT, WIDTH)
    np.testing.assert_allclose(frame.boxes, [[20, 11, 21, 12]], atol=0.02)
    with Image.open(frame.path) as written:
        assert np.argwhere(np.asarray(written.convert("L")) > 200).tolist() == [[11, 20]]


def test_what_a_source_remarks_is_in_the_summary(tmp_path):
    path, entry = wide_images(tmp_path, picture(3, 4), 1)
    (tmp_path / "marks.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": entry, "width": WIDTH, "height": HEIGHT}],
                "annotations": [],
                "categories": [{"id": 1, "name": "benign"}],
            }
        )
    )
    done = convert(path, tmp_path / "marks.json", tmp_path / "out", split="train")
    assert any("not square" in remark for remark in done.remarks)


def test_no_picture_is_decoded_to_find_its_orientation(tmp_path, monkeypatch):
    """Pillow decodes a whole PNG file in search of EXIF data, unless it is asked for less."""
    path, entry = images(tmp_path, picture(3, 4), 6)
    Image.fromarray(picture(3, 4)).save(path / "upright.png")
    document = {
        "images": [
            {"id": 1, "file_name": entry, "width": 2 * HEIGHT, "height": 2 * WIDTH},
            {"id": 2, "file_name": "upright.png", "width": 2 * WIDTH, "height": 2 * HEIGHT},
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "benign"}],
    }
    (tmp_path / "marks.json").write_text(json.dumps(document))
    decoded, prepare = [], PngImageFile.load_prepare
    monkeypatch.setattr(PngImageFile, "load_prepare", lambda image: (decoded.append(image), prepare(image))[1])
    convert(path, tmp_path / "marks.json", tmp_path / "out", split="train")
    assert len(decoded) == 2


def test_pixels_that_are_not_square():
    stored = Picture(size=(720, 576), whole=(720, 576), pixel_aspect=Fraction(64, 45))
    shown = fit((1024, 576), stored, "here")
    np.testing.assert_allclose(shown((512, 288, 1024, 576)), (360, 288, 720, 576))
    assert "scaled from 1024 x 576 to 720 x 576" in shown.note
    assert fit((720, 576), stored, "here")((1, 2, 3, 4)) == (1, 2, 3, 4)
    with pytest.raises(DataError, match="drawn on a picture of 1024 x 576"):
        fit((1024, 576), Picture(size=(720, 576), whole=(720, 576)), "here")


def test_marks_beyond_the_scan_region_and_sizes_that_fit_twice():
    halves = Picture(size=(100, 60), whole=(200, 120), origin=(50, 30))
    assert fit(None, halves, "here")((60, 40, 70, 50)) == (10, 10, 20, 20)
    assert fit((100, 60), halves, "here")((60, 40, 70, 50)) == (60, 40, 70, 50)
    with pytest.raises(DataError, match="the whole frame or its scan region"):
        fit((400, 240), halves, "here")
