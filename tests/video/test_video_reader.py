"""Video files: formats, colours, clocks, damage and disguise."""

import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from stnet.errors import VideoError
from stnet.video import VideoFile, open_source
from stnet.video.cropping import stated_crop

FASTSTART = {"movflags": "faststart"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")],
)
def test_decodes_every_frame_in_order(tmp_path, encode, draw_picture, suffix, codec):
    source = VideoFile(encode(tmp_path / f"clip.{suffix}", codec=codec, frames=30))
    assert source.status == "unread"
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(30)], abs=2e-3)
    assert (source.height, source.width, source.fps) == (48, 64, 25)
    assert (source.status, source.problems) == ("ok", ())
    for frame in frames[::7]:
        expected = draw_picture(frame.index, 48, 64).astype(int)
        others = draw_picture(frame.index + 1, 48, 64).astype(int)
        error = np.abs(frame.image - expected).mean()
        assert error < 12 and error < np.abs(frame.image - others).mean() / 2


def test_can_be_read_again_and_scanned(tmp_path, encode):
    source = VideoFile(encode(tmp_path / "clip.mp4"))
    first, second = list(source), list(source)
    found = source.scan({0, 17, 99})
    assert found.length == len(first) == len(second) == source.declared_frames == 40
    assert sorted(found.frames) == [0, 17]
    for index, frame in found.frames.items():
        np.testing.assert_array_equal(frame.image, first[index].image)
        assert frame.time == first[index].time
    np.testing.assert_array_equal(first[39].image, second[39].image)


OPEN_OFTEN = """
import sys, av
from stnet.video import VideoFile

av.logging.set_level(av.logging.ERROR)  # as torchvision 0.25 does
for _ in range(100):
    VideoFile(sys.argv[1])
"""


def test_files_that_are_closed_early_do_not_hang_on_messages_of_the_decoder(tmp_path, encode):
    path = encode(tmp_path / "clip.mp4", frames=48, height=256, width=320)
    command = [sys.executable, "-c", OPEN_OFTEN, str(path)]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(command, check=True, timeout=120, cwd=root)  # what hangs holds Python's lock: nothing else ends it


def test_keeps_exact_frame_rates(tmp_path, encode):
    assert VideoFile(encode(tmp_path / "ntsc.mp4", fps=Fraction(30000, 1001))).fps == Fraction(30000, 1001)


def test_variable_frame_rate_keeps_the_time_stamps(tmp_path, encode):
    ticks = [0, 40, 50, 400, 410, 1000, 1033, 2000]
    source = VideoFile(encode(tmp_path / "vfr.mkv", frames=8, ticks=ticks))
    assert [frame.time for frame in source] == pytest.approx([tick / 1000 for tick in ticks], abs=1e-3)
    assert source.status == "ok"


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "height", "width"),
    [
        ("libx264", "yuv444p", 48, 64),
        ("libx264", "gray", 48, 64),
        ("libx264", "yuv420p10le", 48, 64),
        ("libx264", "yuv444p", 47, 65),
        ("ffv1", "gray16le", 33, 31),
        ("ffv1", "bgr0", 1, 1),
        ("mjpeg", "yuvj422p", 48, 66),
    ],
)
def test_colour_formats_and_odd_sizes(tmp_path, encode, draw_picture, codec, pix_fmt, height, width):
    path = encode(tmp_path / "clip.mkv", codec=codec, pix_fmt=pix_fmt, height=height, width=width, frames=5)
    source = VideoFile(path)
    frames = list(source)
    assert len(frames) == 5 and source.status == "ok"
    for frame in frames:
        assert frame.image.shape == (height, width, 3) and frame.image.dtype == np.uint8
        assert np.abs(frame.image - draw_picture(frame.index, height, width).astype(int)).mean() < 12


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_stored_rotation_is_applied(tmp_path, encode, matrix, turns):
    path = encode(tmp_path / "clip.mp4", frames=3)
    plain = [frame.image for frame in VideoFile(path)]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    source = VideoFile(path)
    turned = list(source)
    assert (source.height, source.width) == ((64, 48) if turns % 2 else (48, 64))
    for frame, image in zip(turned, plain, strict=True):
        np.testing.assert_array_equal(frame.image, np.rot90(image, turns))


def pictured(path: Path, draw_picture, *, first: str) -> Path:
    """A film of 12 frames with a picture as another video stream, before or behind it."""
    with av.open(str(path), mode="w") as output:
        streams = {}
        for kind in ("picture", "film") if first == "picture" else ("film", "picture"):
            streams[kind] = output.add_stream("mjpeg" if kind == "picture" else "libx264", rate=25)
        picture, film = streams["picture"], streams["film"]
        picture.height, picture.width, picture.pix_fmt = 96, 128, "yuvj420p"
        film.height, film.width, film.pix_fmt = 48, 64, "yuv420p"
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(draw_picture(index, 48, 64), format="rgb24")
            output.mux(film.encode(frame))
            if index == 0:
                cover = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 99, np.uint8), format="rgb24")
                output.mux(picture.encode(cover))
                output.mux(picture.encode(None))
        output.mux(film.encode(None))
    return path


