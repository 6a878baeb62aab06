"""Lesions as a DICOM Structured Report: TID 1500, "Measurement Report", by highdicom (extra `dicom-results`).

A first group tells the frames that were looked at, and how many lesions were found. Each lesion has two groups under
one tracking identifier: its box in its best frame, with sizes and scores, and all frames in which it was found.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import stnet
from stnet.console import printable
from stnet.errors import ConfigError
from stnet.inference.dicom_source import UTF_8, copy_reference
from stnet.inference.frame_results import class_name
from stnet.lesions import Lesion
from stnet.lesions.sizes import sizes_of
from stnet.video.scale import PixelScale

SCHEME = "99STNET"
"""The coding scheme of what no public one has a code for: classes, and scores by class."""

LONGEST_MEANING = 64
"""Characters of a code's meaning."""

SERIES_NUMBER = 9001


def import_highdicom() -> ModuleType:
    """Return highdicom.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import highdicom
        import highdicom.coding_schemes
        import highdicom.sr
    except ImportError as error:
        raise ConfigError(
            "writing DICOM results needs highdicom, which is not installed: pip install 'stnet[dicom-results]'"
        ) from error
    # What it says of a data set may quote the patient; at every use, as `import_pydicom` has it.
    logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
    return highdicom


class LesionReport:
    """Makes the report of one video.

    Args:
        reference: the source, as `read_reference` gives it.
        class_names: by label.
        parameters: what the algorithm was run with, by name.
        scale: the size of pixels, None where it is unknown.
        size: height, width of the source's frames; the standard has no place for what lies beyond.
    """

    def __init__(
        self,
        reference: Any,
        class_names: dict[int, str],
        parameters: dict[str, Any],
        scale: PixelScale | None,
        size: tuple[int, int],
    ) -> None:
        self._highdicom = import_highdicom()
        self._sr = self._highdicom.sr
        self._reference, self._names, self._scale, self._size = reference, class_names, scale, size
        stated = [printable(f"{name}: {value}") for name, value in parameters.items()]
        self._algorithm = self._sr.AlgorithmIdentification("stnet", stnet.__version__, parameters=stated)

    def write(self, path: Path, lesions: Sequence[Lesion], numbers: dict[int, int]) -> None:
        """Write the report.

        Args:
            path: the file.
            lesions: of the video.
            numbers: of frames in the file, from 1, by their index in the video.
        """
        groups = [self._video(lesions, numbers)]
        groups += [group for lesion in lesions for group in self._groups(lesion, numbers)]
        scheme = self._highdicom.coding_schemes.CodingSchemeIdentificationItem(
            SCHEME, name="stnet", responsible_organization="stnet"
        )
        report = self._sr.ComprehensiveSR(
            evidence=[self._evidence()],
            content=self._sr.MeasurementReport(
                observation_context=self._observer(),
                procedure_reported=self._codes.SCT.UltrasonographyOfBreast,
                imaging_measurements=groups,
                title=self._codes.DCM.ImagingMeasurementReport,
            ),
            series_instance_uid=self._highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=self._highdicom.UID(),
            instance_number=1,
            manufacturer="stnet",
            manufacturer_model_name="stnet",
            software_versions=stnet.__version__,
            series_description="Lesions found by software, unverified",
            is_complete=True,
            coding_schemes=[scheme],
        )
        report.save_as(path, enforce_file_format=True)

    @property
    def _codes(self) -> Any:
        from pydicom.sr.codedict import codes

        return codes

    def _evidence(self) -> Any:
        from pydicom import Dataset

        evidence = Dataset()
        copy_reference(self._reference, evidence)
        evidence.SpecificCharacterSet = UTF_8
        for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "NumberOfFrames"):
            setattr(evidence, keyword, self._reference.get(keyword))
        return evidence

    def _observer(self) -> Any:
        from pydicom.uid import generate_uid

        device = self._sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["stnet", stnet.__version__]),
            name="stnet",
            manufacturer_name="stnet",
            model_name=f"stnet {stnet.__version__}",
        )
        observer = self._sr.ObserverContext(self._codes.DCM.Device, device)
        return self._sr.ObservationContext(observer_device_context=observer)

    def _video(self, lesions: Sequence[Lesion], numbers: dict[int, int]) -> Any:
        title = self._code("lesions", "Lesions found")
        return self._sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._sr.TrackingIdentifier(uid=self._highdicom.UID(), identifier="Video"),
            algorithm_id=self._algorithm,
            measurements=[self._sr.Measurement(title, float(len(lesions)), self._codes.UCUM.NoUnits)],
            source_images=self._images(numbers, sorted(numbers)),
        )

    def _groups(self, lesion: Lesion, numbers: dict[int, int]) -> list[Any]:
        sr, codes = self._sr, self._codes
        tracking = sr.TrackingIdentifier(uid=self._highdicom.UID(), identifier=f"Lesion {lesion.number}")
        common = {
            "tracking_identifier": tracking,
            "finding_type": codes.SCT.Lesion,
            "algorithm_id": self._algorithm,
            "qualitative_evaluations": [
                sr.QualitativeEvaluation(
                    self._code("class", "Class with the highest score"),
                    self._code(f"class-{lesion.label}", class_name(self._names, lesion.label)),
                )
            ],
        }
        height, width = self._size
        x0, y0, x1, y1 = np.clip(lesion.boxes[lesion.best], 0, [width, height, width, height]).tolist()
        best = self._frames(numbers, [lesion.best_frame])
        region = sr.ImageRegion(
            graphic_type=sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]),
            source_image=sr.SourceImageForRegion(*self._image, best),
        )
        found = self._images(numbers, lesion.frames[lesion.found].tolist())
        count = sr.Measurement(codes.DCM.NumberOfFrames, float(lesion.frame_count), codes.UCUM.NoUnits)
        return [
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=region, measurements=self._measurements(lesion), **common
            ),
            sr.MeasurementsAndQualitativeEvaluations(source_images=found, measurements=[count], **common),
        ]

    @property
    def _image(self) -> tuple[str, str]:
        return self._reference.SOPClassUID, self._reference.SOPInstanceUID

    def _images(self, numbers: dict[int, int], frames: Sequence[int]) -> list[Any]:
        return [self._sr.SourceImageForMeasurementGroup(*self._image, self._frames(numbers, frames))]

    def _frames(self, numbers: dict[int, int], frames: Sequence[int]) -> list[int] | None:
        """Return the numbers of frames; None for a file of one frame, which are not told."""
        return None if int(self._reference.NumberOfFrames) == 1 else [numbers[frame] for frame in frames]

    def _measurements(self, lesion: Lesion) -> list[Any]:
        measurement, codes = self._sr.Measurement, self._codes
        told = [measurement(codes.DCM.CertaintyOfFinding, round(100 * lesion.score, 2), codes.UCUM.Percent)]
        for label, score in enumerate(lesion.class_scores.tolist(), start=1):
            name = self._code(f"score-{label}", f"Score for {class_name(self._names, label)}")
            told.append(measurement(name, round(score, 4), codes.UCUM.NoUnits))
        (size,) = sizes_of(lesion.boxes[[lesion.best]], self._scale)
        titles = (codes.SCT.Width, codes.DCM.Height, codes.SCT.Depth)
        for title, value in zip(titles, size or (), strict=False):
            if value is not None:
                told.append(measurement(title, value, codes.UCUM.Millimeter))
        return told

    def _code(self, value: str, meaning: str) -> Any:
        return self._sr.CodedConcept(
            value=value, scheme_designator=SCHEME, meaning=printable(meaning)[:LONGEST_MEANING]
        )
