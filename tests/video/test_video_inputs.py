"""Folders, patterns, images and arrays as videos."""

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from stnet.errors import VideoError
from stnet.video import ArraySource, SpooledSource, find_inputs, masks, open_source


def save_frames(folder, names, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number * 10, 0, 0)).save(folder / name)
    return folder


def test_folder_of_frames_in_natural_order(tmp_path):
    folder = save_frames(tmp_path / "case 7", ["f10.png", "f2.png", "f1.png", ".hidden.png"])
    (folder / "notes.txt").write_text("not a frame")
    source = open_source(folder, fps=Fraction(10))
    frames = list(source)
    assert [frame.name for frame in frames] == ["f1.png", "f2.png", "f10.png"]
    assert [frame.time for frame in frames] == [0.0, 0.1, 0.2]
    assert (source.name, source.height, source.width, source.status) == ("case 7", 30, 40, "ok")
    assert source.scan({2}).frames[2].name == "f10.png"


def test_mixed_sizes_are_refused_with_names_and_sizes(tmp_path):
    folder = save_frames(tmp_path / "mixed", ["a.png"])
    save_frames(folder, ["b.png"], size=(41, 30))
    with pytest.raises(VideoError, match=r"b\.png: is 41 x 30 pixels, a\.png 40 x 30.*--stills"):
        open_source(folder)


def test_stills_are_inputs_of_their_own(tmp_path, encode):
    folder = save_frames(tmp_path / "mixed", ["a.png", "c.png"])
    save_frames(folder, ["b.png"], size=(41, 30))
    encode(folder / "d.mp4", frames=2)
    for names in ([folder], sorted(folder.iterdir()), [folder / "*"]):
        found = find_inputs(names, stills=True)
        assert sorted(video.name for video in found) == ["a", "b", "c", "d"]
        sizes = {video.name: (source.width, len(list(source))) for video in found for source in [video.open()]}
        assert sizes == {"a": (40, 1), "b": (41, 1), "c": (40, 1), "d": (64, 2)}


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("exif", [b"II*\0", b"II*\0\x08", b"II", b"II+\0\x08\0\0\0\x10\0\0\0"])
def test_orientations_that_break_off_cost_their_frame_alone(tmp_path, suffix, exif):
    folder = save_frames(tmp_path / "frames", [f"0.{suffix}", f"1.{suffix}"])
    Image.new("RGB", (40, 30)).save(folder / f"1.{suffix}", exif=b"Exif\0\0" + exif)
    source = open_source(folder)
    assert len(list(source)) == 1 and source.status == "corrupt" and f"1.{suffix}" in source.problems[0]


