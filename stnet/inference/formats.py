"""The formats that results are written in. A new one is a file with a `Sink`, and a name in `format_names.py`."""

from stnet.inference.annotated_picture import AnnotatedPicture
from stnet.inference.annotated_video import AnnotatedVideo
from stnet.inference.annotation_files import CocoFiles, CvatFiles, LabelStudioFiles, YoloFiles
from stnet.inference.csv_results import CsvResults
from stnet.inference.dicom_results import DicomResults
from stnet.inference.explained_pictures import ExplainedPictures
from stnet.inference.format_names import DICOM, EXPLAINED
from stnet.inference.json_results import JsonResults
from stnet.inference.lesion_results import LesionTable
from stnet.inference.page import ReportSection
from stnet.inference.sink import Sink

FORMATS: dict[str, type[Sink]] = {
    "json": JsonResults,
    "csv": CsvResults,
    "lesions": LesionTable,
    "video": AnnotatedVideo,
    "picture": AnnotatedPicture,
    "report": ReportSection,
}

EXPORT_FORMATS: dict[str, type[Sink]] = {
    "coco-vid": CocoFiles,
    "cvat": CvatFiles,
    "label-studio": LabelStudioFiles,
    "yolo": YoloFiles,
}

SINKS = FORMATS | EXPORT_FORMATS | {EXPLAINED: ExplainedPictures, DICOM: DicomResults}

PER_VIDEO = tuple(sink.file_name for sink in SINKS.values())
