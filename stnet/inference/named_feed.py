"""The feed that a command names, and whether its options go with it."""

import argparse
import sys

from stnet.errors import ConfigError, VideoError
from stnet.inference.names import expand_lists
from stnet.video.feed_names import FeedName, find_feed

NOT_FOR_FEEDS = ("overwrite", "full_frame", "dicom_key", "dicom_results", "report", "export", "skip_existing", "stills")
"""Options that mean nothing where the input is a feed: it is refused rather than ignored."""


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
    useless = [name for name in NOT_FOR_FEEDS if getattr(arguments, name)]
    if "report" in (arguments.formats or ()):
        useless.append("report")
    if useless:
        raise ConfigError(f"--{useless[0].replace('_', '-')} does not work with a feed; it is for videos in files")
    return feed


def _check_options(arguments: argparse.Namespace) -> None:
    given = [
        name
        for name in ("view", "view_address", "json_lines", "no_files", "every_frame", "reconnect")
        if getattr(arguments, name) not in (None, False)
    ]
    if given and not arguments.live:
        raise ConfigError(f"--{given[0].replace('_', '-')} needs --live")
    if arguments.view_address and not arguments.view:
        raise ConfigError("--view-address needs --view")
    if arguments.no_files and not (arguments.view or arguments.json_lines):
        raise ConfigError("--no-files leaves nobody to be told; add --view or --json-lines")