def test_unreadable_frames_are_skipped_and_reported(tmp_path):
    folder = save_frames(tmp_path / "frames", [f"{i}.png" for i in range(5)], size=(400, 300))
    (folder / "1.png").write_bytes(b"no image")
    damaged = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(damaged[: len(damaged) // 2])
    source = open_source(folder)
    frames = list(source)
    assert [frame.name for frame in frames] == ["0.png", "2.png", "4.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert source.status == "corrupt" and len(source.problems) == 2
    assert source.scan().length == 3


def test_folder_without_a_readable_frame(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(VideoError, match="none of its 1 images"):
        open_source(folder)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16", "LA", "CMYK"])
def test_image_modes(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (5, 4)).save(path)
    (frame,) = open_source(path)
    assert frame.image.shape == (4, 5, 3) and frame.image.dtype == np.uint8


def test_sixteen_bit_gray_keeps_its_upper_bits(tmp_path):
    Image.fromarray(np.full((4, 5), 0xABCD, np.uint16)).save(tmp_path / "a.png")
    (frame,) = open_source(tmp_path / "a.png")
    assert (frame.image == 0xAB).all()


def test_stored_orientation_of_images_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    source = open_source(tmp_path / "a.jpg")
    assert (source.height, source.width) == (40, 30)
    assert next(iter(source)).image.shape == (40, 30, 3)


def test_image_with_too_many_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr("stnet.video.source.MAX_PIXELS", 1199)
    with pytest.raises(VideoError, match="exceed the limit"):
        open_source(tmp_path / "a.png")


def test_patterns_and_lists_of_images_are_one_video(tmp_path):
    folder = save_frames(tmp_path / "frames", [f"{i}.png" for i in range(12)])
    for names in ([str(folder / "*.png")], [folder / f"{i}.png" for i in range(12)]):
        (video,) = find_inputs(names)
        assert video.name == "frames" and len(video.paths) == 12
        assert [path.stem for path in video.paths] == [str(i) for i in range(12)]
    (single,) = find_inputs([folder / "3.png"])
    assert single.name == "3"


def test_relative_folders_have_their_real_names(tmp_path, monkeypatch):
    folder = save_frames(tmp_path / "case" / "inner", ["0.png"]).parent
    save_frames(folder, ["0.png", "1.png"])
    monkeypatch.chdir(folder / "inner")
    for name, expected in (("..", "case"), (".", "inner"), ("../*.png", "case")):
        assert [video.name for video in find_inputs([name])] == [expected]


def test_folder_of_videos_is_all_of_them(tmp_path, encode):
    encode(tmp_path / "b.mp4", frames=2)
    encode(tmp_path / "a.mkv", frames=2)
    assert [video.name for video in find_inputs([tmp_path])] == ["a", "b"]
    with pytest.raises(VideoError, match="names 2 videos"):
        open_source(tmp_path)
    save_frames(tmp_path, ["x.png"])
    with pytest.raises(VideoError, match="holds images and video files"):
        find_inputs([tmp_path])


@pytest.mark.parametrize("name", ["-dash.mp4", "with space.mp4", "ünïcode 乳腺.mp4", "a:b.mp4", "[x].mp4", "100%.mp4"])
def test_awkward_names(tmp_path, encode, monkeypatch, name):
    encode(tmp_path / "plain.mp4", frames=3)
    os.rename(tmp_path / "plain.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(open_source(name))) == 3


def test_nothing_there(tmp_path):
    for name in ("missing.mp4", "*.mp4", ""):
        with pytest.raises(VideoError):
            find_inputs([str(tmp_path / name)])
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="neither a file nor a folder"):
        find_inputs([tmp_path / "pipe.mp4"])


@pytest.mark.parametrize("shape", [(4, 6, 8, 3), (4, 6, 8), (4, 6, 8, 1)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = ArraySource(array, fps=Fraction(5))
    frames = list(source)
    assert len(frames) == 4 and frames[3].time == pytest.approx(0.6) and source.status == "ok"
    expected = array if shape[-1] == 3 else np.repeat(array.reshape(4, 6, 8, 1), 3, axis=3)
    np.testing.assert_array_equal(np.stack([frame.image for frame in frames]), expected)
    np.testing.assert_array_equal(source.scan({2, 7}).frames[2].image, expected[2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), r"pass value_range=\(black, white\), such as \(0, 1\), or uint8"),
        (np.zeros((2, 4, 4), np.uint16), r"such as \(0, 4095\) for 12 bits"),
        (np.zeros((2, 4, 4), bool), "expected numbers"),
        (np.zeros((2, 4, 4, 4), np.uint8), "expected"),
        (np.zeros((0, 4, 4), np.uint8), "no frame"),
        (np.zeros((2, 0, 4), np.uint8), "no pixels"),
        (np.zeros(5, np.uint8), "expected"),
    ],
)
def test_unusable_arrays(array, message):
    with pytest.raises(VideoError, match=message):
        ArraySource(array)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_arrays_with_a_stated_range(kind):
    black, white = (-100, 3995) if kind == np.int16 else (0, 200) if kind == np.uint8 else (0, 4095)
    array = np.linspace(black, white, 48).astype(kind).reshape(2, 4, 6)
    expected = np.rint((array.astype(float) - black) / (white - black) * 255)
    for source in (
        ArraySource(array, value_range=(black, white)),
        SpooledSource(iter(array), value_range=(black, white)),
    ):
        frames = np.stack([frame.image for frame in source])
        np.testing.assert_array_equal(frames, np.repeat(expected[..., None], 3, axis=3))


@pytest.mark.parametrize(
    ("value", "value_range", "message"),
    [
        (1.01, (0, 1), "values from 0 to 1.01, but value_range says 0 to 1; state the range"),
        (-1, (0, 1), "values from -1 to 0"),
        (np.nan, (0, 1), "not finite"),
        (0.5, (1, 0), r"value_range \(1, 0\): expected \(black, white\)"),
        (0.5, 1, "value_range 1: expected"),
        (0.5, (0, np.inf), "value_range"),
    ],
)
def test_values_beyond_the_stated_range(value, value_range, message):
    array = np.zeros((2, 4, 4), np.float32)
    array[1, 2, 3] = value
    with pytest.raises(VideoError, match=message):
        list(ArraySource(array, value_range=value_range))
    array[1, 2, 3] = 1.001  # rounding
    assert list(ArraySource(array, value_range=(0, 1)))[1].image.max() == 255


def test_one_shot_iterables_are_spooled():
    images = [np.full((4, 5), i, np.uint8) for i in range(6)]
    source = SpooledSource(iter(images))
    for _ in range(2):
        assert [int(frame.image[0, 0, 0]) for frame in source] == list(range(6))
    assert source.scan({5}).frames[5].image.shape == (4, 5, 3)
    with pytest.raises(VideoError, match="frame 1 has shape"):
        SpooledSource(iter([images[0], np.zeros((5, 5), np.uint8)]))
    with pytest.raises(VideoError, match="no frame"):
        SpooledSource(iter([]))


@pytest.mark.parametrize(
    "mask", ["a 1_mask.png", "a 1_mask_1.png", "a 1_tumor.png", "a 1_MASK.BMP", "a 1-seg.png", "a 1_other2.png"]
)
def test_masks_beside_images_are_left_out_and_told(tmp_path, mask):
    folder = tmp_path / "f"
    save_frames(folder, ["a 1.png", "a 2.png", mask, "a 3_mask.png"])  # the last is nobody's
    names = ["a 1.png", "a 2.png", "a 3_mask.png"]
    for given in ([folder], [folder / "*"], [f"{tmp_path}/*/a*"]):
        (video,) = find_inputs(given)
        source = video.open()
        assert [path.name for path in video.paths] == names and len(list(source)) == 3
        assert f"one of its images is named like masks of others ({mask}) and left out" in " ".join(source.notes)
    stills = find_inputs([folder], stills=True)
    assert [still.name for still in stills] == ["a 1", "a 2", "a 3_mask"]
    assert [bool(still.open().notes) for still in stills] == [True, False, False]
    (alone,) = find_inputs([folder / mask])  # named by itself it is an image like others
    assert alone.name == (folder / mask).stem and alone.open().notes == ()
    (video,) = find_inputs([folder / "a 1.png", folder / mask])
    notes = " ".join(video.open().notes)
    assert len(video.paths) == 2 and f"1 of its frames are named like masks of others ({mask})" in notes


@pytest.mark.parametrize("stills", [False, True])
@pytest.mark.parametrize("pattern", ["", "/*"])
def test_names_of_masks_are_looked_at_a_few_times_each(tmp_path, monkeypatch, stills, pattern):
    looked, original = [], masks._image_of
    monkeypatch.setattr(masks, "_image_of", lambda path: looked.append(path) or original(path))
    (tmp_path / "f").mkdir()
    for number in range(40):
        (tmp_path / "f" / f"{number}.png").touch()
        (tmp_path / "f" / f"{number}_mask.png").touch()
    found = find_inputs([f"{tmp_path}/f{pattern}"], stills=stills)
    assert [len(video.paths) for video in found] == ([1] * 40 if stills else [40])
    assert all(len(video.notes) >= 1 for video in found) and len(looked) <= 3 * 80


def test_names_that_only_resemble_masks_are_frames(tmp_path):
    names = ["a.png", "a_1.png", "b_mask.png", "c_mask_1.png", "masked.png", "mask.png"]
    save_frames(tmp_path / "f", names)
    (video,) = find_inputs([tmp_path / "f"])
    assert sorted(path.name for path in video.paths) == sorted(names) and video.open().notes == ()


def test_images_that_were_named_one_by_one_are_told_to_be_one_video(tmp_path):
    save_frames(tmp_path / "f", ["1.png", "2.png"])
    for given in ([tmp_path / "f" / "1.png", tmp_path / "f" / "2.png"], [tmp_path / "f" / "*.png"]):
        (video,) = find_inputs(given)
        assert "2 images of one folder were named; they are read as the frames of one video" in video.open().notes


def test_videos_of_dvd_recorders_and_phones_are_found(tmp_path, encode):
    encode(tmp_path / "VTS_01_1.VOB", codec="mpeg2video", container="vob", frames=9)
    encode(tmp_path / "a.3g2", codec="mpeg4", frames=9)
    encode(tmp_path / "b.m2v", codec="mpeg2video", container="mpeg2video", frames=9)
    assert [len(list(video.open())) for video in find_inputs([tmp_path])] == [9, 9, 9]


def test_folders_in_folders(tmp_path, encode):
    (tmp_path / "study" / "p10" / "scan").mkdir(parents=True)
    encode(tmp_path / "study" / "a.mp4", frames=2)
    encode(tmp_path / "study" / "p10" / "scan" / "a.mp4", frames=2)
    save_frames(tmp_path / "study" / "p2", ["1.png", "2.png"])
    save_frames(tmp_path / "study" / "p2" / "masks", ["1.png", "2.png"])  # no part of the video around it
    save_frames(tmp_path / "study" / ".thumbnails", ["1.png"])
    (tmp_path / "study" / "._a.mp4").write_bytes(b"what macOS notes of a.mp4")
    save_frames(tmp_path / "study" / "p3", ["1.png"])
    encode(tmp_path / "study" / "p3" / "a.mp4", frames=2)
    (tmp_path / "study" / "empty").mkdir()
    assert len(find_inputs([str(tmp_path / "study" / "**" / "*.mp4"), tmp_path / "study" / "a.mp4"])) == 3
    (tmp_path / "study" / "p10" / "loop").symlink_to(tmp_path / "study")
    found = {video.name: video for video in find_inputs([tmp_path / "study"])}
    assert list(found) == ["a", "p2", "p3", "p10-scan-a"]
    assert len(list(found["p2"].open())) == 2
    with pytest.raises(VideoError, match="p3: holds images and video files"):  # costs no other video
        found["p3"].open()
    assert [video.name for video in find_inputs([tmp_path / "study"], without=tmp_path / "study" / "p10")][-1] == "p3"
    with pytest.raises(VideoError, match="empty: holds no image"):
        find_inputs([tmp_path / "study" / "empty"])
