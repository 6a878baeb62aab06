"""The live mode of the command: feeds and played videos, who watches them, and how they end."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stnet
from stnet.execution.engine import Engine
from stnet.inference import cli, feed_run, live_page
from stnet.inference.live import WARM_UP_FRAMES
from stnet.model.provenance import Provenance
from stnet.video import feed_connection, open_source
from tests.video.feed_senders import free_port, named_pipe, noise, recorded, sending

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")]
SCHEMA = json.loads((Path(cli.__file__).parent / "detections.schema.json").read_text())


@pytest.fixture
def infer(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, checkpoint: Path = checkpoint):
        shared = ["--checkpoint", str(checkpoint), "--device", "cpu", "--score-threshold", "0.2"]
        try:
            status = cli.main([*(str(a) for a in arguments), *shared])
        except SystemExit as exit_:
            status = exit_.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def stdin(monkeypatch, tmp_path):
    """Puts frames into standard input."""
    with contextlib.ExitStack() as stack:

        def fill(data: bytes) -> None:
            path = tmp_path / "stdin.ts"
            path.write_bytes(data)
            monkeypatch.setattr("sys.stdin", stack.enter_context(open(path)))

        yield fill


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: processes that share out tests ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def results(folder: Path) -> dict:
    data = json.loads((folder / "detections.json").read_text())
    pytest.importorskip("jsonschema").validate(data, SCHEMA)
    return data


def test_standard_input_to_standard_output(infer, stdin, tmp_path):
    stdin(recorded(tmp_path, 12, show=noise))
    status, out, err = infer("--live", "-", "--json-lines", "--no-files", "--every-frame", "--mm-per-pixel", "0.1")
    events = lines(out)
    assert status == 0, err
    assert [event["event"] for event in events] == ["start", *["frame"] * 12, "end"], (events[-1], err)
    start, *frames, end = events
    assert start["feed"] == "standard input" and (start["width"], start["height"]) == (64, 48)
    assert start["format"] == "stnet-live/1" and start["score_threshold"] == 0.2
    assert [frame["frame"] for frame in frames] == list(range(12))
    assert any(frame["boxes"] for frame in frames)
    for frame in frames:
        assert len(frame["boxes"]) == len(frame["scores"]) == len(frame["labels"]) == len(frame["sizes_mm"])
        assert frame["latency"] > 0 and frame["dropped"] == 0 and abs(frame["clock"] - time.time()) < 100
        assert all(score >= 0.2 for score in frame["scores"])
    assert end["status"] == "ok" and end["frames"] == 12 and end["latency_percentile_99"] >= end["latency_median"] > 0
    assert "latency median" in err and not (tmp_path / "runs").exists()


def test_a_pipe_to_files(infer, tmp_path):
    pipe = named_pipe(tmp_path)
    with sending(pipe, 8, rate=0, show=noise):
        status, out, _ = infer("--live", pipe, "--every-frame", "--output", "out")
    (folder,) = (tmp_path / "out").iterdir()
    assert status == 0, results(folder)["problems"]
    assert folder.name.startswith("scanner-20") and f"{folder.name}: ok, 8 frames" in out
    data = results(folder)
    assert [frame["frame"] for frame in data["frames"]] == list(range(8))
    assert data["video"]["source"] == str(pipe) and data["status"] == "ok" and data["problems"] == []
    names = ["annotated.mp4", "detections.csv", "detections.json", "lesions.csv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    drawn = list(open_source(folder / "annotated.mp4"))
    assert len(drawn) == 8 and drawn[0].image.shape == (480, 640, 3)
    # A feed is never in the way of an older one.
    with sending(pipe, 3, rate=0, show=noise):
        assert infer("--live", pipe, "--every-frame", "--output", "out", "--formats", "json")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_frames_that_are_dropped_are_told(infer, stdin, tmp_path, monkeypatch):
    original = Engine.detect

    def slow(self, *arguments, **named):
        time.sleep(0.05)
        return original(self, *arguments, **named)

    monkeypatch.setattr(Engine, "detect", slow)
    stdin(recorded(tmp_path, 40))
    status, out, err = infer("--live", "-", "--json-lines", "--output", "out")
    *_, last, end = lines(out)
    (folder,) = (tmp_path / "out").iterdir()
    data = results(folder)
    assert status == 1 and end["status"] == data["status"] == "frames dropped"
    assert end["dropped"] > 5 and end["frames"] + end["dropped"] == 40 and end["frames"] == data["frame_count"]
    assert data["problems"] == [f"{end['dropped']} of 40 frames were dropped"] == end["problems"]
    assert last["frame"] == 39 and last["dropped"] == end["dropped"]
    assert f"{end['dropped']} frames dropped" in err and "frames dropped, " in err


def test_a_played_video_is_watched_too(infer, make_clip, tmp_path, monkeypatch):
    make_clip(tmp_path / "clip.mp4", frames=8)
    status, out, _ = infer("clip.mp4", "--live", "--every-frame", "--json-lines", "--output", "out", "--no-video")
    events = lines(out)
    assert status == 0 and [event["event"] for event in events] == ["start", *["frame"] * 8, "end"]
    assert events[-1]["status"] == "ok" == results(tmp_path / "out/clip")["status"]
    monkeypatch.setattr(Engine, "detect", lambda *a, _=Engine.detect, **n: (time.sleep(0.2), _(*a, **n))[1])
    status, out, _ = infer("clip.mp4", "--live", "--output", "slow", "--no-video")
    assert status == 1 and "clip: frames dropped" in out
    assert results(tmp_path / "slow/clip")["status"] == "frames dropped"


def test_who_watches_hears_of_the_end_when_memory_runs_out(infer, make_clip, tmp_path, monkeypatch):
    calls, original = [], Engine.detect

    def detect(*arguments, **named):
        calls.append(1)
        if len(calls) > WARM_UP_FRAMES + 3:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return original(*arguments, **named)

    monkeypatch.setattr(Engine, "detect", detect)
    make_clip(tmp_path / "clip.mp4", frames=8)
    status, out, err = infer("clip.mp4", "--live", "--every-frame", "--json-lines", "--output", "out", "--no-video")
    assert status == 2 and "out of memory on cpu with a single clip" in err
    *frames, end = lines(out)
    assert [event["event"] for event in frames] == ["start", *["frame"] * 3]
    assert (end["event"], end["status"]) == ("end", "corrupt") and "out of memory" in end["problems"][0]


def test_a_feed_that_is_lost_keeps_what_was_answered(infer, tmp_path, monkeypatch):
    monkeypatch.setattr(feed_connection, "SILENT_SECONDS", 1.5)
    port = free_port("udp")
    with sending(f"udp://127.0.0.1:{port}?pkt_size=1316", 75, rate=50):
        command = ("--live", f"udp://127.0.0.1:{port}", "--reconnect", "2", "--json-lines")
        status, out, err = infer(*command, "--output", "out", "--no-video")
    events = lines(out)
    assert status == 1 and events[-1]["event"] == "end" and events[-1]["status"] == "lost"
    assert [event["reason"] for event in events if event["event"] == "lost"] == ["no data for 1.5 s"]
    (folder,) = (tmp_path / "out").iterdir()
    data = results(folder)
    assert data["status"] == "lost" and data["frame_count"] > 0 and any("lost (no" in text for text in data["problems"])
    assert "no frames (no data for 1.5 s); waiting for it" in err


def test_ctrl_c_ends_a_feed_in_order(infer, tmp_path, interruptible):
    pipe = named_pipe(tmp_path)

    def interrupt() -> None:
        deadline = time.monotonic() + 50
        while not list(tmp_path.glob("out/*/detections.csv.partial")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with sending(pipe, show=noise):
        threading.Thread(target=interrupt, daemon=True).start()
        status, _, _ = infer("--live", pipe, "--every-frame", "--output", "out", "--formats", "json,csv")
    (folder,) = (tmp_path / "out").iterdir()
    assert status == 0 and results(folder)["status"] == "ok" and results(folder)["frame_count"] > 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_feed_says_what_its_model_was_trained_on(infer, stdin, small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(small_model, "provenance", Provenance(trained_on="three made-up videos"))
    stnet.save(small_model, tmp_path / "told.safetensors", {})
    stdin(recorded(tmp_path, 1))
    status, out, err = infer("--live", "-", "--json-lines", "--no-files", checkpoint=tmp_path / "told.safetensors")
    assert status == 0 and "model told.safetensors, trained on three made-up videos" in err
    assert lines(out)[0]["model"]["trained_on"] == "three made-up videos"


def test_a_feed_that_was_stopped_says_so(infer, stdin, tmp_path, monkeypatch):
    # As `timeout` does on a busy machine while all is prepared: one frame of twelve is no whole feed.
    monkeypatch.setattr(feed_run.LiveDetector, "warm_up", lambda *_: signal.raise_signal(signal.SIGTERM))
    stdin(recorded(tmp_path, 12))
    status, out, err = infer("--live", "-", "--json-lines", "--every-frame", "--output", "out", "--no-video")
    *_, end = lines(out)
    (folder,) = (tmp_path / "out").iterdir()
    assert status == 0 and end["status"] == "ok" and end["frames"] == 1
    assert end["problems"] == results(folder)["problems"] == ["stopped before its end (SIGTERM)"]
    assert "stopped before its end (SIGTERM)" in err


def test_another_size_and_a_long_time_begin_another_folder(infer, stdin, tmp_path, monkeypatch):
    monkeypatch.setattr(feed_run, "STRETCH_SECONDS", 0.0)
    stdin(recorded(tmp_path, 4, height=64))
    assert infer("--live", "-", "--every-frame", "--output", "short", "--formats", "json")[0] == 0
    folders = sorted((tmp_path / "short").iterdir())
    assert [results(folder)["frame_count"] for folder in folders] == [1] * 4
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    stdin(recorded(tmp_path, 6) + recorded(tmp_path, 6, height=64))
    status, out, _ = infer("--live", "-", "--every-frame", "--output", "sizes", "--json-lines", "--formats", "json")
    shapes = {results(folder)["video"]["height"]: results(folder) for folder in (tmp_path / "sizes").iterdir()}
    assert status == 0 and {height: data["frame_count"] for height, data in shapes.items()} == {48: 6, 64: 6}
    assert [frame["frame"] for frame in shapes[64]["frames"]] == list(range(6))
    assert [event["height"] for event in lines(out) if event["event"] == "start"] == [48, 64]


def test_results_that_cannot_be_written_do_not_stop_who_watches(infer, stdin, tmp_path, monkeypatch):
    monkeypatch.setattr(feed_run, "_new_folder", lambda *_: Path("/proc/nowhere"))
    stdin(recorded(tmp_path, 6))
    status, out, err = infer("--live", "-", "--every-frame", "--json-lines", "--output", "out")
    assert status == 1 and sum(event["event"] == "frame" for event in lines(out)) == 6
    assert "nothing more is written" in err and "Traceback" not in err
    stdin(recorded(tmp_path, 6))
    status, out, err = infer("--live", "-", "--every-frame", "--output", "out")
    assert status == 1 and "standard input: unwritten" in out and "Traceback" not in err


def test_a_reader_that_has_gone_ends_a_feed_nobody_else_watches(infer, tmp_path, monkeypatch):
    pipe, began = named_pipe(tmp_path), time.monotonic()
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("sys.stdout", os.fdopen(write, "w"))
    with sending(pipe, rate=100):
        status, _, err = infer("--live", pipe, "--json-lines", "--no-files")
    assert status == 1 and "standard output: nobody reads it any more" in err and time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-"], "standard input: is a feed, no file; add --live"),
        (["rtsp://u:secret@host/x"], "rtsp://host/x: is a feed, no file; add --live"),
        (["--live", "-", "clip.mp4"], "has to be the only input"),
        (["--live", "udp://host"], "udp://host: names no port"),
        (["--live", "http://u:secret@host/x"], "http://host/x: only local files are read"),
        (["--live", "-", "--report"], "--report does not work with a feed"),
        (["--live", "-", "--formats", "json,report"], "--report does not work with a feed"),
        (["--live", "-", "--export", "cvat"], "--export does not work with a feed"),
        (["--live", "-", "--overwrite"], "--overwrite does not work with a feed"),
        (["--live", "-", "--no-files"], "--no-files leaves nobody to be told"),
        (["--live", "-", "--part", "2/3"], "--part does not work with a feed"),
        (["--live", "-", "--fps", "10"], "--fps does not work with a feed"),
        (["clip.mp4", "--view"], "--view needs --live"),
        (["clip.mp4", "--delay", "1"], "--delay needs --live"),
        (["clip.mp4", "--reconnect", "0"], "--reconnect needs --live"),
        (["clip.mp4", "--live", "--reconnect", "5"], "--reconnect is for feeds"),
        (["clip.mp4", "--json-lines"], "--json-lines needs --live"),
        (["clip.mp4", "--live", "--export", "yolo"], "--export with --live needs --every-frame"),
        (["--live", "clip.mp4", "--no-files", "--view"], "--no-files is for feeds"),
        (["--live", "-", "--view-address", "127.0.0.1"], "--view-address needs --view"),
        (["--live", "-", "--view", "--view-address", "here"], "expected an IPv4 address"),
        (["--live", "-", "--view", "--view-address", "127.0.0.1:99999"], "a port lies between"),
        (["--live", "-", "--reconnect", "-1"], "must be at least 0"),
    ],
)
def test_wrong_usage(infer, make_clip, tmp_path, arguments, reason):
    make_clip(tmp_path / "clip.mp4", frames=2)
    status, out, err = infer(*arguments)
    assert status == 2 and reason in err and "secret" not in out + err and "Traceback" not in err


def test_a_feed_that_is_not_there(infer, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        name = f"rtsp://user:secret@127.0.0.1:{taken.getsockname()[1]}/x"
        status, out, err = infer("--live", name, "--reconnect", "0", "--output", "out")
    assert status == 2 and "Connection refused" in err and "secret" not in out + err
    assert list((tmp_path / "out").iterdir()) == []


class Page:
    """A page that a run serves, asked as a browser asks."""

    def __init__(self, url: str) -> None:
        self.url, self.number = url, -1

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
                self.headers = answer.headers
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def next(self) -> tuple[dict, bytes]:
        _, body = self.get(f"next?after={self.number}")
        text, _, picture = body.partition(b"\n")
        state = json.loads(text)
        self.number = state["sequence"]
        return state, picture


def test_the_page(infer, tmp_path, monkeypatch):
    pages, seen, asked = [], [], {}
    original = live_page.LivePage.__init__

    def made(self, *arguments, **named):
        original(self, *arguments, **named)
        pages.append(Page(self.url))

    def look() -> None:
        while not pages:
            time.sleep(0.01)
        page = pages[0]
        base = page.url[: page.url.rindex("/", 0, -1) + 1]
        asked["page"] = page.get("")
        asked["policy"] = page.headers["Content-Security-Policy"]
        asked["unknown"] = page.get("other")[0]
        asked["host"] = page.get("", Host="evil.example")[0]
        asked["no secret"] = Page(base).get("")[0], Page(base).get("x/next?after=1")[0]
        while not seen or seen[-1][0]["state"] != "ended":
            seen.append(page.next())

    monkeypatch.setattr(live_page.LivePage, "__init__", made)
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    pipe = named_pipe(tmp_path)
    with sending(pipe, 60, rate=50, show=noise):
        status, _, err = infer("--live", pipe, "--view", "--no-files")
    looking.join(10)
    assert status in (0, 1) and "view: http://127.0.0.1:" in err and not looking.is_alive()
    assert asked["page"][0] == 200 and b"Live detections" in asked["page"][1]
    assert "default-src 'none'" in asked["policy"] and "unsafe" not in asked["policy"]
    assert (asked["unknown"], asked["host"], asked["no secret"]) == (404, 404, (404, 404))
    states = [state["state"] for state, _ in seen]
    assert states[0] == "waiting" and "live" in states and states[-1] == "ended"
    shown = [(state, picture) for state, picture in seen if "frame" in state]
    state, picture = shown[-1]
    assert state["feed"] == str(pipe) and state["latency_median"] > 0 and state["status"] in ("ok", "frames dropped")
    (tmp_path / "shown.jpg").write_bytes(picture)
    with Image.open(tmp_path / "shown.jpg") as image:
        assert image.size == (640, 480) and np.asarray(image).std() > 10
    frames = [state["frame"] for state, _ in shown]
    assert frames == sorted(frames) and len(set(frames)) > 3


def test_few_connections_to_the_page(small_model, tmp_path):
    from stnet.inference.live_server import MAX_CONNECTIONS
    from stnet.inference.sink import RunFacts

    facts = RunFacts(output=tmp_path, videos=1, class_names={1: "</script>"}, score_threshold=0.3, model={}, shown={})
    page = live_page.LivePage(facts)
    host, port = page.url.split("/")[2].split(":")
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(MAX_CONNECTIONS + 8)]
        many[-1].settimeout(5)
        assert many[-1].recv(1) == b""  # closed at once
    body = b""
    for _ in range(50):
        with contextlib.suppress(OSError):
            body = Page(page.url).get("")[1]
            break
        time.sleep(0.05)
    assert b"Live detections" in body and body.count(b"</script>") == 2
    page.close()
    with pytest.raises(OSError):
        Page(page.url).get("")
