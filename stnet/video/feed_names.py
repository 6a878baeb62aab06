"""What a user names as a feed: a camera, an address in a network, a pipe. Passwords in addresses are never repeated."""

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from stnet.errors import VideoError

Kind = Literal["camera", "rtsp", "udp", "tcp", "fifo", "stdin"]

CAMERA_MAJOR = 81
"""Number of Linux's device files for cameras and frame grabbers (Video4Linux)."""

SCHEMES = ("rtsp", "udp", "tcp")


@dataclass(frozen=True, kw_only=True)
class FeedName:
    """A feed as the user named it.

    Attributes:
        kind: how it is opened.
        place: where: a path or an address, passwords and all; empty for standard input.
        shown: the same for messages and results.
        name: a short one that is fit for a folder.
    """

    kind: Kind
    place: str = field(repr=False)
    shown: str
    name: str

    @property
    def waits(self) -> bool:
        """Whether the sender waits for its reader, so that nothing passes while nobody reads."""
        return self.kind in ("tcp", "fifo", "stdin")


def find_feed(name: str) -> FeedName | None:
    """Return the feed that a name stands for, None where it stands for none.

    Raises:
        VideoError: an address that cannot be read from.
    """
    if name == "-":
        return FeedName(kind="stdin", place="", shown="standard input", name="stdin")
    if "://" in name:
        return _address(name)
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        is_camera = re.fullmatch(r"/dev/video\d+", name) is not None  # not plugged in yet
    else:
        if stat.S_ISFIFO(found.st_mode):
            return FeedName(kind="fifo", place=name, shown=name, name=_fit(os.path.basename(name)))
        is_camera = stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == CAMERA_MAJOR
    return FeedName(kind="camera", place=name, shown=name, name=_fit(os.path.basename(name))) if is_camera else None


def without_secrets(address: str) -> str:
    """Return an address without what may be a password: user, query and fragment. Other names stay as they are."""
    if "://" not in address:
        return address
    scheme, _, rest = address.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.rpartition('@')[2]}"


def _address(name: str) -> FeedName | None:
    scheme, shown = name.partition("://")[0].lower(), without_secrets(name)
    if scheme not in SCHEMES:
        return None
    try:
        parts, port = urlsplit(name), urlsplit(name).port
    except ValueError as error:
        raise VideoError(f"{shown}: is no address ({error})") from error
    if scheme == "rtsp":
        if not parts.hostname:
            raise VideoError(f"{shown}: names no host; expected rtsp://HOST[:PORT]/PATH")
        return FeedName(kind="rtsp", place=name, shown=shown, name=_fit(f"rtsp-{parts.hostname}"))
    if port is None or port == 0:
        raise VideoError(f"{shown}: names no port; expected {scheme}://HOST:PORT")
    if parts.path.strip("/") or parts.fragment or parts.username:
        raise VideoError(f"{shown}: expected {scheme}://HOST:PORT and nothing else")
    place = _udp(parts, port, shown) if scheme == "udp" else _tcp(parts, port, shown)
    return FeedName(kind=scheme, place=place, shown=shown, name=f"{scheme}-{port}")


def _udp(parts: SplitResult, port: int, shown: str) -> str:
    if parts.query:
        raise VideoError(f"{shown}: expected udp://HOST:PORT, of this machine or of a multicast group, or udp://:PORT")
    if not parts.hostname:
        return f"udp://:{port}"
    # FFmpeg alone would listen at all addresses of the machine, whichever was named. For a group that is the way.
    group = re.match(r"2(2[4-9]|3\d)\.|ff", parts.hostname)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"udp://{host}:{port}" + ("" if group else f"?localaddr={parts.hostname}")


def _tcp(parts: SplitResult, port: int, shown: str) -> str:
    if parts.query not in ("", "listen", "listen=1") or not parts.hostname:
        raise VideoError(
            f"{shown}: expected tcp://HOST:PORT, or tcp://HOST:PORT?listen to wait at an address of this machine"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"tcp://{host}:{port}" + ("?listen=1" if parts.query else "")


def _fit(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "feed"
