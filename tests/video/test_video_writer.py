"""Written videos: exact, complete, or named .partial."""

import itertools
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from stnet.errors import VideoError
from stnet.video import VideoFile, VideoWriter


@pytest.mark.parametrize("size", [(48, 64), (47, 65), (16, 17), (1, 1)])
def test_round_trip(tmp_path, draw_picture, size):
    images = [draw_picture(i, *size) for i in range(9)]
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), *size) as writer:
        for image in images:
            writer.write(image)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    source = VideoFile(tmp_path / "out.mp4")
    frames = list(source)
    assert len(frames) == 9 and source.status == "ok"
    assert (source.height, source.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame.image[: size[0], : size[1]] - image.astype(int)).mean() < 8


def test_plays_in_browsers(tmp_path, draw_picture):
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), 48, 64) as writer:
        writer.write(draw_picture(0, 48, 64))
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(187000, 9789), Fraction(1, 2)])
@pytest.mark.parametrize("timed", [False, True])
def test_frame_rate_is_exact(tmp_path, draw_picture, fps, timed):
    with VideoWriter(tmp_path / "out.mp4", fps, 16, 16) as writer:
        for i in range(7):
            # Containers round times to milliseconds.
            writer.write(draw_picture(i, 16, 16), round(float(i / fps), 3) if timed else None)
    source = VideoFile(tmp_path / "out.mp4")
    assert source.fps == fps
    assert [frame.time for frame in source] == pytest.approx([float(i / fps) for i in range(7)], abs=1e-4)


@pytest.mark.parametrize(
    "fps", [Fraction(1_619_910_001, 53_991_234), Fraction(2**31 - 1, 71_582_788), 1000 - Fraction(1, 2**40)]
)
def test_rates_of_variable_recordings_are_written(tmp_path, draw_picture, fps):
    with VideoWriter(tmp_path / "out.mp4", fps, 16, 16) as writer:
        for i in range(5):
            writer.write(draw_picture(i, 16, 16), float(i / fps))
    source = VideoFile(tmp_path / "out.mp4")
    assert float(source.fps) == pytest.approx(float(fps), rel=1e-6)
    assert [frame.time for frame in source] == pytest.approx([float(i / fps) for i in range(5)], abs=1e-4)


def test_variable_times_are_kept(tmp_path, draw_picture):
    times = [0.0, 0.1, 0.13, 1.0, 1.0, 0.5, 2.0]
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), 16, 16) as writer:
        for i, time in enumerate(times):
            writer.write(draw_picture(i, 16, 16), time)
    written = [frame.time for frame in VideoFile(tmp_path / "out.mp4")]
    assert written[:4] == pytest.approx(times[:4], abs=5e-3) and written[6] == pytest.approx(2.0, abs=5e-3)
    assert all(later > earlier for earlier, later in itertools.pairwise(written))


WRITE = """
import sys
from fractions import Fraction
import numpy as np
from stnet.video import VideoWriter

frames = np.load(sys.argv[1])
with VideoWriter(sys.argv[2], Fraction(25), *frames.shape[1:3]) as writer:
    for frame in frames:
        writer.write(frame)
"""


def test_neither_cores_nor_stale_memory_change_a_byte(tmp_path, draw_picture):
    np.save(tmp_path / "frames.npy", [draw_picture(i, 240, 320) for i in range(6)])

    def write(name: str, cores: set[int], fill: int) -> bytes:
        """Write by a process on `cores` whose fresh memory holds `fill` (by glibc; elsewhere it is what it is)."""
        subprocess.run(
            [sys.executable, "-c", WRITE, tmp_path / "frames.npy", tmp_path / name],
            env=os.environ | {"MALLOC_PERTURB_": str(fill)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores) if hasattr(os, "sched_setaffinity") else None,
            check=True,
        )
        return (tmp_path / name).read_bytes()

    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    written = write("clean.mp4", cores, 0)
    assert written == write("stale.mp4", cores, 85)
    assert written == write("alone.mp4", {min(cores)}, 165)


def test_failure_leaves_a_partial_file_and_the_former_one(tmp_path, draw_picture):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"former")

    def interrupted():
        with VideoWriter(path, Fraction(25), 48, 64) as writer:
            for i in range(5):
                writer.write(draw_picture(i, 48, 64))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"former"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "out.mp4.partial"]
    assert len(list(VideoFile(tmp_path / "out.mp4.partial"))) == 5


def test_unusable_frames_and_places(tmp_path):
    with pytest.raises(VideoError, match="cannot be written"):
        VideoWriter(tmp_path / "missing" / "out.mp4", Fraction(25), 16, 16)
    writer = VideoWriter(tmp_path / "out.mp4", Fraction(25), 16, 16)
    with pytest.raises(VideoError, match=r"expected uint8 \[16, 16, 3\]"):
        writer.write(np.zeros((16, 18, 3), np.uint8))
    with pytest.raises(VideoError, match="float32"):
        writer.write(np.zeros((16, 16, 3), np.float32))
    writer.abandon()