@pytest.mark.parametrize("first", ["picture", "film"])
def test_cover_pictures_are_not_the_video(tmp_path, draw_picture, first):
    source = VideoFile(pictured(tmp_path / "a.mkv", draw_picture, first=first))
    assert (len(list(source)), source.width, source.status) == (12, 64, "ok")
    assert source.notes == ("holds 2 videos; the one of 64 x 48 pixels is read",)


def test_sound_with_a_marked_cover_holds_no_video(tmp_path):
    picture = Image.new("RGB", (32, 24), (200, 0, 0))
    data = io.BytesIO()
    picture.save(data, "JPEG")
    path = tmp_path / "sound.m4a"
    with av.open(str(path), mode="w", format="mp4") as output:
        stream, cover = output.add_stream("aac", rate=16000), output.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 24, 32, "yuvj420p", Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.mux(cover.encode(av.VideoFrame.from_image(picture)))
        output.mux(cover.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        VideoFile(path)


def test_times_of_avi_with_b_frames_rise(tmp_path, encode):
    options = {"codec": "libx264", "frames": 30, "gop": 12, "codec_options": {"bf": "3", "b-adapt": "0"}}
    times = [frame.time for frame in VideoFile(encode(tmp_path / "b.avi", **options))]
    assert times == pytest.approx([i / 25 for i in range(30)], abs=1e-3)


def test_packets_of_avi_that_are_not_coded_shift_no_times(tmp_path, encode):
    with av.open(encode(tmp_path / "all.avi", codec="mpeg4", frames=10, gop=300)) as container:
        (stream,) = container.streams
        packets = [packet for packet in container.demux(stream) if packet.size]
        given = [0, 1, 2, 5, 6, 7, 8, 12, 13, 14]
        with av.open(tmp_path / "dropped.avi", "w") as target:
            video = target.add_stream_from_template(stream)
            video.time_base = Fraction(1, 25)
            for tick in range(15):
                # A VOP that is not coded, as XviD writes it for a frame that it drops.
                dropped = av.Packet(b"\0\0\1\xb6" + int(f"0101{tick:05b}1001111", 2).to_bytes(2, "big"))
                packet = packets.pop(0) if tick in given else dropped
                packet.stream, packet.pts, packet.dts, packet.time_base = video, tick, tick, Fraction(1, 25)
                target.mux(packet)
    source = VideoFile(tmp_path / "dropped.avi")
    assert [round(25 * frame.time, 3) for frame in source] == given
    assert (source.status, source.problems) == ("ok", ())


@pytest.mark.parametrize("late", [0, 40, 3000, 10_000_000])
@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_a_clock_that_starts_late_is_no_damage(tmp_path, encode, cut, suffix, late):
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = encode(tmp_path / f"a.{suffix}", codec=codec, frames=60, ticks=[late + 40 * i for i in range(60)])
    source = VideoFile(path)
    assert source.declared_frames in (60, None)
    assert [frame.time for frame in source] == pytest.approx([i / 25 for i in range(60)], abs=2e-3)
    assert (source.status, source.problems) == ("ok", ())
    shorter = VideoFile(cut(path, 0.6))
    assert len(list(shorter)) < 55 and shorter.status == "truncated"


def test_clock_that_jumps_back_goes_on_and_is_said(tmp_path, encode):
    parts = [encode(tmp_path / f"{n}.ts", codec="mpeg2video", frames=10) for n in range(2)]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    source = VideoFile(tmp_path / "both.ts")
    times = [frame.time for frame in source]
    assert times == sorted(times) and len(times) >= 19
    assert source.status == "corrupt" and "jumps back" in source.problems[-1]


def test_a_clock_that_leaps_beyond_belief_goes_on_and_is_said(tmp_path, encode):
    ticks = [40 * i + (i >= 5) * 2**52 for i in range(10)]
    source = VideoFile(encode(tmp_path / "leap.mkv", frames=10, ticks=ticks))
    times = [frame.time for frame in source]
    assert times == sorted(times) and len(times) == 10 and times[-1] < 1
    assert source.status != "ok" and "leaps ahead" in source.problems[-1]


@pytest.mark.parametrize("stated", [b"00:00:%12s" % word for word in (b"nan", b"inf", b"-7")] + [b"-9:00:00.000"])
def test_durations_that_are_none_declare_nothing(tmp_path, encode, stated):
    path = encode(tmp_path / "clip.mkv", frames=10)
    data = path.read_bytes()
    tag = data.index(b"00:00:00.", data.index(b"DURATION"))
    path.write_bytes(data[:tag] + stated[:18].ljust(18) + data[tag + 18 :])
    source = VideoFile(path)
    assert len(list(source)) == 10 and source.declared_frames in (10, None) and source.status == "ok"


def test_mp4_without_its_index_cannot_be_opened(tmp_path, encode, cut):
    with pytest.raises(VideoError, match=r"clip\.mp4.*cannot be opened"):
        VideoFile(cut(encode(tmp_path / "clip.mp4"), 0.5))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("faststart.mp4", "libx264", FASTSTART),
        ("fragmented.mp4", "libx264", FRAGMENTED),
        ("clip.mkv", "libx264", {}),
        ("clip.avi", "mpeg4", {}),
    ],
)
def test_truncated_files_keep_what_was_decoded(tmp_path, encode, cut, name, codec, options):
    path = encode(tmp_path / name, codec=codec, options=options, frames=120, gop=10)
    whole = [frame.image for frame in VideoFile(path)]
    source = VideoFile(cut(path, 0.6))
    frames = list(source)
    assert 0 < len(frames) < 110
    np.testing.assert_array_equal(frames[0].image, whole[0])
    if name == "fragmented.mp4":  # declares nothing, but breaks off in the middle of a fragment
        assert source.status in ("truncated", "corrupt")
    else:
        assert source.status == "truncated"
        assert f"{len(frames)} of 120 declared frames" in source.problems[0]
    assert source.scan().length == len(frames)


