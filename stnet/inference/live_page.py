"""A page that shows a live run in a browser: the annotated picture, lesions and latency.

It is served on this machine alone unless asked otherwise, at an address that holds a secret: other programs and pages
of the same machine can reach the port, too.
"""

import html
import io
import secrets
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

import stnet
from stnet.choices import LOOPBACK
from stnet.errors import ConfigError
from stnet.inference.draw import PALETTE, draw_marks, readable_scale
from stnet.inference.frame_marks import listed, marks_of
from stnet.inference.json_lines import lesion_in_sight
from stnet.inference.json_text import json_text
from stnet.inference.live import LiveResult
from stnet.inference.live_server import PageServer
from stnet.inference.sink import RunFacts
from stnet.inference.watching import LiveEnd, WatchedFeed, Watcher
from stnet.video.scale import PixelScale

PARTS = ("live_page.html", "live_page.css", "live_page.js")
LATENCIES_KEPT = 1000
"""The latest latencies that the page's figures are taken over."""

WAIT_SECONDS = 10.0
"""How long a request for the next picture is kept waiting."""

FAREWELL_SECONDS = 1.0
"""How long the server stays for browsers that still are to hear of the end."""

POLL_SECONDS = 0.1
"""How often the server looks whether it is to stop."""

JPEG_QUALITY = 88


class LivePage(Watcher):
    """Serves the page.

    Args:
        run: the names of classes, the score threshold, what to state about the run.
        address: IPv4 address of this machine.
        port: 0 takes a free one.

    Attributes:
        url: of the page, with its secret.

    Raises:
        ConfigError: it cannot be served there.
    """

    title = "page"

    def __init__(self, run: RunFacts, address: str = LOOPBACK, port: int = 0) -> None:
        self._run, self._changed = run, threading.Condition()
        self._state: dict[str, Any] = {"state": "waiting", "reason": ""}
        self._sequence, self._picture = 0, _Picture()
        self._scale: PixelScale | None = None
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._answers: deque[float] = deque(maxlen=50)
        self._last_asked, self._told = 0.0, -1
        token = secrets.token_urlsafe(16)
        self._page, policy = _page(run)
        try:
            self._server = PageServer((address, port), token, policy, self._page, self.next_answer)
        except OSError as error:
            raise ConfigError(
                f"the page cannot be served at {address}:{port} ({error.strerror or error}); choose another "
                "--view-address"
            ) from error
        shown = address if address != "0.0.0.0" else LOOPBACK
        self.url = f"http://{shown}:{self._server.server_address[1]}/{token}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="stnet-page", daemon=True
        )
        self._thread.start()

    def begin(self, feed: WatchedFeed) -> None:
        """Show what is played."""
        self._scale = feed.scale
        self._change(state="live", reason="", feed=feed.name, width=feed.width, height=feed.height)

    def write(self, result: LiveResult) -> None:
        """Show a frame."""
        self._latencies.append(result.latency)
        self._answers.append(time.perf_counter())
        picture = _Picture(lambda: self._drawn(result))
        self._change(
            picture,
            frame=result.index,
            time=round(result.time, 3),
            latency=round(result.latency, 5),
            dropped=result.dropped,
            lesions=[lesion_in_sight(lesion, self._scale) for lesion in result.lesions or ()],
        )

    def lost(self, reason: str) -> None:
        """Show that no frames come."""
        self._change(state="lost", reason=reason)

    def back(self) -> None:
        """Show that frames come again."""
        self._change(state="live", reason="")

    def end(self, end: LiveEnd) -> None:
        """Show how it ended; the last picture stays."""
        self._change(state="ended", reason="; ".join(end.problems), status=end.status, dropped=end.statistics.dropped)

    def close(self) -> None:
        """Stop serving, once open pages have heard of the end."""
        if self._state["state"] != "ended":
            self._change(state="ended", reason="the program was broken off", status="broken off")
        deadline = time.monotonic() + FAREWELL_SECONDS
        with self._changed:
            while self._told < self._sequence and time.monotonic() < deadline and self._watched():
                self._changed.wait(0.05)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_answer(self, after: int) -> bytes:
        """Wait for something newer than `after`; return a line of JSON, then the picture as a JPEG file, if any."""
        with self._changed:
            self._last_asked = time.monotonic()
            self._changed.wait_for(lambda: self._sequence > after, WAIT_SECONDS)
            state, picture, sequence = dict(self._state), self._picture, self._sequence
            latencies, answers = np.array(self._latencies), list(self._answers)
            self._last_asked = time.monotonic()
        state["sequence"] = sequence
        if len(latencies):
            state["latency_median"] = round(float(np.median(latencies)), 5)
            state["latency_percentile_99"] = round(float(np.percentile(latencies, 99)), 5)
        if len(answers) > 1:
            state["rate"] = round((len(answers) - 1) / max(answers[-1] - answers[0], 1e-9), 1)
        body = json_text(state).encode() + b"\n" + picture.jpeg()
        with self._changed:
            self._told = max(self._told, sequence)
            self._changed.notify_all()
        return body

    def _watched(self) -> bool:
        return time.monotonic() - self._last_asked < WAIT_SECONDS + FAREWELL_SECONDS and self._last_asked > 0

    def _change(self, picture: "_Picture | None" = None, **state: Any) -> None:
        with self._changed:
            self._state |= state
            self._picture = picture or self._picture
            self._sequence += 1
            self._changed.notify_all()

    def _drawn(self, result: LiveResult) -> np.ndarray:
        threshold = self._run.score_threshold
        marks = marks_of(listed(result, threshold), result.lesions or (), threshold)
        return draw_marks(result.image, marks, self._run.class_names, readable_scale(*result.size))


class _Picture:
    """A picture that is drawn when a browser asks for it, once."""

    def __init__(self, drawn: Callable[[], np.ndarray] | None = None) -> None:
        self._drawn, self._jpeg = drawn, b""
        self._lock = threading.Lock()

    def jpeg(self) -> bytes:
        with self._lock:
            if self._drawn is not None:
                file = io.BytesIO()
                Image.fromarray(self._drawn()).save(file, "JPEG", quality=JPEG_QUALITY)
                self._jpeg, self._drawn = file.getvalue(), None
            return self._jpeg


def _page(run: RunFacts) -> tuple[bytes, str]:
    """Return the page and its content security policy, which allows its own style and script alone."""
    page, style, script = (resources.files("stnet.inference").joinpath(name).read_text("utf-8") for name in PARTS)
    classes = [
        {"label": label, "name": name, "colour": f"rgb{PALETTE[(label - 1) % len(PALETTE)]}"}
        for label, name in run.class_names.items()
    ]
    facts = {**run.shown, "Version": stnet.__version__}
    data = json_text({"classes": classes, "facts": facts, "threshold": run.score_threshold}).replace("<", "\\u003c")
    page = page.replace("{{style}}", style).replace("{{script}}", script).replace("{{data}}", data)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.replace("{{title}}", html.escape("stnet live")).encode(), policy


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
