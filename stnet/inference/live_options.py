"""The options of the live mode: nothing that computes is imported for them."""

import argparse
import re
from ipaddress import AddressValueError, IPv4Address

from stnet.choices import FEED_PATIENCE, LOOPBACK


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the live mode to a parser."""
    add = parser.add_argument_group("live mode").add_argument
    add(
        "--live",
        action="store_true",
        help="answer frames as they come: of the one feed that INPUT names (a camera such as /dev/video0, rtsp://, "
        "udp:// or tcp://, a named pipe, or - for standard input), or of videos, played at their frame rate",
    )
    add("--delay", type=int, choices=(0, 1), default=0, help="frames of delay in live mode (default: %(default)s)")
    add(
        "--view",
        action="store_true",
        help="show the annotated picture, lesions and latency on a page for a browser of this machine",
    )
    add(
        "--view-address",
        type=_address,
        metavar="IP[:PORT]",
        help="serve the page of --view there instead, unencrypted, to whoever can reach it and knows its address "
        f"(default: {LOOPBACK} and a free port)",
    )
    add(
        "--json-lines",
        action="store_true",
        help="write a line of JSON for each frame to standard output, as soon as it is answered",
    )
    add("--no-files", action="store_true", help="write no results to --output: with --view or --json-lines")
    add(
        "--every-frame",
        action="store_true",
        help="let the feed wait rather than drop frames: for recordings that come through a pipe",
    )
    add(
        "--reconnect",
        type=_seconds,
        metavar="S",
        help="seconds that a feed which is not there, or no more, is waited for "
        f"(default: {FEED_PATIENCE:g}; a pipe that its sender closes has ended, unless this is given)",
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.replace("localhost", LOOPBACK).partition(":")
    try:
        IPv4Address(host)
    except AddressValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an IPv4 address such as 192.168.1.5:8080") from error
    if colon and not (re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r}: a port lies between 1 and 65535")
    return host, int(port or 0)


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value
