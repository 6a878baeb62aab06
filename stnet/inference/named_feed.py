"""The feed that a command names, and whether its options go with it."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from stnet.choices import DEFAULT_FPS
from stnet.errors import ConfigError, VideoError
from stnet.inference.names import expand_lists
from stnet.video.feed_names import FeedName, find_feed

NOT_FOR_FEEDS = {
    **dict.fromkeys(("overwrite", "full_frame", "dicom_results", "report", "skip_existing", "stills"), False),
    "dicom_key": None,
    "export": (),
    "part": (1, 1),
    "fps": DEFAULT_FPS,
}
"""Options that mean nothing where the input is a feed, and what they are where they are not given: any other value is
refused rather than ignored."""

OF_LIVE = {
    **dict.fromkeys(("view", "json_lines", "no_files", "every_frame"), False),
    "view_address": None,
    "reconnect": None,
    "delay": 0,
}
"""The same of options that mean nothing without --live."""


def the_feed(arguments: argparse.Namespace) -> FeedName | None:
    """Return the feed that is named, None where videos are; check the options of the live mode.

    Raises:
        ConfigError: options that do not go together.
        VideoError: a feed that cannot be read so.
    """
    _check_options(arguments)
    names = expand_lists(arguments.inputs)
    feeds = [feed for name in names if (feed := find_feed(name)) is not None]
    if not feeds and arguments.no_files:
        raise ConfigError("--no-files is for feeds; results of videos are written")
    if not feeds and arguments.reconnect is not None:
        raise ConfigError("--reconnect is for feeds; videos are opened once")
    if not feeds:
        return None
    feed = feeds[0]
    if not arguments.live:
        raise VideoError(f"{feed.shown}: is a feed, no file; add --live to read it")
    if len(names) > 1:
        raise VideoError(f"{feed.shown}: a feed has to be the only input")
    if feed.kind == "stdin" and sys.stdin.isatty():
        raise VideoError(
            "standard input is a terminal; send a video into it: ffmpeg ... -f mpegts - | infer.py --live -"
        )
    useless = _given(arguments, NOT_FOR_FEEDS)
    if "report" in (arguments.formats or ()):
        useless.append("report")
    if useless:
        raise ConfigError(f"--{useless[0].replace('_', '-')} does not work with a feed; it is for videos in files")
    return feed


def _given(arguments: argparse.Namespace, unset: Mapping[str, Any]) -> list[str]:
    """Return the options that have another value than where they are not given."""
    return [name for name, value in unset.items() if getattr(arguments, name) != value]


def _check_options(arguments: argparse.Namespace) -> None:
    given = _given(arguments, OF_LIVE)
    if given and not arguments.live:
        raise ConfigError(f"--{given[0].replace('_', '-')} needs --live")
    if arguments.view_address and not arguments.view:
        raise ConfigError("--view-address needs --view")
    if arguments.no_files and not (arguments.view or arguments.json_lines):
        raise ConfigError("--no-files leaves nobody to be told; add --view or --json-lines")
