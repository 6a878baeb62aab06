"""Feeds by other programs, watched in Chromium: start, loss, return, end. The camera is a stand-in for the device."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

import stnet
from stnet.inference import cli
from stnet.video import feed_connection
from tests.inference.browser import CHROMIUM, Browser
from tests.inference.conftest import SMALL, scrambled
from tests.video.feed_senders import free_port, named_pipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SYSTEM_PYTHON = "/usr/bin/python3"
PICTURES = "testsrc2=size=128x96:rate=10"
ENCODING = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "5", "-f", "mpegts"]


@contextlib.contextmanager
def running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ffmpeg(target: str) -> Callable:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    return lambda: running("ffmpeg", "-y", "-re", "-f", "lavfi", "-i", PICTURES, *ENCODING, target)


def udp(*_) -> tuple[str, Callable]:
    address = f"udp://127.0.0.1:{free_port('udp')}"
    return address, ffmpeg(f"{address}?pkt_size=1316")


def tcp(*_) -> tuple[str, Callable]:
    address = f"tcp://127.0.0.1:{free_port()}"
    return address, ffmpeg(f"{address}?listen=1")


def fifo(folder: Path, _) -> tuple[str, Callable]:
    pipe = str(named_pipe(folder))
    return pipe, ffmpeg(pipe)


def rtsp(*_) -> tuple[str, Callable]:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode:
        pytest.skip("needs gir1.2-gst-rtsp-server-1.0")
    port, script = free_port(), Path(__file__).with_name("rtsp_server.py")
    return f"rtsp://user:secret@127.0.0.1:{port}/scanner", lambda: running(SYSTEM_PYTHON, str(script), str(port))


class Unplugged:
    """A camera's container, which fails when the camera is unplugged."""

    def __init__(self, container, plugged: threading.Event) -> None:
        self._container, self._plugged = container, plugged

    def __getattr__(self, name: str):
        return getattr(self._container, name)

    def demux(self):
        for packet in self._container.demux():
            if not self._plugged.is_set():
                raise av.error.OSError(19, "No such device")
            yield packet


def camera(_, monkeypatch) -> tuple[str, Callable]:
    plugged = threading.Event()

    def opened(place, *, format, options, **others):
        assert (place, format) == ("/dev/video99", "v4l2")
        if not plugged.is_set():
            raise av.error.FileNotFoundError(2, "No such file or directory")
        return Unplugged(av.open(f"{PICTURES},realtime", format="lavfi"), plugged)

    @contextlib.contextmanager
    def plug():
        plugged.set()
        yield
        plugged.clear()

    monkeypatch.setattr(feed_connection, "open_container", opened)
    return "/dev/video99", plug


@pytest.mark.parametrize("kind", [udp, tcp, fifo, rtsp, camera])
def test_a_feed_in_a_browser(kind, tmp_path, monkeypatch, capsys):
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    monkeypatch.setattr(feed_connection, "SILENT_SECONDS", 2.0)
    name, sender = kind(tmp_path, monkeypatch)
    checkpoint, told, status = tmp_path / "small.safetensors", [], []
    stnet.save(scrambled(SMALL), checkpoint, {})
    command = ["--live", name, "--view", "--no-files", "--reconnect", "8", "--checkpoint", str(checkpoint)]
    run = threading.Thread(target=lambda: status.append(cli.main([*command, "--device", "cpu"])), daemon=True)

    def until(what: Callable[[], object], seconds: float = 60):
        deadline = time.monotonic() + seconds
        while not (found := what()):
            told.append(capsys.readouterr().err)
            assert time.monotonic() < deadline, "".join(told)
            time.sleep(0.05)
        return found

    def url() -> str | None:
        told.append(capsys.readouterr().err)
        return next((line.split()[1] for line in "".join(told).splitlines() if line.startswith("view: ")), None)

    def state() -> str:
        return browser.js("document.getElementById('state').textContent")

    def frame() -> int:
        return int(browser.js("(document.getElementById('place').textContent.match(/frame (\\d+)/) || [0, -1])[1]"))

    with contextlib.ExitStack() as stack:
        with sender():
            run.start()
            browser = Browser(tmp_path / "browser", until(url), 1000, 700)
            stack.callback(browser.close)
            until(lambda: state() == "live" and frame() > 2)
            # Zero for the moment in which the next frame is being decoded.
            until(lambda: browser.js("document.getElementById('picture').naturalWidth") == 640)
            assert "ms" in browser.js("document.getElementById('median').textContent")
        until(lambda: state() == "lost")
        before = frame()
        with sender():
            until(lambda: state() == "live" and frame() > before)
        until(lambda: state() == "ended: lost")
        assert browser.js("document.getElementById('reason').hidden") is False
        assert browser.complaints == []
    run.join(20)
    told.append(capsys.readouterr().err)
    text = "".join(told)
    assert status == [1] and "frames come again" in text and "latency median" in text and "secret" not in text
