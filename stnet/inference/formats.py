"""The formats that results are written in. A new one is a file with a `Sink`, and its name here."""

from stnet.inference.annotated_video import AnnotatedVideo
from stnet.inference.csv_results import CsvResults
from stnet.inference.json_results import JsonResults
from stnet.inference.page import ReportPage
from stnet.inference.sink import Sink

FORMATS: dict[str, type[Sink]] = {
    "json": JsonResults,
    "csv": CsvResults,
    "video": AnnotatedVideo,
    "report": ReportPage,
}

DEFAULT_FORMATS = ("json", "csv", "video")

PER_VIDEO = tuple(sink.file_name for sink in FORMATS.values() if not sink.once)
PER_RUN = tuple(sink.file_name for sink in FORMATS.values() if sink.once)
