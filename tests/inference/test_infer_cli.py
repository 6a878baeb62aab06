"""The command: outputs, exit status, refusals, bad input beside good, interruption, memory."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stnet.inference import cli
from stnet.inference.folder_lock import FolderLock
from stnet.inference.options import build_parser
from stnet.inference.outputs import LOCK_NAME
from stnet.video import open_source

ROOT = Path(__file__).resolve().parents[2]


def results(folder: Path) -> dict:
    return json.loads((folder / "detections.json").read_text())


def shown(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
def test_one_video(infer, make_clip, tmp_path, frames):
    make_clip(tmp_path / "clip.mp4", frames=frames)
    status, out, err = infer("clip.mp4")
    folder = tmp_path / "runs" / "infer" / "clip"
    assert status == 0 and "warning" not in err and "error" not in err
    assert f"clip: ok, {frames} frames" in out and "runs/infer/clip" in out
    names = ["annotated.mp4", "detections.csv", "detections.json", "lesions.csv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    data = results(folder)
    assert [frame["frame"] for frame in data["frames"]] == list(range(frames))
    assert data["status"] == "ok" and data["model"]["dtype"] == "float32"
    assert len(list(open_source(folder / "annotated.mp4"))) == frames


def test_five_inputs_of_which_one_is_bad(infer, make_clip, make_frames, tmp_path):
    for number in range(3):
        make_clip(tmp_path / f"{number}.mp4", frames=4, seed=number)
    (tmp_path / "frames").mkdir()
    for number, image in enumerate(make_frames(4)):
        Image.fromarray(image).save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    status, out, err = infer("0.mp4", "bad.mp4", "1.mp4", "frames", "2.mp4", "--output", "out", "--no-video")
    assert status == 1
    assert shown(tmp_path / "out") == ["0", "1", "2", "frames", "summary.csv"]
    with open(tmp_path / "out" / "summary.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    states = {"0": "ok", "bad": "unreadable", "1": "ok", "frames": "ok", "2": "ok"}
    assert {row["video"]: row["status"] for row in rows} == states and rows[1]["problems"].startswith("bad.mp4: cannot")
    assert out.count(": ok, 4 frames") == 4 and "bad: unreadable" in out
    assert "bad.mp4: cannot be opened as a video" in err


def test_truncated_video(infer, make_clip, encode_cut, tmp_path):
    encode_cut(tmp_path / "cut.mp4")
    make_clip(tmp_path / "whole.mp4", frames=2)
    status, out, err = infer("cut.mp4", "whole.mp4", "--output", "out")
    assert status == 1
    data = results(tmp_path / "out" / "cut")
    assert data["status"] == "truncated" and 0 < data["frame_count"] == len(data["frames"]) < 55
    assert "cut: truncated" in out and "whole: ok" in out
    assert re.search(r"cut: \d+ of 60 declared frames", err)


@pytest.fixture
def encode_cut():
    """Writes an mp4 of 60 frames with its index in front, and cuts it."""
    import av

    def write(path: Path) -> None:
        with av.open(str(path), mode="w", options={"movflags": "faststart"}) as output:
            stream = output.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 40, 48, "yuv420p"
            stream.codec_context.gop_size = 5
            for index in range(60):
                image = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode(None))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10])

    return write


def test_nothing_usable(infer, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    status, out, err = infer("bad.mp4")
    assert status == 2 and "error: no video could be used" in err and "bad: unreadable" in out
    status, _, err = infer("missing.mp4")
    assert status == 2 and "error: missing.mp4: no such file or folder" in err
    assert shown(tmp_path / "runs/infer") == ["summary.csv"]


def test_inputs_that_are_missing_are_called_by_their_names(infer, make_clip, tmp_path):
    make_clip(tmp_path / "a.mp4", frames=2)
    status, out, err = infer("a.mp4", "missing.mp4", "DOE^JANE.dcm", "--report", "--no-video")
    assert status == 1 and "missing.mp4: unreadable" in out and "input 3: unreadable" in out
    assert "missing.mp4: no such file or folder" in err and "input 3: no such DICOM file" in err
    assert "DOE" not in out + err + (tmp_path / "runs/infer/report.html").read_text()


def test_existing_results_are_not_replaced_unasked(infer, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=2)
    make_clip(tmp_path / "other.mp4", frames=2)
    assert infer("clip.mp4")[0] == 0
    before = results(tmp_path / "runs/infer/clip")
    status, _, err = infer("other.mp4", "clip.mp4", "--score-threshold", "0.9")
    assert status == 2 and "results exist already" in err and "--overwrite" in err
    assert not (tmp_path / "runs/infer/other").exists()
    make_clip(tmp_path / "clip.mp4", frames=3)
    assert infer("clip.mp4", "--overwrite", "--no-video")[0] == 0
    assert results(tmp_path / "runs/infer/clip") != before
    assert not (tmp_path / "runs/infer/clip/annotated.mp4").exists()


def test_equal_names_get_folders_of_their_own(infer, make_clip, tmp_path):
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        make_clip(tmp_path / folder / "clip.mp4", frames=2 + number)
    assert infer("a/clip.mp4", "b/clip.mp4", "--output", "out")[0] == 0
    assert [results(tmp_path / "out" / name)["frame_count"] for name in ("clip", "clip-2")] == [2, 3]


def test_awkward_names_and_places(infer, make_clip, tmp_path):
    make_clip(tmp_path / "-dash.mp4", frames=2)
    (tmp_path / "mit Leer [x] 乳腺").mkdir()
    make_clip(tmp_path / "mit Leer [x] 乳腺" / "ü 100%.mp4", frames=2)
    status, out, _ = infer("--output", "mit Leer [x] 乳腺", "--no-video", "--", "mit Leer [x] 乳腺", "-dash.mp4")
    assert status == 1  # `--` ends the options, so those appended here are taken for inputs, which are missing
    shutil.rmtree(tmp_path / "mit Leer [x] 乳腺" / "-dash")
    shutil.rmtree(tmp_path / "mit Leer [x] 乳腺" / "ü 100%")
    status, out, _ = infer("./-dash.mp4", "mit Leer [x] 乳腺", "--output", "mit Leer [x] 乳腺", "--no-video")
    assert status == 0
    assert results(tmp_path / "mit Leer [x] 乳腺" / "ü 100%")["frame_count"] == 2
    assert results(tmp_path / "mit Leer [x] 乳腺" / "-dash")["frame_count"] == 2
    assert "ü 100%: ok" in out


def test_patterns(infer, make_clip, tmp_path):
    for number in range(3):
        make_clip(tmp_path / f"{number}.mp4", frames=2)
    assert infer("*.mp4", "--output", "out", "--no-video")[0] == 0
    assert shown(tmp_path / "out") == ["0", "1", "2", "summary.csv"]


def test_read_only_input_and_unwritable_output(infer, make_clip, tmp_path):
    (tmp_path / "in").mkdir()
    make_clip(tmp_path / "in" / "clip.mp4", frames=2)
    os.chmod(tmp_path / "in" / "clip.mp4", 0o444)
    os.chmod(tmp_path / "in", 0o555)
    assert infer("in/clip.mp4", "--output", "out")[0] == 0
    (tmp_path / "file").write_text("in the way")
    status, _, err = infer("in/clip.mp4", "--output", "file")
    assert status == 2 and "choose another --output" in err
    os.chmod(tmp_path / "in", 0o755)


def test_no_network(infer, make_clip, tmp_path, monkeypatch):
    def blocked(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, blocked)
    make_clip(tmp_path / "clip.mp4", frames=4)
    assert infer("clip.mp4")[0] == 0
    status, _, err = infer("http://127.0.0.1:9/clip.mp4")
    assert status == 2 and "only local files" in err


def test_profile(infer, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=4)
    status, out, _ = infer("clip.mp4", "--profile")
    assert status == 0
    for stage in ("decode", "resize", "backbone", "encoder", "decoder", "post", "write"):
        assert re.search(rf"^{stage} +\d+\.\d+ +\d+\.\d+ +\d+%$", out, re.MULTILINE)


def test_live(infer, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=6)
    status, out, err = infer("clip.mp4", "--live", "--every-frame", "--delay", "1")
    assert status == 0 and "clip: ok" in out
    assert re.search(r"clip: latency median \d+\.\d ms, 99th percentile \d+\.\d ms; \d+ frames dropped", err)
    assert 1 <= results(tmp_path / "runs/infer/clip")["frame_count"] <= 6


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("clip.mp4", "--score-threshold", "2"),
        ("clip.mp4", "--batch", "0"),
        ("clip.mp4", "--duplicate-iou", "1.5"),
        ("clip.mp4", "--targets", "x"),
        ("clip.mp4", "--fps", "0"),
        ("clip.mp4", "--targets", "99"),
        ("clip.mp4", "--dtype", "float16"),
        ("clip.mp4", "--live", "--profile"),
        ("clip.mp4", "--overwrite", "--skip-existing"),
        ("clip.mp4", "--part", "3/2"),
        ("clip.mp4", "--live", "--stills"),
        ("@list.txt",),
        ("clip.mp4", "--bogus"),
    ],
)
def test_wrong_usage(infer, make_clip, tmp_path, arguments):
    make_clip(tmp_path / "clip.mp4", frames=2)
    status, _, err = infer(*arguments)
    assert status == 2 and "error: " in err and "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to a device that is always full")
@pytest.mark.parametrize("name", ["clip/detections.json", "clip/detections.csv", "report.html"])
def test_a_full_disk_is_an_error_without_a_traceback(infer, make_clip, tmp_path, name):
    make_clip(tmp_path / "clip.mp4", frames=60)
    partial = tmp_path / "out" / f"{name}.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    status, _, err = infer("clip.mp4", "--output", "out", "--report")
    assert status == (1 if name == "report.html" else 2)
    assert f"error: out/{name}.partial: cannot be written (No space left on device)" in err
    assert not (tmp_path / "out" / name).exists()


def test_a_folder_that_cannot_be_written_costs_one_video(infer, make_clip, tmp_path):
    for name in "abc":
        make_clip(tmp_path / f"{name}.mp4", frames=3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("in the way")
    for more in ((), ("--live", "--every-frame")):
        status, out, err = infer("a.mp4", "b.mp4", "c.mp4", "--output", "out", "--no-video", "--report", *more)
        assert status == 1 and "b: unreadable" in out and "a: ok" in out and "c: ok" in out
        assert "out/b: cannot be written to" in err and "Traceback" not in err
        assert results(tmp_path / "out" / "c")["frame_count"] > 0
        shutil.rmtree(tmp_path / "out" / "a")
        shutil.rmtree(tmp_path / "out" / "c")
        (tmp_path / "out" / "report.html").unlink()


def test_a_second_run_into_a_folder_is_refused_there(infer, make_clip, tmp_path):
    for name in "ab":
        make_clip(tmp_path / f"{name}.mp4", frames=3)
    (tmp_path / "out" / "a").mkdir(parents=True)
    lock = FolderLock(tmp_path / "out" / "a" / LOCK_NAME)
    status, out, err = infer("a.mp4", "b.mp4", "--output", "out", "--no-video", "--overwrite")
    assert status == 1 and "out/a: another run is writing there" in err and "b: ok" in out
    assert not list((tmp_path / "out" / "a").glob("*.json"))
    lock.release()
    page = FolderLock(tmp_path / "out" / ".report.html.running")
    status, _, err = infer("a.mp4", "--output", "out", "--report", "--no-video")
    assert status == 1 and "another run" in err and results(tmp_path / "out" / "a")["frame_count"] == 3
    page.release()


def test_names_of_files_may_be_anything(infer, make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", frames=2).read_bytes()
    for name in (b"M\xfcller.mp4", b"esc\x1b[31m.mp4", b"report.html.mp4", b"...mp4", b"..mp4", b"CLIP.mp4"):
        (tmp_path / os.fsdecode(name)).write_bytes(clip)
    (tmp_path / "inside").mkdir()
    names = sorted(os.fsdecode(path) for path in os.listdir(os.fsencode(tmp_path)) if path.endswith(b".mp4"))
    status, out, err = infer(*(f"./{name}" for name in names), "--output", "inside/out", "--report")
    assert status == 0 and "\x1b" not in out + err and "\\udcfcller" in out and "Traceback" not in err
    written = sorted(os.listdir(os.fsencode(tmp_path / "inside" / "out")))
    assert len(written) == 10 and b"report.html-2" in written and (b"clip-2" in written or b"CLIP-2" in written)
    assert os.listdir(tmp_path / "inside") == ["out"]  # the names . and .. do not lead elsewhere
    assert not list((tmp_path / "inside" / "out").glob("detections.json"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to a device that is always full")
def test_a_full_or_closed_standard_output(checkpoint, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=2)
    command = _command(tmp_path / "clip.mp4", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--overwrite")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=_environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: No space left on device"
    assert results(tmp_path / "out" / "clip")["frame_count"] == 2


def test_formats(infer, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=2)
    assert infer("clip.mp4", "--formats", "csv,report", "--output", "out")[0] == 0
    assert shown(tmp_path / "out" / "clip") == ["detections.csv", "report.section"]
    assert (tmp_path / "out" / "report.html").exists()
    for wrong in (("--formats", "xml"), ("--formats", ","), ("--formats", "video", "--no-video")):
        status, _, err = infer("clip.mp4", "--output", "other", *wrong)
        assert status == 2 and "error: " in err and not (tmp_path / "other").exists()


@pytest.mark.timeout(240)
def test_output_that_cannot_be_written_ends_the_process_cleanly(checkpoint, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=200)
    (tmp_path / "out").touch()
    command = _command(tmp_path / "clip.mp4", "--checkpoint", checkpoint, "--output", tmp_path / "out")
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "choose another --output" in done.stderr


def test_unusable_checkpoint(make_clip, tmp_path, capsys):
    clip = make_clip(tmp_path / "clip.mp4", frames=2)
    assert (
        cli.main([str(clip), "--checkpoint", str(tmp_path / "none.safetensors"), "--output", str(tmp_path / "o")]) == 2
    )
    assert "none.safetensors" in capsys.readouterr().err


def test_options_are_frozen():
    """A new or a renamed option is a decision: change this list with it."""
    options = sorted(option for action in build_parser()._actions for option in action.option_strings)
    assert options == [
        *(
            "--batch",
            "--checkpoint",
            "--compile",
            "--delay",
            "--device",
            "--dicom-key",
            "--dicom-results",
            "--dtype",
            "--duplicate-iou",
            "--every-frame",
            "--explain",
            "--export",
            "--formats",
        ),
        *(
            "--fps",
            "--full-frame",
            "--help",
            "--json-lines",
            "--live",
            "--mm-per-pixel",
            "--no-files",
            "--no-video",
            "--operating-point",
            "--output",
            "--overwrite",
            "--part",
            "--profile",
            "--reconnect",
            "--report",
            "--score-threshold",
            "--skip-existing",
            "--stills",
            "--targets",
            "--view",
            "--view-address",
        ),
        "-h",
    ]


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "infer.py"), *(str(a) for a in arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.timeout(240)
def test_interruption_keeps_finished_results(checkpoint, make_clip, tmp_path):
    make_clip(tmp_path / "first.mp4", frames=3)
    make_clip(tmp_path / "second.mp4", frames=1500, height=16, width=16)
    command = _command(tmp_path / "first.mp4", tmp_path / "second.mp4", "--checkpoint", checkpoint)
    process = subprocess.Popen(
        [*command, "--output", tmp_path / "out"],
        env=_environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    second = tmp_path / "out" / "second"
    deadline = time.monotonic() + 90
    while len(list(second.glob("*.partial"))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert results(tmp_path / "out" / "first")["frame_count"] == 3
    assert sorted(path.suffix for path in second.iterdir()) == [".partial"] * 4


MEASURE = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    # Not ru_maxrss, which a child takes over from its parent.
    print("peak", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak memory")
def test_memory_does_not_grow_with_the_video(checkpoint, make_clip, tmp_path):
    peaks = []
    for frames in (24, 240):  # 240 frames alone would take 220 MB
        clip = make_clip(tmp_path / f"{frames}.mp4", frames=frames, height=480, width=640)
        command = [sys.executable, "-c", MEASURE, *_command(clip, "--checkpoint", checkpoint)[1:]]
        done = subprocess.run(
            [*command, "--output", tmp_path / "out"], env=_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stderr.split("peak ")[1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks
