"""Images of more than 8 bits: one brightness for all frames, in training as in inference, said aloud."""

import av
import numpy as np
import pytest
from PIL import Image

from stnet.data.frames import FrameReader
from stnet.data.index import Frame
from stnet.errors import VideoError
from stnet.video import find_scale, open_source

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
DARK = RAMP // 16


def trained(path) -> np.ndarray:
    """What the reader of training gives of a frame whose video is its folder."""
    frame = Frame(
        path=path,
        height=48,
        width=64,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        annotated=True,
        image_id=1,
        frame_id=0,
        scale=find_scale(sorted(path.parent.iterdir())),
    )
    return FrameReader(0).read(frame)


@pytest.mark.parametrize(
    ("suffix", "convert"),
    [
        ("png", lambda g: g.astype(np.uint16) * 257),
        ("png", lambda g: g.astype(np.uint16) * 16),
        ("tif", lambda g: g.astype(np.uint16)),
        ("tif", lambda g: g.astype(np.int32) * 4),
        ("tif", lambda g: g.astype(np.int32)),
        ("tif", lambda g: g.astype(np.float32) / 255),
        ("tif", lambda g: g.astype(np.float32)),
        ("tif", lambda g: g.astype(np.float32) * 257),
        ("pgm", lambda g: g.astype(np.uint16) * 257),
    ],
)
def test_deep_gray_keeps_its_brightness_and_its_darkness(tmp_path, suffix, convert):
    frames = [DARK, RAMP, RAMP[:, ::-1]]
    for number, gray in enumerate(frames):
        Image.fromarray(convert(np.ascontiguousarray(gray))).save(tmp_path / f"{number}.{suffix}")
    source = open_source(tmp_path)
    for number, (frame, gray) in enumerate(zip(source, frames, strict=True)):
        assert np.abs(frame.image[..., 1].astype(int) - gray).max() <= 4
        np.testing.assert_array_equal(trained(tmp_path / f"{number}.{suffix}"), frame.image)
    assert source.status == "ok"
    assert suffix == "pgm" or "taken for white" in source.notes[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.float32) - 9, "go from -9 to"),
        (RAMP.astype(np.float32) * np.nan, "no numbers"),
        (RAMP.astype(np.int32) - 9, "go from -9 to"),
        (RAMP.astype(np.float32) * 1e30, "go up to"),
    ],
)
def test_values_that_are_no_brightness_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match=rf"a\.tif: its pixels.*{message}.*8 bits"):
        open_source(tmp_path / "a.tif")


def test_deep_tiff_where_zero_is_white(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    (frame,) = open_source(tmp_path / "a.tif")
    assert np.abs(frame.image[..., 0].astype(int) - (255 - RAMP)).max() <= 1


def test_stated_largest_values_are_used_and_compared(tmp_path):
    Image.fromarray(DARK.astype(np.uint16) * 16).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    (frame,) = open_source(tmp_path / "a.tif")
    assert np.abs(frame.image[..., 0].astype(int) - DARK).max() <= 1
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "b.tif", tiffinfo={281: 4095})
    with pytest.raises(VideoError, match="states at most 4095"):
        open_source(tmp_path / "b.tif")


def png_of_deep_colour(path, values: np.ndarray) -> None:
    """A 16-bit RGB PNG, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">LLBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_deep_colour_that_uses_few_of_its_bits_is_refused(tmp_path):
    colour = np.repeat(RAMP[..., None], 3, axis=2).astype(np.uint16)
    png_of_deep_colour(tmp_path / "a.png", colour * 257)
    (frame,) = open_source(tmp_path / "a.png")
    np.testing.assert_array_equal(frame.image, colour)
    np.testing.assert_array_equal(trained(tmp_path / "a.png"), colour)
    for name, factor in (("b.png", 1), ("c.png", 16)):
        png_of_deep_colour(tmp_path / name, colour * factor)
        with pytest.raises(VideoError, match="fewer bits: convert it to 8 bits"):
            open_source(tmp_path / name)


def test_files_of_eight_bits_have_no_scale(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert find_scale([tmp_path / "a.png", tmp_path / "b.png"]) is None


@pytest.mark.parametrize(("bits", "status"), [(16, "ok"), (12, "corrupt"), (8, "corrupt")])
def test_videos_of_sixteen_bits_that_hold_fewer_are_not_called_whole(tmp_path, bits, status):
    with av.open(str(tmp_path / "a.mkv"), mode="w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gray16le"
        for _ in range(3):
            values = (RAMP.astype(np.uint16) * 257) >> (16 - bits)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="gray16le")))
        output.mux(stream.encode(None))
    source = open_source(tmp_path / "a.mkv")
    assert len(list(source)) == 3 and source.status == status
    assert bits == 16 or "hold fewer bits" in source.problems[0]


def test_floats_in_ppm_files_state_no_largest_value(tmp_path):
    shares = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    Image.fromarray(shares).save(tmp_path / "x.pfm.ppm", format="PPM")
    assert trained(tmp_path / "x.pfm.ppm").max() == 255


def test_deep_ppm_that_uses_few_of_its_bits_is_refused(tmp_path):
    values = np.full((48, 64, 3), 1000, dtype=">u2")
    (tmp_path / "x.ppm").write_bytes(b"P6 64 48 65535\n" + values.tobytes())
    with pytest.raises(VideoError, match="colour of 16 bits"):
        open_source(tmp_path / "x.ppm")
    (tmp_path / "x.ppm").write_bytes(b"P6 64 48 1023\n" + values.tobytes())
    assert trained(tmp_path / "x.ppm").max() == 249


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif", "gray.png", "x.mov"])
def test_what_is_transparent_is_black(tmp_path, name):
    pixels = np.full((48, 64, 4), 200, np.uint8)
    pixels[..., 3] = 255
    pixels[:8, :, 3] = 0
    if name == "x.mov":
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("png", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
            container.mux(stream.encode())
    else:
        image = Image.fromarray(pixels).convert("LA" if name == "gray.png" else "RGBA")
        image.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "x.webp" else {}))
        shown = trained(tmp_path / name)
        assert not shown[:8].any() and (shown[8:] == 200).all()
    image = next(iter(open_source(tmp_path / name))).image
    assert not image[:8].any() and (image[8:] == 200).all()


def test_a_fourth_channel_of_zeros_hides_nothing(tmp_path):
    pixels = np.full((48, 64, 4), 200, np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (trained(tmp_path / "x.png") == 200).all()


def test_pictures_that_stand_twice_in_a_folder_are_said(tmp_path):
    for name in ("1.png", "1.jpg", "2.png"):
        Image.new("L", (16, 16)).save(tmp_path / name)
    assert open_source(tmp_path).notes == ("1 of its images are named as others but for the ending (1)",)