def test_one_missing_frame_is_tolerated(tmp_path, encode):
    path = encode(tmp_path / "clip.mp4", options=FASTSTART, frames=30)
    source = VideoFile(path)
    source._stated_frames, source._duration = 31, 31 / 25
    list(source)
    assert source.status == "ok"
    source._stated_frames, source._duration = 33, 33 / 25
    list(source)
    assert source.status == "truncated"


def test_damage_inside_is_reported_as_corrupt(tmp_path, encode):
    path = encode(tmp_path / "clip.avi", codec="mpeg4", frames=60)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    first, last = data.index(b"movi"), data.rindex(b"idx1")
    for position in rng.integers(first + (last - first) // 4, last, 200):
        data[position] ^= 0xFF
    path.write_bytes(data)
    source = VideoFile(path)
    frames = list(source)
    assert frames
    assert source.status in ("corrupt", "truncated") and source.problems


def test_size_change_ends_the_video(tmp_path, encode):
    small = encode(tmp_path / "a.mjpeg", codec="mjpeg", pix_fmt="yuvj420p", frames=4).read_bytes()
    large = encode(tmp_path / "b.mjpeg", codec="mjpeg", pix_fmt="yuvj420p", height=64, width=80, frames=4).read_bytes()
    path = tmp_path / "both.mjpeg"
    path.write_bytes(small + large)
    source = VideoFile(path)
    assert [frame.image.shape for frame in source] == [(48, 64, 3)] * 4
    assert source.status == "corrupt" and "64 x 48 to 80 x 64" in source.problems[0]


def test_stream_without_frames_is_refused(tmp_path):
    path = tmp_path / "empty.mkv"
    with av.open(str(path), mode="w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        output.start_encoding()
    with pytest.raises(VideoError, match=r"empty\.mkv"):
        VideoFile(path)


def test_stream_of_undecodable_frames_is_refused(tmp_path, encode):
    path = encode(tmp_path / "clip.avi", codec="mpeg4", frames=3)
    data = bytearray(path.read_bytes())
    first, last = data.index(b"movi"), data.rindex(b"idx1")
    for chunk in (position for position in range(first, last) if data[position : position + 4] == b"00dc"):
        size = int.from_bytes(data[chunk + 4 : chunk + 8], "little")
        data[chunk + 8 : chunk + 8 + size] = bytes(size)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="no frame can be decoded"):
        VideoFile(path)


def test_audio_only_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), mode="w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        VideoFile(path)


