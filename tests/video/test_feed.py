"""Feeds: what names one, frames in order as they arrive, loss and return, and senders that mean harm."""

import io
import os
import socket
import threading
import time
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from stnet.errors import VideoError
from stnet.video import feed as feeds
from stnet.video import feed_connection, feed_pipe
from stnet.video.feed import Feed
from stnet.video.feed_names import find_feed, without_secrets
from tests.video.feed_senders import free_port, named_pipe, noise, picture, recorded, send, sending

pytestmark = [pytest.mark.timeout(60), pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(feed_connection, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(feed_connection, "OPENING_SECONDS", (0.4, 10.0))
    monkeypatch.setattr(feeds, "PAUSE_SECONDS", 0.05)


class Heard(list):
    """What a feed tells between frames."""

    def feed(self, name, patience: float | None = None) -> Feed:
        return Feed(find_feed(str(name)), patience=patience, on_lost=self.append, on_back=lambda: self.append("back"))


def numbers(frames) -> list[int]:
    """The numbers of pictures that frames show."""
    return [round((int(frame.image[10:-10, 10:-10].mean()) - 30) / 4) for frame in frames]


def write(pipe: Path, data: bytes, pause: float = 0.0, more: bytes = b"") -> threading.Thread:
    """Write to a named pipe in a thread."""

    def run() -> None:
        try:
            with open(pipe, "wb", buffering=0) as file:
                file.write(data)
                time.sleep(pause)
                file.write(more)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("name", "kind", "place", "shown"),
    [
        ("-", "stdin", "", "standard input"),
        ("/dev/video7", "camera", "/dev/video7", "/dev/video7"),
        ("rtsp://u:secret@host:8554/a/b?key=1", "rtsp", "rtsp://u:secret@host:8554/a/b?key=1", "rtsp://host:8554/a/b"),
        ("RTSP://host/x", "rtsp", "RTSP://host/x", "RTSP://host/x"),
        ("udp://127.0.0.1:5000", "udp", "udp://127.0.0.1:5000?localaddr=127.0.0.1", "udp://127.0.0.1:5000"),
        ("udp://:5000", "udp", "udp://:5000", "udp://:5000"),
        ("udp://239.1.2.3:5000", "udp", "udp://239.1.2.3:5000", "udp://239.1.2.3:5000"),
        ("tcp://host:5000?listen", "tcp", "tcp://host:5000?listen=1", "tcp://host:5000"),
    ],
)
def test_names(name, kind, place, shown):
    found = find_feed(name)
    assert (found.kind, found.place, found.shown) == (kind, place, shown)
    assert "secret" not in repr(found) + found.name and "/" not in found.name


@pytest.mark.parametrize(
    "name", ["udp://host", "udp://host:5000/x", "udp://host:5000?fifo_size=9", "tcp://:5", "rtsp:///x", "tcp://h:x"]
)
def test_addresses_that_cannot_be_read(name):
    with pytest.raises(VideoError, match=name.partition("?")[0]):
        find_feed(name)


def test_other_names_are_no_feeds(tmp_path):
    (tmp_path / "clip.mp4").touch()
    names = [tmp_path / "clip.mp4", tmp_path, "missing.mp4", "http://host/x", "/dev/null", "a*.png", "x\0y"]
    assert [find_feed(str(name)) for name in names] == [None] * len(names)


def test_secrets_are_cut_out():
    assert without_secrets("http://u:p@ss@host/a@b?c=d#e") == "http://host/b"
    assert without_secrets("a@b.mp4") == "a@b.mp4"


def test_a_pipe_gives_every_frame_and_its_end(tmp_path):
    pipe, heard = named_pipe(tmp_path), Heard()
    write(pipe, recorded(tmp_path, 30))
    feed = heard.feed(pipe)
    feed.start()
    assert (feed.format.height, feed.format.width, feed.format.fps) == (48, 64, 25)
    with feed.passing_by():
        pass  # nothing passes: a pipe waits
    frames = list(feed.frames())
    assert numbers(frames) == list(range(30)) and [frame.index for frame in frames] == list(range(30))
    assert frames[0].time == 0 and all(b.time >= a.time for a, b in pairwise(frames))
    assert feed.format is None and not feed.lost and feed.take_troubles().told() == () and heard == []


def test_a_feed_is_closed_only_when_its_reader_has_left_it(tmp_path, monkeypatch):
    inside, closed = [], []
    read, close = feed_connection.FeedConnection.next_image, feed_connection.FeedConnection.close

    def noted_read(self):
        inside.append(self)
        try:
            return read(self)
        finally:
            inside.pop()

    def noted_close(self):
        closed.append(bool(inside))  # FFmpeg would go on in memory that is gone
        close(self)

    monkeypatch.setattr(feed_connection.FeedConnection, "next_image", noted_read)
    monkeypatch.setattr(feed_connection.FeedConnection, "close", noted_close)
    write(pipe := named_pipe(tmp_path), recorded(tmp_path, 60), pause=20)
    feed = Heard().feed(pipe, patience=30)
    feed.start()
    reader = threading.Thread(target=lambda: list(feed.frames()), daemon=True)
    reader.start()
    time.sleep(0.2)
    while reader.is_alive() and not inside:  # at the end it waits for what the sender does not send
        time.sleep(0.01)
    feed.close()
    reader.join(10)
    assert closed == [False] and not reader.is_alive()


def test_a_pipe_is_opened_again_where_that_is_asked_for(tmp_path):
    pipe, heard = named_pipe(tmp_path), Heard()
    first, second = recorded(tmp_path, 12), recorded(tmp_path, 12, first=30)
    write(pipe, first)
    feed, got = heard.feed(pipe, patience=1.5), []
    feed.start()
    for frame in feed.frames():
        got.append(frame)
        if len(got) == 12:
            write(pipe, second)
    assert numbers(got) == [*range(12), *range(30, 42)] and [frame.index for frame in got] == list(range(24))
    assert heard == ["its sender closed it", "back", "its sender closed it"] and feed.lost
    assert [text.partition(" ")[0] for text in feed.take_troubles().told()] == ["lost", "lost"]


def test_udp_frames_pass_while_nobody_looks(impatient):
    port, heard = free_port("udp"), Heard()
    feed = heard.feed(f"udp://127.0.0.1:{port}", patience=1)
    with sending(f"udp://127.0.0.1:{port}?pkt_size=1316", rate=100):
        feed.start()
        with feed.passing_by():
            time.sleep(0.3)
        got = []
        for frame in feed.frames():
            got.append(frame)
            if len(got) == 5:
                break
        assert [frame.index for frame in got] == list(range(5)) and got[-1].time < 0.2
    list(feed.frames())
    assert feed.lost and heard == ["no data for 0.4 s"]


def test_a_sender_that_connects(tmp_path):
    port = free_port()
    feed = Heard().feed(f"tcp://127.0.0.1:{port}?listen", patience=10)

    def connect() -> None:
        for _ in range(100):
            time.sleep(0.05)
            with suppress(OSError):  # nobody listens yet
                send(f"tcp://127.0.0.1:{port}", 20, rate=0)
                break

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    feed.start()
    first = [frame for _, frame in zip(range(20), feed.frames(), strict=False)]
    assert numbers(first) == list(range(20))
    feed.close()
    thread.join(5)


def test_a_size_that_changes_ends_the_frames_of_one_format(tmp_path):
    pipe = named_pipe(tmp_path)
    write(pipe, recorded(tmp_path, 12), 0.0, recorded(tmp_path, 12, height=64, width=80))
    feed = Heard().feed(pipe)
    feed.start()
    formats = []
    while feed.format is not None:
        formats.append((feed.format.height, feed.format.width, len(list(feed.frames()))))
    assert formats == [(48, 64, 12), (64, 80, 12)]


def test_a_size_that_changes_all_the_time_is_given_up(tmp_path):
    pipe = named_pipe(tmp_path)
    parts = [recorded(tmp_path, 3, height=48 + 16 * (turn % 2)) for turn in range(10)]
    write(pipe, b"".join(parts))
    feed = Heard().feed(pipe)
    with pytest.raises(VideoError, match="changes the size"):
        feed.start()
        while feed.format is not None:
            list(feed.frames())


@pytest.mark.parametrize("data", [b"", b"no video at all", os.urandom(4096), b"#EXTM3U\nfile:///etc/passwd\n"])
def test_what_is_no_video_gives_an_error_in_time(tmp_path, impatient, data):
    pipe = named_pipe(tmp_path)
    write(pipe, data)
    began = time.monotonic()
    with pytest.raises(VideoError, match="gives no frame"):
        Heard().feed(pipe, patience=0.3).start()
    assert time.monotonic() - began < 20


def test_a_sender_without_frames_is_not_listened_to_for_ever(tmp_path, monkeypatch, impatient):
    monkeypatch.setattr(feeds, "MAX_PACKET", 2**16)
    pipe = named_pipe(tmp_path)
    # A header of Matroska whose one element has no end.
    endless = bytes.fromhex("1a45dfa3 01ffffffffffffff".replace(" ", "")) + bytes(2**20)
    write(pipe, endless)
    with pytest.raises(VideoError, match="gives no frame"):
        Heard().feed(pipe, patience=0.3).start()


def test_a_pipe_whose_sender_falls_silent(tmp_path, impatient):
    pipe, heard = named_pipe(tmp_path), Heard()
    write(pipe, recorded(tmp_path, 20), pause=30)
    feed = heard.feed(pipe, patience=0.3)
    feed.start()
    assert 10 <= len(list(feed.frames())) <= 20 and feed.lost
    assert heard == ["no data for 0.3 s"]


def test_damage_is_counted(tmp_path):
    data = bytearray(recorded(tmp_path, 20, height=96, width=128, show=noise))
    middle = len(data) // 376 * 188
    data[middle : middle + 6 * 188] = os.urandom(6 * 188)
    pipe = named_pipe(tmp_path)
    write(pipe, bytes(data))
    feed = Heard().feed(pipe)
    feed.start()
    assert len(list(feed.frames())) > 15
    troubles = feed.take_troubles()
    assert troubles.damaged + troubles.failed > 0 and troubles.told()


@pytest.fixture
def standard_input(tmp_path, monkeypatch):
    """Has a feed read bytes from standard input; `read` stands for the system's call, and gets its number first."""
    with ExitStack() as stack:

        def feed(data: bytes, read=lambda number, *arguments: os.read(*arguments)) -> Feed:
            (tmp_path / "stdin").write_bytes(data)
            calls = count(1)
            monkeypatch.setattr("sys.stdin", stack.enter_context(open(tmp_path / "stdin")))
            monkeypatch.setattr(feed_pipe, "os", SimpleNamespace(read=lambda *given: read(next(calls), *given)))
            return Feed(find_feed("-"))

        yield feed


@pytest.mark.parametrize("good", [1, 9])
def test_packets_that_fail_after_the_last_frame_are_counted(standard_input, good):
    made = io.BytesIO()
    with av.open(made, "w", format="nut") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for number in range(12):
            for packet in stream.encode(av.VideoFrame.from_ndarray(noise(number, 48, 64), format="rgb24")):
                sent = packet if number < good else av.Packet(bytes(500))
                sent.stream, sent.pts, sent.dts, sent.time_base = stream, number, number, Fraction(1, 25)
                output.mux(sent)
    feed = standard_input(made.getvalue())
    feed.start()
    assert len(list(feed.frames())) == good
    assert feed.take_troubles().told() == (f"{12 - good} packets could not be decoded",)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), ValueError("no"), MemoryError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("call", [1, 2, 9])
