"""Image files of several pictures are videos of all of them."""

import re

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from stnet.data.images import decode_image
from stnet.errors import DataError, VideoError
from stnet.video import ImageStack, open_source


def numbered() -> list[Image.Image]:
    return [Image.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)) for i in range(5)]


def save(path, pages=None, **options):
    pages = pages or numbered()
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"), [("a.tif", {}), ("a.webp", {"duration": 50, "lossless": True}), ("a.png", {"duration": 50})]
)
def test_all_pictures_are_frames(tmp_path, name, options):
    source = open_source(save(tmp_path / name, **options))
    frames = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 40, 80, 120, 160]
    assert (source.status, source.declared_frames, source.fps) == ("ok", 5, 20 if options else 25)
    assert [frame.time for frame in frames] == pytest.approx([i / float(source.fps) for i in range(5)])
    assert source.scan({4}).frames[4].image[0, 0, 0] == 160
    with pytest.raises(DataError, match="holds 5 pictures where one frame is wanted"):
        decode_image(tmp_path / name, 48, 64)


def test_a_stack_among_frames_is_refused(tmp_path):
    save(tmp_path / "a.tif")
    numbered()[0].save(tmp_path / "b.tif")
    with pytest.raises(VideoError, match=r"a\.tif: holds 5 pictures.*name it alone"):
        open_source(tmp_path)


def test_previews_are_no_frames(tmp_path):
    save(tmp_path / "cover.png", pages=[numbered()[4], *numbered()[:3]], duration=40, default_image=True)
    assert [int(f.image[0, 0, 0]) for f in open_source(tmp_path / "cover.png")] == [0, 40, 80]
    small = numbered()[4].resize((16, 12))
    kind = TiffImagePlugin.ImageFileDirectory_v2()
    kind[254] = 1
    small.encoderinfo = {"tiffinfo": kind}
    save(tmp_path / "preview.tif", pages=[*numbered()[:2], small])
    assert len(list(open_source(tmp_path / "preview.tif"))) == 2


def test_pictures_of_different_sizes_are_no_video(tmp_path):
    save(tmp_path / "a.tif", pages=[numbered()[0], numbered()[1].resize((32, 24))])
    with pytest.raises(VideoError, match="64 x 48 and of 32 x 24 pixels, so it is no video"):
        open_source(tmp_path / "a.tif")


def test_deep_stacks_have_one_brightness(tmp_path):
    pages = [Image.fromarray(np.full((48, 64), value, np.uint16)) for value in (40, 4000)]
    source = open_source(save(tmp_path / "a.tif", pages=pages))
    assert [int(frame.image[0, 0, 0]) for frame in source] == [2, 249] and "4095 is taken" in source.notes[0]


def test_stacks_of_imagej(tmp_path):
    save(tmp_path / "a.tif", tiffinfo={270: "ImageJ=1.54\nimages=5\nfps=12.5\n"})
    assert open_source(tmp_path / "a.tif").fps == 12.5
    save(tmp_path / "huge.tif", tiffinfo={270: "ImageJ=1.54\nimages=9000\n"})
    with pytest.raises(VideoError, match="5 of the 9000 pictures"):
        open_source(tmp_path / "huge.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
def test_cut_stacks_never_escape(tmp_path, name):
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(5)]
    data = save(tmp_path / name, pages=noise).read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        try:
            source = ImageStack(tmp_path / name, "a")
            assert 0 < len(list(source)) < 5 and source.status == "truncated"
        except VideoError:
            assert name != "a.tif" or share == 0.1  # not even the first page is whole


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data")
@pytest.mark.parametrize("compression", ["raw", "tiff_deflate"])
@pytest.mark.parametrize(
    ("bytes_in_directory", "found", "status", "told"),
    [
        (slice(2, 14), [0, 1, 3, 4], "corrupt", "4 of its 5 pictures can be read; missing picture 3 "),
        (slice(0, 2), [0, 1], "truncated", "2 of its 3 pictures can be read; missing from picture 3 on "),
        (None, [0, 1, 2], "truncated", "3 of its [45] pictures can be read; missing from picture 4 on "),
    ],
)
def test_a_damaged_page_costs_itself_alone(tmp_path, compression, bytes_in_directory, found, status, told):
    path = save(tmp_path / "a.tif", compression=compression)
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(2)
        directory = image._frame_pos[2]
        image.seek(3)
        behind = max(image.tag_v2[273][0], image._frame_pos[3]) + 4
    if bytes_in_directory is None:
        data = data[:behind]
    else:
        for place in range(*bytes_in_directory.indices(14)):
            data[directory + place] = 255
    path.write_bytes(data)
    source = open_source(path)
    frames = list(source)
    assert [int(frame.image[0, 0, 0]) // 40 for frame in frames] == found
    assert [round(frame.time * 25) for frame in frames] == found
    assert [frame.index for frame in frames] == list(range(len(found))) and source.scan().length == len(found)
    assert source.status == status and re.match(told, source.problems[0])


def test_a_page_that_gives_no_pixels_is_not_the_one_before(tmp_path):
    path = save(tmp_path / "a.tif", compression="tiff_deflate")
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(2)
        entry = image._frame_pos[2] + 2 + 12 * list(image.tag_v2).index(284)  # planes
    data[entry + 8] = 0
    path.write_bytes(data)
    assert 40 not in [int(frame.image[0, 0, 0]) for frame in list(open_source(path))[2:]]


def test_channels_are_no_frames(tmp_path):
    pixels = (
        '<OME><Image><Pixels ID="P:0" SizeC="{}" SizeT="2" TimeIncrement="100" TimeIncrementUnit="ms"/></Image></OME>'
    )
    imagej = "ImageJ=1.53t\nimages=4\nchannels={}\nframes=2\nfps=25.0\nfinterval=0.1\n"
    gray = [picture.convert("L") for picture in numbered()]
    for text in (pixels, imagej):
        with pytest.raises(VideoError, match="its pages are 2 channels of each frame"):
            open_source(save(tmp_path / "x.tif", gray, tiffinfo={270: text.format(2)}))
        source = open_source(save(tmp_path / "x.tif", gray, tiffinfo={270: text.format(1)}))
        assert source.fps == 10 and [frame.time for frame in source][:2] == [0, 0.1]
    assert open_source(save(tmp_path / "x.tif", tiffinfo={270: pixels.format(3)})).fps == 10
