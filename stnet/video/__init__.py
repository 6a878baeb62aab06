"""Reading and writing video: files, DICOM, frame folders, images, arrays."""

from stnet.lazy import lazy

_HOMES = {
    "ArraySource": "stnet.video.arrays",
    "BoxSize": "stnet.video.scale",
    "DEFAULT_FPS": "stnet.choices",
    "DicomFile": "stnet.video.dicom",
    "ImageSequence": "stnet.video.images",
    "ImageStack": "stnet.video.stacks",
    "PixelScale": "stnet.video.scale",
    "Scan": "stnet.video.source",
    "SpooledSource": "stnet.video.arrays",
    "VideoFile": "stnet.video.reader",
    "VideoFrame": "stnet.video.source",
    "VideoInput": "stnet.video.inputs",
    "VideoSource": "stnet.video.source",
    "VideoWriter": "stnet.video.writer",
    "find_inputs": "stnet.video.inputs",
    "find_scale": "stnet.video.stills",
    "open_source": "stnet.video.inputs",
    "read_still": "stnet.video.stills",
    "read_still_header": "stnet.video.stills",
    "uniform_scale": "stnet.video.scale",
    "write_dicom_key": "stnet.video.dicom_names",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