def test_a_reading_that_fails_is_no_end(tmp_path, standard_input, error, call):
    def read(number: int, *arguments) -> bytes:
        if number == call:
            raise error
        return os.read(*arguments)

    feed = standard_input(recorded(tmp_path, 100, show=noise), read)
    with pytest.raises(type(error)) as caught:
        feed.start()
        list(feed.frames())
    assert caught.value is error


def test_a_pipe_that_trickles(tmp_path, standard_input):
    def read(number: int, descriptor: int, size: int) -> bytes:
        if number % 3 == 0:
            raise BlockingIOError  # nothing there, though `select` said so
        return os.read(descriptor, 1 + number % 400)

    feed = standard_input(recorded(tmp_path, 30), read)
    feed.start()
    assert numbers(feed.frames()) == list(range(30)) and not feed.take_troubles().told()


def test_streams_that_appear_on_the_way(tmp_path, standard_input):
    data = bytearray(recorded(tmp_path, 100, show=noise))
    late = len(data) // 188 * 9 // 10 * 188
    for at in range(late, len(data), 188):
        data[at + 13 : at + 188] = bytes(175)  # tables, too: they seem to name other streams
    feed = standard_input(bytes(data))
    feed.start()
    assert 80 < len(list(feed.frames())) < 100


def test_a_connection_that_is_refused_names_no_password():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        name = f"rtsp://user:secret@127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(VideoError, match="Connection refused") as caught:
            Heard().feed(name, patience=0).start()
    assert "secret" not in str(caught.value)


def test_stopping_ends_a_wait(tmp_path):
    feed = Heard().feed(named_pipe(tmp_path), patience=60)
    threading.Timer(0.2, feed.stop, ["enough"]).start()
    began = time.monotonic()
    feed.start()
    assert feed.format is None and list(feed.frames()) == [] and time.monotonic() - began < 20
    assert feed.stopped == "enough"


def test_frames_too_large_are_refused(tmp_path, monkeypatch):
    pipe = named_pipe(tmp_path)
    write(pipe, recorded(tmp_path, 20))
    monkeypatch.setattr("stnet.video.source.MAX_PIXELS", 100)
    with pytest.raises(VideoError, match="exceed"):
        Heard().feed(pipe).start()


def test_pictures_tell_their_numbers():
    assert np.unique(picture(7, 4, 4)).tolist() == [58]
