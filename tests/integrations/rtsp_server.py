"""An RTSP server of H.264 on the loopback address, for the system's Python: `rtsp_server.py PORT`."""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PICTURES = "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=128,height=96,framerate=10/1 "
CODED = "! openh264enc gop-size=5 ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )"

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(PICTURES + CODED)
server.get_mount_points().add_factory("/scanner", factory)
server.attach(None)
GLib.MainLoop().run()
