"""A mark on a visible pixel stays on it, whatever orientation, mirror, cut or aspect a source stores."""

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from stnet.data.images import decode_image, image_size
from stnet.errors import DataError
from stnet.video import VideoFile, VideoWriter, open_source
from stnet.video.geometry import UPRIGHT, Orientation, believable_aspect

SQUARES = (4, 3, 20, 30)
"""Left and top of two bright squares of 8 pixels, of different brightness, in a stored picture of 64 x 48."""


def marked() -> np.ndarray:
    image = np.full((48, 64), 20, np.uint8)
    image[3:11, 4:12], image[30:38, 20:28] = 250, 150
    return image


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_training_and_inference_lay_images_upright_alike(tmp_path, code, suffix):
    path = tmp_path / "v" / f"0.{suffix}"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = code
    options = {"jpg": {"quality": 98}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(marked()).convert("RGB").save(path, exif=exif, **options)
    with Image.open(path) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("L")).astype(int)
    source = open_source(path.parent)
    (frame,) = source
    assert image_size(path) == (source.height, source.width) == expected.shape == ((48, 64) if code < 5 else (64, 48))
    assert np.abs(frame.image[..., 0] - expected).max() <= 3
    assert np.abs(decode_image(path, *expected.shape)[..., 0] - expected).max() <= 3


def test_annotations_of_the_stored_size_are_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (64, 48)).save(tmp_path / "0.jpg", exif=exif)
    with pytest.raises(DataError, match=r"is 48x64 but its annotation says 64x48.*upright"):
        decode_image(tmp_path / "0.jpg", 48, 64)


@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=2)))
@pytest.mark.parametrize("transposed", [False, True])
def test_display_matrices_are_applied(tmp_path, encode, signs, transposed):
    matrix = (0, signs[0], signs[1], 0) if transposed else (signs[0], 0, 0, signs[1])
    path = encode(tmp_path / "clip.mp4", frames=2, options={"movflags": "faststart"})
    stored = next(iter(VideoFile(path))).image[..., 0]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    source = VideoFile(path)
    image = next(iter(source)).image[..., 0]
    # x' = a x + c y, y' = b x + d y, moved to where all of the picture is at 0 or above.
    y, x = np.mgrid[:48, :64]
    across, down = matrix[0] * x + matrix[2] * y, matrix[1] * x + matrix[3] * y
    expected = np.empty_like(image)
    expected[down - down.min(), across - across.min()] = stored
    np.testing.assert_array_equal(image, expected)
    assert (source.height, source.width) == image.shape and source.notes == ()


def test_odd_angles_are_said(tmp_path, encode):
    path = encode(tmp_path / "clip.mp4", frames=2)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", 46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert "other than quarter turns" in VideoFile(path).notes[0]


def test_pixel_aspect_survives_reading_and_writing(tmp_path, draw_picture):
    for name, aspect in (("wide.mp4", Fraction(2)), ("pal.mp4", Fraction(16, 15)), ("square.mp4", Fraction(1))):
        with VideoWriter(tmp_path / name, Fraction(25), 48, 64, pixel_aspect=aspect) as writer:
            writer.write(draw_picture(0, 48, 64))
        source = VideoFile(tmp_path / name)
        assert source.pixel_aspect == aspect and bool(source.notes) == (aspect != 1)
        with av.open(str(tmp_path / name)) as container:
            assert (container.streams.video[0].sample_aspect_ratio or 1) == aspect


def test_pixel_aspect_turns_with_the_frame(tmp_path, encode, draw_picture):
    path = tmp_path / "turned.mp4"
    with VideoWriter(path, Fraction(25), 48, 64, pixel_aspect=Fraction(2)) as writer:
        writer.write(draw_picture(0, 48, 64))
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert VideoFile(path).pixel_aspect == Fraction(1, 2)


@pytest.mark.parametrize(
    ("suffix", "dpi", "aspect"), [("png", (100, 200), 2), ("tif", (300, 150), Fraction(1, 2)), ("jpg", (72, 72), 1)]
)
def test_densities_of_images_tell_the_pixel_aspect(tmp_path, suffix, dpi, aspect):
    Image.fromarray(marked()).save(tmp_path / f"a.{suffix}", dpi=dpi)
    source = open_source(tmp_path / f"a.{suffix}")
    assert float(source.pixel_aspect) == pytest.approx(float(aspect), rel=0.01)
    assert bool(source.notes) == (aspect != 1)


def test_orientations_are_the_eight_of_the_standard():
    image = np.arange(6).reshape(2, 3)
    seen = {Orientation.from_exif(code).apply(image).tobytes() for code in range(1, 9)}
    assert len(seen) == 8
    assert all(Orientation.from_exif(code) == UPRIGHT for code in (0, 9, -1, "6", None, 1))


@pytest.mark.parametrize("sides", [(0, 1), (1, 0), (float("nan"), 1), (float("inf"), 1), (1000, 1), (-1, 1)])
def test_nonsense_aspects_are_square(sides):
    assert believable_aspect(*sides) == 1
