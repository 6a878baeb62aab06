"""The formats that results are written in. A new one is a file with a `Sink`, and its name in `format_names.py`."""

from stnet.inference.annotated_picture import AnnotatedPicture
from stnet.inference.annotated_video import AnnotatedVideo
from stnet.inference.annotation_files import CocoFiles, CvatFiles, LabelStudioFiles, YoloFiles
from stnet.inference.csv_results import CsvResults
from stnet.inference.dicom_results import DicomResults
from stnet.inference.explained_pictures import ExplainedPictures
from stnet.inference.format_names import DICOM, EXPLAINED, EXPORT_NAMES, FORMAT_NAMES
from stnet.inference.json_results import JsonResults
from stnet.inference.lesion_results import LesionTable
from stnet.inference.page import ReportSection
from stnet.inference.sink import Sink

FORMATS: dict[str, type[Sink]] = dict(
    zip(
        FORMAT_NAMES,
        (JsonResults, CsvResults, LesionTable, AnnotatedVideo, AnnotatedPicture, ReportSection),
        strict=True,
    )
)

EXPORT_FORMATS: dict[str, type[Sink]] = dict(
    zip(EXPORT_NAMES, (CocoFiles, CvatFiles, LabelStudioFiles, YoloFiles), strict=True)
)

SINKS = FORMATS | EXPORT_FORMATS | {EXPLAINED: ExplainedPictures, DICOM: DicomResults}

PER_VIDEO = tuple(sink.file_name for sink in SINKS.values())
