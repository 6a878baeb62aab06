"""DICOM files that are damaged, cut or lie about themselves, and fragments that leave frames to be found."""

import io
import itertools
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from stnet.errors import VideoError
from stnet.video import open_source
from stnet.video.dicom import DicomFile
from stnet.video.dicom_header import MAX_FRAMES

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from tests.video.dicom_making import dataset, jpeg_dataset, jpegs, loop, read, region, save  # noqa: E402


@pytest.mark.parametrize(("has_bot", "fragments"), [*itertools.product([True, False], [1, 3])])
def test_fragments_and_offset_tables(tmp_path, has_bot, fragments):
    frames = loop(5, 40, 48)
    data = jpeg_dataset(tmp_path, frames, has_bot=has_bot, fragments_per_frame=fragments)
    images, source = read(data, tmp_path / "a")
    assert len(images) == 5 and source.status == "ok"
    expected = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int) for one in jpegs(frames, tmp_path)]
    assert np.abs(images - np.stack(expected)).max() <= 3


@pytest.mark.parametrize("claimed", [5, 1, 4, 900])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", [[], [0], "shifted", "every fragment", "last missing"])
def test_offset_tables_that_fit_the_fragments_but_not_the_frames(tmp_path, table, fragments, claimed):
    frames = loop(5, 40, 48)
    data = jpeg_dataset(tmp_path, frames, has_bot=False, fragments_per_frame=fragments)
    begins, position = [], 0
    for fragment in pydicom.encaps.generate_fragments(data.PixelData[8:]):
        begins.append(position)
        position += 8 + len(fragment)
    offsets = {"shifted": [0, *begins[2::fragments]], "every fragment": begins, "last missing": begins[:-1:fragments]}
    entries = np.array(offsets[table] if isinstance(table, str) else table, "<u4").tobytes()
    data.PixelData = struct.pack("<HHL", 0xFFFE, 0xE000, len(entries)) + entries + data.PixelData[8:]
    data.NumberOfFrames = claimed
    images, _ = read(data, tmp_path / "a")
    expected = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int) for one in jpegs(frames, tmp_path)]
    assert len(images) == 5 and np.abs(images - np.stack(expected)).max() <= 3


@pytest.mark.parametrize("table", [[0], [0, 70_000], [8]])
def test_run_lengths_with_wrong_offset_tables(tmp_path, table):
    data = dataset(loop())
    data.compress(uid.RLELossless, generate_instance_uid=False)
    fragments = list(generate_frames(data.PixelData, number_of_frames=6))
    entries = np.array(table, "<u4").tobytes()
    body = encapsulate(fragments, has_bot=False)[8:]
    data.PixelData = struct.pack("<HHL", 0xFFFE, 0xE000, len(entries)) + entries + body
    np.testing.assert_array_equal(read(data, tmp_path / "a")[0], loop())


@pytest.mark.parametrize("claimed", [1, 3, 7, 1000, 2**31 - 1, 10**30])
@pytest.mark.parametrize("compressed", [False, True])
def test_lying_frame_counts(tmp_path, claimed, compressed):
    frames = loop(6, 40, 48)
    data = jpeg_dataset(tmp_path, frames, has_bot=False) if compressed else dataset(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.NumberOfFrames = claimed if claimed < 2**31 else str(claimed)[:12]
    images, source = read(data, tmp_path / "a")
    assert len(images) == 6 and source.declared_frames == 6
    assert source.status == ("truncated" if claimed > 6 else "corrupt")
    assert "6" in source.problems[0]


@pytest.mark.parametrize("share", [0.95, 0.5, 0.2])
@pytest.mark.parametrize("layout", ["native", "table", "no table"])
def test_cut_files(tmp_path, cut, share, layout):
    frames = loop(10, 40, 48)
    data = dataset(frames) if layout == "native" else jpeg_dataset(tmp_path, frames, has_bot=layout == "table")
    source = open_source(cut(save(data, tmp_path / "a"), share))
    images = list(source)
    assert source.status == "truncated" and len(images) == pytest.approx(10 * share, abs=1.5)


def test_damaged_frames_are_skipped(tmp_path):
    frames = loop(6, 40, 48)
    data = jpeg_dataset(tmp_path, frames)
    fragments = list(generate_frames(data.PixelData, number_of_frames=6))
    fragments[2] = fragments[2][:20] + b"\0" * (len(fragments[2]) - 20)
    data.PixelData = encapsulate(fragments)
    source = open_source(save(data, tmp_path / "a"))
    images = list(source)
    assert [frame.index for frame in images] == [0, 1, 2, 3, 4]
    assert images[2].time == pytest.approx(3 / 25)  # the frames after the gap keep their times
    assert (source.status, source.problems) == ("corrupt", ("1 frames cannot be decoded",))


def test_huge_claims_allocate_nothing(tmp_path):
    data = dataset(loop())
    data.Rows, data.Columns, data.NumberOfFrames = 65535, 65535, 2**31 - 1
    with pytest.raises(VideoError, match="exceed the limit"):
        open_source(save(data, tmp_path / "a"))
    frames = loop(2, 40, 48)
    data = jpeg_dataset(tmp_path, frames)
    bomb = bytearray(jpegs(frames, tmp_path)[0])
    size = bomb.index(b"\xff\xc0") + 5
    bomb[size : size + 4] = b"\xff\xff\xff\xff"
    data.PixelData = encapsulate([bytes(bomb), jpegs(frames, tmp_path)[1]])
    source = open_source(save(data, tmp_path / "b"))
    assert len(list(source)) == 1 and source.status == "corrupt"


def test_frames_beyond_the_cap_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("stnet.video.dicom_frames.MAX_FRAMES", 4)
    images, source = read(dataset(loop()), tmp_path / "a")
    assert len(images) == 4 and source.status == "truncated" and f"first {MAX_FRAMES}" in source.problems[0]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    # Most of the header is in the first kilobytes.
    limits = [min(len(data), 3000)] * 4 + [len(data)] * 4
    for limit in limits[: rng.integers(1, 9)]:
        changed[rng.integers(132, limit)] = rng.integers(256)
    if rng.random() < 0.2:
        del changed[rng.integers(200, len(data)) :]
    return bytes(changed)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_mutations_never_escape(tmp_path, count, capfd):
    rng = np.random.default_rng(count)
    frames = loop(4, 24, 32)
    regions = Sequence([region(2, 2, 20, 20)])
    originals = [
        dataset(frames, SequenceOfUltrasoundRegions=regions, FrameTime="40"),
        jpeg_dataset(tmp_path, frames),
        dataset(frames[..., 0].copy(), "MONOCHROME2", WindowCenter="100", WindowWidth="50"),
    ]
    rle = dataset(frames)
    rle.compress(uid.RLELossless, generate_instance_uid=False)
    files = [save(data, tmp_path / "whole").read_bytes() for data in [*originals, rle]]
    usable = 0
    for number in range(count):
        path = tmp_path / "DOE"
        path.write_bytes(mutated(files[number % len(files)], rng))
        try:
            source = DicomFile(path, "dicom-1")
            usable += len(list(source)) > 0 and source.status in ("ok", "truncated", "corrupt")
        except VideoError as error:
            assert "DOE" not in str(error)
    assert usable > count // 4
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
