"""Videos inside DICOM files: their frames, damage, disguises; and files that dcmtk makes."""

import io
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stnet.errors import VideoError
from stnet.video import open_source

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from stnet.video.dicom_film import FragmentFile  # noqa: E402
from tests.video.dicom_making import dataset, loop, region, save  # noqa: E402

STREAMS = {
    "h264": ("libx264", "1.2.840.10008.1.2.4.102"),
    "hevc": ("libx265", "1.2.840.10008.1.2.4.107"),
    "mpeg2video": ("mpeg2video", "1.2.840.10008.1.2.4.100"),
    "mpegts": ("libx264", "1.2.840.10008.1.2.4.103.1"),
    "mp4": ("libx264", "1.2.840.10008.1.2.4.102"),
}


def stream(draw_picture, container: str, codec: str, frames: int = 20) -> bytes:
    data = io.BytesIO()
    with av.open(data, mode="w", format=container) as output:
        video = output.add_stream(codec, rate=25, options={"x265-params": "log-level=none"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for index in range(frames):
            output.mux(video.encode(av.VideoFrame.from_ndarray(draw_picture(index, 48, 64), format="rgb24")))
        output.mux(video.encode(None))
    return data.getvalue()


def film(path: Path, data: bytes, syntax: str, *, fragment: int = 0, frames: int = 20, **elements) -> Path:
    made = dataset(np.zeros((frames, 48, 64, 3), np.uint8), "YBR_PARTIAL_420", **elements)
    made.file_meta.TransferSyntaxUID = syntax
    size = fragment or len(data) + len(data) % 2
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    made.PixelData = encapsulate([piece + b"\0" * (len(piece) % 2) for piece in pieces], has_bot=False)
    made["PixelData"].is_undefined_length = True
    return save(made, path)


@pytest.mark.parametrize("container", list(STREAMS))
@pytest.mark.parametrize("fragment", [0, 1000])
def test_films_are_decoded(tmp_path, draw_picture, container, fragment):
    codec, syntax = STREAMS[container]
    regions = Sequence([region(8, 4, 55, 43)])
    path = film(
        tmp_path / "DOE",
        stream(draw_picture, container, codec),
        syntax,
        fragment=fragment,
        FrameTime="50",
        SequenceOfUltrasoundRegions=regions,
    )
    source = open_source(path)
    assert (source.fps, source.declared_frames, source.origin) == (20, 20, (8, 4))
    frames = list(source)
    assert [frame.time for frame in frames] == pytest.approx([i / 20 for i in range(20)])
    assert (source.status, source.problems) == ("ok", ())
    for frame in frames:
        expected = draw_picture(frame.index, 48, 64)[4:44, 8:56].astype(int)
        others = draw_picture(frame.index + 1, 48, 64)[4:44, 8:56].astype(int)
        assert np.abs(frame.image - expected).mean() < np.abs(frame.image - others).mean() / 1.5


def test_a_film_that_vanishes_is_not_named(tmp_path, draw_picture):
    codec, syntax = STREAMS["mpeg2video"]
    source = open_source(film(tmp_path / "DOE", stream(draw_picture, "mpeg2video", codec, 3), syntax, frames=3))
    (tmp_path / "DOE").unlink()
    with pytest.raises(VideoError) as caught:
        list(source)
    assert "DOE" not in str(caught.value) and source.name in str(caught.value)


@pytest.mark.parametrize("container", ["h264", "mpeg2video", "mpegts"])
def test_cut_films_keep_what_there_is(tmp_path, draw_picture, cut, container):
    codec, syntax = STREAMS[container]
    path = film(tmp_path / "a", stream(draw_picture, container, codec, frames=60), syntax, frames=60, FrameTime="40")
    source = open_source(cut(path, 0.6))
    assert 10 < len(list(source)) < 58 and source.status == "truncated"


def test_frame_counts_are_compared(tmp_path, draw_picture):
    data = stream(draw_picture, "h264", "libx264")
    for claimed, status in ((15, "corrupt"), (30, "truncated")):
        source = open_source(film(tmp_path / "a", data, STREAMS["h264"][1], frames=claimed))
        assert len(list(source)) == 20 and source.status == status and str(claimed) in source.problems[0]


def test_films_of_another_size_than_stated_are_refused(tmp_path, draw_picture):
    path = film(tmp_path / "DOE", stream(draw_picture, "h264", "libx264"), STREAMS["h264"][1])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x28\x00\x11\x00US\x02\x00\x40\x00", b"\x28\x00\x11\x00US\x02\x00\x80\x00"))
    with pytest.raises(VideoError, match="has 64 x 48 pixels, its header says 128 x 48"):
        open_source(path)


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        b"",
        bytes(4000),
        b"\xff\xd8\xff\xe0" + bytes(500),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, content):
    with pytest.raises(VideoError) as caught:
        open_source(film(tmp_path / "DOE", content or b"\0\0", STREAMS["h264"][1]))
    assert "DOE" not in str(caught.value) and "passwd" not in str(caught.value)


def test_films_of_another_codec_than_stated_are_refused(tmp_path, draw_picture):
    data = stream(draw_picture, "mp4", "mpeg4")
    with pytest.raises(VideoError):
        open_source(film(tmp_path / "DOE", data, STREAMS["mp4"][1]))


def test_mutated_films_never_escape(tmp_path, draw_picture, capfd):
    rng = np.random.default_rng(3)
    whole = film(tmp_path / "whole", stream(draw_picture, "mp4", "libx264"), STREAMS["mp4"][1]).read_bytes()
    usable = 0
    for _ in range(20):
        data = bytearray(whole)
        for position in rng.integers(600, len(data), 6):
            data[position] = rng.integers(256)
        (tmp_path / "DOE").write_bytes(data)
        try:
            usable += len(list(open_source(tmp_path / "DOE"))) > 0
        except VideoError as error:
            assert "DOE" not in str(error)
    assert usable > 3 and capfd.readouterr() == ("", "")


def test_fragments_read_like_one_file(tmp_path):
    (tmp_path / "a").write_bytes(b"xxABCxDExxFGHI")
    file = FragmentFile(tmp_path / "a", [(2, 3), (6, 2), (10, 4)])
    assert io.BufferedReader(file).read() == b"ABCDEFGHI"
    file = FragmentFile(tmp_path / "a", [(2, 3), (6, 2), (10, 4)])
    assert (file.seek(-3, io.SEEK_END), file.read(9), file.seek(4), file.read(1), file.tell()) == (
        6,
        b"GHI",
        4,
        b"E",
        5,
    )
    file.close()


@pytest.mark.integration
@pytest.mark.parametrize("option", ["+e1", "+el", "+eb", "+ee"])
def test_jpeg_of_dcmtk(tmp_path, option):
    """JPEG Lossless with prediction, JPEG Lossless, Baseline and Extended, as dcmtk compresses them."""
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("needs Debian's dcmtk")
    frames = loop(3, 40, 48)
    names = {"SOPInstanceUID": "1.2.3", "SOPClassUID": uid.UltrasoundMultiFrameImageStorage}
    plain = save(dataset(frames, FrameTime="40", **names), tmp_path / "a")
    colours = [] if option in ("+e1", "+el") else ["+cr"]
    subprocess.run(["dcmcjpeg", option, *colours, str(plain), str(tmp_path / "b")], check=True, capture_output=True)
    source = open_source(tmp_path / "b")
    images = np.stack([frame.image for frame in source]).astype(int)
    assert source.status == "ok" and source.fps == Fraction(25)
    assert np.abs(images - frames).mean() <= (0 if option in ("+e1", "+el") else 12)
