"""Reading and writing video: files, DICOM, frame folders, images, arrays."""

from stnet.video.arrays import ArraySource, SpooledSource
from stnet.video.dicom import DicomFile
from stnet.video.dicom_names import write_dicom_key
from stnet.video.images import ImageSequence
from stnet.video.inputs import VideoInput, find_inputs, open_source
from stnet.video.reader import VideoFile
from stnet.video.scale import BoxSize, PixelScale, uniform_scale
from stnet.video.source import DEFAULT_FPS, Scan, VideoFrame, VideoSource
from stnet.video.stacks import ImageStack
from stnet.video.stills import find_scale, read_still, read_still_header
from stnet.video.writer import VideoWriter

__all__ = [
    "DEFAULT_FPS",
    "ArraySource",
    "BoxSize",
    "DicomFile",
    "ImageSequence",
    "ImageStack",
    "PixelScale",
    "Scan",
    "SpooledSource",
    "VideoFile",
    "VideoFrame",
    "VideoInput",
    "VideoSource",
    "VideoWriter",
    "find_inputs",
    "find_scale",
    "open_source",
    "read_still",
    "read_still_header",
    "uniform_scale",
    "write_dicom_key",
]
