"""A mark drawn on what a viewer shows lies on the same pixels in what training reads, whatever the source is."""

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stnet.data.convert import convert
from stnet.data.frames import FrameReader
from stnet.data.index import load_index
from stnet.video import VideoWriter, open_source

FRAMES = 4
SQUARE = (20, 12, 36, 30)
"""x0, y0, x1, y1 of the bright square in the stored pixels, 96 x 64, that everything is told apart by."""


def stored(width: int = 96, height: int = 64) -> np.ndarray:
    image = np.full((height, width, 3), 20, np.uint8)
    x0, y0, x1, y1 = SQUARE
    image[y0:y1, x0:x1] = 230
    return image


def turned_images(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "v").mkdir()
    for number in range(FRAMES):
        Image.fromarray(stored()).save(folder / "v" / f"{number:06d}.jpg", exif=exif, quality=98)
    return folder / "v"


def deep_stack(folder: Path) -> Path:
    pages = [Image.fromarray(stored()[..., 0].astype(np.uint16) * 16) for _ in range(FRAMES)]
    pages[0].save(folder / "v.tif", save_all=True, append_images=pages[1:])
    return folder / "v.tif"


def mirrored_video(folder: Path) -> Path:
    with VideoWriter(folder / "v.mp4", 25, 64, 96) as writer:
        for _ in range(FRAMES):
            writer.write(stored())
    data = bytearray((folder / "v.mp4").read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", -1 << 16, 0, 0, 0, 1 << 16, 0, 96 << 16, 0, 1 << 30)
    (folder / "v.mp4").write_bytes(data)
    return folder / "v.mp4"


def cut_dicom(folder: Path) -> Path:
    pytest.importorskip("pydicom")
    from pydicom.sequence import Sequence

    from tests.video.dicom_making import dataset, region, save

    frames = np.repeat(stored()[None], FRAMES, axis=0)
    return save(dataset(frames, SequenceOfUltrasoundRegions=Sequence([region(8, 6, 87, 57)])), folder / "v.dcm")


SOURCES = {
    turned_images: (64 - 30, 20, 64 - 12, 36),
    deep_stack: SQUARE,
    mirrored_video: (96 - 36, 12, 96 - 20, 30),
    cut_dicom: SQUARE,
}
"""Sources, and where the square is in the frame as viewers show it."""


@pytest.mark.parametrize("make", SOURCES)
def test_marks_stay_on_their_pixels(tmp_path, make):
    path, box = make(tmp_path), SOURCES[make]
    x0, y0, x1, y1 = box
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(path)
        for frame in source:  # what inference sees, with boxes in pixels of the frame
            left, top = frame.origin
            assert frame.image[y0 - top : y1 - top, x0 - left : x1 - left].mean() > 200
            assert (frame.image > 120).mean() * frame.image.size == pytest.approx(3 * (x1 - x0) * (y1 - y0), rel=0.1)
    height, width = source.full_height or source.height, source.full_width or source.width
    images = [{"id": i, "file_name": f"{i:06d}.png", "height": height, "width": width} for i in range(FRAMES)]
    if path.is_dir():
        images = [image | {"file_name": name.name} for image, name in zip(images, sorted(path.iterdir()), strict=True)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        for i in range(FRAMES)
    ]
    marks = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "benign"}]}
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    convert(path, tmp_path / "marks.json", tmp_path / "out", split="train")
    (video,) = load_index(tmp_path / "out", "train").videos
    for frame in video.frames:  # what training sees
        pixels = FrameReader(0).read(frame)
        a, b, c, d = (round(float(value)) for value in frame.boxes[0])
        assert pixels[b:d, a:c].mean() > 200
        outside = pixels.astype(float)
        outside[b:d, a:c] = 0
        assert np.percentile(outside, 97) < 60
