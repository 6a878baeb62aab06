"""The server of the live page: few connections, each with a time limit, and nothing without the secret."""

import secrets
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stnet.choices import LOOPBACK

IDLE_SECONDS = 30
"""After which a connection on which nothing is asked is closed."""

MAX_CONNECTIONS = 32


class PageServer(ThreadingHTTPServer):
    """Serves one page, and what it asks for next, to whoever knows a secret.

    Args:
        address: IPv4 address and port.
        token: the secret, first in every path.
        policy: content security policy of the page.
        page: the page.
        next_answer: gives what comes after a number.

    Raises:
        OSError: nothing can be served there.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(
        self, address: tuple[str, int], token: str, policy: str, page: bytes, next_answer: Callable[[int], bytes]
    ) -> None:
        self.token, self.policy, self.page, self.next_answer = token, policy, page, next_answer
        self._room = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)
        name, port = address[0], self.server_address[1]
        local = (LOOPBACK, "localhost") if ip_address(name).is_loopback else ()
        self.hosts = {f"{host}:{port}" for host in (name, *local)} if local else None

    def server_bind(self) -> None:
        """Bind, without asking the network for the machine's name as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection if there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on a connection, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer with the page, or with what comes next."""
        # Pages elsewhere may have a name of their own point here; they do not know the secret, but cannot guess on.
        host = self.headers.get("Host", "")
        parts = urlsplit(self.path)
        _, _, rest = parts.path.partition("/")
        token, _, name = rest.partition("/")
        known = secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if not known or (self.server.hosts is not None and host not in self.server.hosts):
            return self._answer(404, "text/plain", b"not found\n")
        if name == "":
            return self._answer(200, "text/html; charset=utf-8", self.server.page)
        if name == "next":
            return self._answer(200, "application/octet-stream", self.server.next_answer(_after(parts.query)))
        return self._answer(404, "text/plain", b"not found\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response_only(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", self.server.policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: addresses hold the secret."""


def _after(query: str) -> int:
    try:
        return int(parse_qs(query)["after"][0])
    except (KeyError, ValueError):
        return -1
