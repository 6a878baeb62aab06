"""Whose DICOM file it is: what results for other systems repeat of it, and nothing else here ever reads.

A result that an archive takes in has to name the patient, the study and the images that it is about.
"""

from pathlib import Path
from typing import Any

from stnet.errors import VideoError
from stnet.video.dicom_header import hiding_contents, import_pydicom

IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
"""Without these nothing can refer to a file."""

PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
DESCRIPTIONS = ("IssuerOfPatientID", "PatientAge", "StudyDescription", "PatientOrientation", "Laterality")

UTF_8 = "ISO_IR 192"


def read_reference(path: Path, name: str) -> Any:
    """Return the patient, the study and the identifiers of a DICOM file, as a pydicom data set in UTF-8.

    What a file has to state and does not is empty; dates, times and sexes that are none are, too.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        VideoError: it cannot be read, or has no identifiers.
    """
    pydicom = import_pydicom(name)
    keywords = (*IDENTIFIERS, *PATIENT, *STUDY, *DESCRIPTIONS)
    with hiding_contents(name, "its patient and study cannot be read"):
        tags = ["SpecificCharacterSet", "NumberOfFrames", *keywords]
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
        found.decode()
        missing = [keyword for keyword in IDENTIFIERS if not pydicom.uid.UID(str(found.get(keyword, ""))).is_valid]
        if missing:
            raise VideoError(f"{name}: states no usable {', '.join(missing)}, so no DICOM result can refer to it")
        reference = pydicom.Dataset()
        reference.SpecificCharacterSet = UTF_8
        reference.NumberOfFrames = found.get("NumberOfFrames") or 1
        for keyword in (*IDENTIFIERS, *PATIENT, *STUDY):
            setattr(reference, keyword, _usable(keyword, found.get(keyword)))
        for keyword in DESCRIPTIONS:
            if found.get(keyword):
                setattr(reference, keyword, found.get(keyword))
        return reference


def _usable(keyword: str, value: Any) -> Any:
    """Return a value, or an empty one where it is none of its kind."""
    from pydicom import valuerep

    if value is None:
        return ""
    if keyword == "PatientSex":
        return value if value in ("M", "F", "O") else ""
    kind = {"PatientBirthDate": valuerep.DA, "StudyDate": valuerep.DA, "StudyTime": valuerep.TM}.get(keyword)
    if kind is None:
        return value
    try:
        kind(str(value))
    except ValueError:
        return ""
    return value


def copy_reference(reference: Any, target: Any) -> None:
    """Let a data set be of the same patient and study."""
    target.SpecificCharacterSet = UTF_8
    for keyword in ("StudyInstanceUID", *PATIENT, *STUDY, *DESCRIPTIONS):
        if keyword in reference:
            setattr(target, keyword, reference.get(keyword))
