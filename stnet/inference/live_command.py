"""What the command does in the live mode: who watches, and feeds."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from ipaddress import IPv4Address
from typing import TextIO

from stnet.choices import LOOPBACK
from stnet.console import Reporter
from stnet.inference.detector import VideoDetector
from stnet.inference.feed_run import FeedRun
from stnet.inference.json_lines import JsonLines
from stnet.inference.live_page import LivePage
from stnet.inference.sink import RunFacts
from stnet.inference.summary import VideoSummary, print_problems, print_summary
from stnet.inference.watching import LiveSettings, Watcher, Watchers
from stnet.video.feed_names import FeedName


@contextmanager
def live_settings(arguments: argparse.Namespace, facts: RunFacts, reporter: Reporter) -> Iterator[LiveSettings | None]:
    """Give how to play, None where videos are not to be played; whoever watches is served until the end.

    Standard output carries lines of JSON alone where these are asked for: all else goes to standard error.

    Raises:
        ConfigError: the page cannot be served.
    """
    if not arguments.live:
        yield None
        return
    watchers = Watchers(list(_watchers(arguments, facts, reporter, sys.stdout)), reporter.message)
    settings = LiveSettings(
        delay=arguments.delay,
        policy="wait" if arguments.every_frame else "drop-oldest",
        patience=arguments.reconnect,
        watchers=watchers,
    )
    try:
        if not arguments.json_lines:
            yield settings
            return
        with redirect_stdout(sys.stderr):
            yield settings
    finally:
        watchers.close()


def play_feed(
    feed: FeedName,
    arguments: argparse.Namespace,
    detector: VideoDetector,
    facts: RunFacts,
    formats: Sequence[str],
    reporter: Reporter,
) -> tuple[list[VideoSummary], bool]:
    """Play a feed until it ends; print what came of it.

    Returns:
        A row for each stretch of it, and whether all who watched could be told of all of it.
    """
    with live_settings(arguments, facts, reporter) as settings:
        written = () if arguments.no_files else tuple(formats)
        run = FeedRun(detector, feed, facts, written, arguments.mm_per_pixel, settings, reporter)
        rows = run.play()
        print_problems(rows, reporter)
        print_summary(rows, facts.score_threshold)
    return rows, not settings.watchers.broken


def _watchers(arguments: argparse.Namespace, facts: RunFacts, reporter: Reporter, output: TextIO) -> Iterator[Watcher]:
    if arguments.json_lines:
        yield JsonLines(facts, output)
    if arguments.view:
        address, port = arguments.view_address or (LOOPBACK, 0)
        page = LivePage(facts, address, port)
        if not IPv4Address(address).is_loopback:
            reporter.message(f"warning: --view-address {address} shows the pictures, unencrypted, beyond this machine")
        reporter.message(f"view: {page.url}")
        yield page