@pytest.mark.parametrize("content", [b"", b"\0", b"not a video at all" * 50, b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_video_are_refused(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        VideoFile(path)


def test_disguised_playlists_are_refused(tmp_path, encode):
    secret = encode(tmp_path / "secret.mp4", frames=4)
    lists = {
        "concat.mp4": f"ffconcat version 1.0\nfile {secret.name}\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.name}\n#EXT-X-ENDLIST\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.name}\n#EXT-X-ENDLIST\n",
        "pipe.mp4": "ffconcat version 1.0\nfile 'http://127.0.0.1:9/x.mp4'\n",
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(VideoError, match="cannot be opened"):
            open_source(path)


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/clip.mp4", "rtsp://127.0.0.1/x", "file:///etc/passwd"])
def test_addresses_are_refused(name):
    with pytest.raises(VideoError, match="only local files"):
        open_source(name)


def test_too_many_pixels_are_refused(tmp_path, encode, monkeypatch):
    path = encode(tmp_path / "clip.mp4", frames=2)
    monkeypatch.setattr("stnet.video.source.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="64 x 48 pixels exceed the limit of 3071"):
        VideoFile(path)


def test_leaving_early_closes_the_file(tmp_path, encode):
    source = VideoFile(encode(tmp_path / "clip.mp4"))
    frames = iter(source)
    next(frames)
    frames.close()
    assert source.status == "unread"
    assert len(list(source)) == 40


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    mutated = bytearray(data)
    for position in rng.integers(0, len(data), rng.integers(1, 40)):
        mutated[position] = rng.integers(256)
    if rng.random() < 0.3:
        del mutated[rng.integers(1, len(data)) :]
    return bytes(mutated)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_byte_flips_never_escape(tmp_path, encode, count):
    originals = [
        encode(tmp_path / "a.mp4", options=FASTSTART, frames=20).read_bytes(),
        encode(tmp_path / "b.mkv", frames=20).read_bytes(),
        encode(tmp_path / "c.avi", codec="mpeg4", frames=20).read_bytes(),
    ]
    rng = np.random.default_rng(count)
    path = tmp_path / "mutated.mp4"
    for number in range(count):
        path.write_bytes(_mutated(originals[number % len(originals)], rng))
        try:
            source = VideoFile(path)
        except VideoError:
            continue
        length = sum(1 for _ in source)
        assert source.status in ("ok", "truncated", "corrupt")
        assert length <= 200


def test_real_clips(shared):
    counts = {}
    for path in sorted((shared / "data" / "video").glob("*.mp4")):
        source = VideoFile(path)
        counts[path.name] = sum(1 for _ in source)
        assert source.status == "ok" and counts[path.name] == source.declared_frames
    assert sorted(counts.values()) == [104, 137, 151, 187]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + b"x" * 60, "an archive .zip., not a video; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of git-lfs, .*git lfs pull"),
        (b"<!DOCTYPE html><html>", "an HTML page, not a video; the download failed"),
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 60, "an image .PNG., not a video"),
    ],
)
def test_files_that_are_no_videos_are_named_for_what_they_are(tmp_path, content, what):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=rf"a\.mp4: is {what}"):
        VideoFile(tmp_path / "a.mp4")


def nested(data: bytes, head: int, path: tuple[bytes, ...], more: bytes) -> bytes:
    """An MP4 file with `more` at the end of the box at `path`, of which each is the only one of its name."""
    start = data.index(path[0], head) - 4
    size = int.from_bytes(data[start : start + 4], "big")
    inner = data[start : start + size]
    inner = nested(inner, 8, path[1:], more) if path[1:] else inner + more
    return data[:start] + len(inner).to_bytes(4, "big") + inner[4:] + data[start + size :]


def matroska(data: bytes, more: bytes) -> bytes:
    """A Matroska file with `more` in the description of its video."""
    parents, made, position = (b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"), b"", 0
    while position < len(data):
        length = 9 - data[position].bit_length()
        name, position = data[position : position + length], position + length
        length = 9 - data[position].bit_length()
        size = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
        body, position = data[position + length : position + length + size], position + length + size
        if name in parents:
            body = matroska(body, more) + (more if name == parents[-1] else b"")
        made += name + (len(body) | 1 << 56).to_bytes(8, "big") + body
    return made


@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_borders_that_a_container_hides_are_told(tmp_path, encode, ending):
    path = encode(tmp_path / f"a{ending}", frames=3)
    assert open_source(path).notes == ()
    if ending == ".mkv":
        crops = b"\x54\xbb\x81\x04\x54\xaa\x81\x06\x54\xcc\x81\x10\x54\xdd\x81\x08"
        path.write_bytes(matroska(path.read_bytes(), crops))
    else:  # 40 x 38 pixels, their centre moved by 4, -1
        clap = struct.pack(">I4s2I2I2i2i", 40, b"clap", 40, 1, 38, 1, 8, 2, -1, 1)
        path.write_bytes(
            nested(path.read_bytes(), 0, (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"), clap)
        )
    source = open_source(path)
    assert (source.width, source.height, len(list(source))) == (64, 48, 3)
    assert "states that only 40 x 38 pixels of its frames, from 16, 4 on, are to be shown" in source.notes[-1]


@pytest.mark.parametrize("cut", [5, 40, 200, 400])
def test_broken_containers_state_no_borders(tmp_path, encode, cut):
    for ending in (".mkv", ".mp4"):
        path = encode(tmp_path / f"a{ending}", frames=2)
        path.write_bytes(path.read_bytes()[:cut] + bytes(range(256)))
        assert stated_crop(path, 0, 64, 48) is None
