"""DICOM results: accepted by the validator of dicom3tools, read back, of the right frames and sizes."""

import io
import shutil
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stnet
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.dicom_source import read_reference
from stnet.inference.frame_results import FrameResult
from stnet.inference.lesion_collector import LesionCollector
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.lesions import Lesion
from stnet.model.postprocess import Detections
from stnet.video import VideoFrame, open_source

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration

NAMES = {1: "benign", 2: "malignant"}
PATIENT = {"PatientName": "Müller^Ärztin", "PatientID": "P 7", "PatientBirthDate": "19700203", "PatientSex": "F"}
STUDY = {"StudyDate": "20260102", "StudyTime": "101112", "StudyID": "S", "AccessionNumber": "A 1"}
SOURCE, MULTI_FRAME_ULTRASOUND = "1.2.3.4.7", "1.2.840.10008.5.1.4.1.1.3.1"
IDENTIFIERS = {"StudyInstanceUID": "1.2.3.4.5", "SeriesInstanceUID": "1.2.3.4.6", "SOPInstanceUID": SOURCE}

MM = {1: (0.2, 0.1), 2: (0.05, 0.4)}
"""Size of pixels in the region that each lesion lies in."""
SIZES = {1: (8.03, 5.04), 2: (2.01, 11.9)}
"""Width and depth extent of each lesion in mm."""


def true_box(lesion: int, frame: int) -> np.ndarray:
    """A lesion that moves by a pixel per frame, in whole pixels, as annotators draw."""
    (wide, high), (dx, dy) = SIZES[lesion], MM[lesion]
    x, y = {1: (20.0, 25.0), 2: (130.0, 30.0)}[lesion]
    return np.round([x + frame, y, x + frame + wide / dx, y + high / dy])


def made_file(path: Path, frames: int = 12, **elements) -> Path:
    """An ultrasound loop with two regions whose pixels are not square."""
    from tests.video.dicom_making import dataset, loop, region, save

    regions = [region(10, 20, 109, 119), region(120, 20, 219, 119)]
    for item, (dx, dy) in zip(regions, MM.values(), strict=True):
        item.PhysicalDeltaX, item.PhysicalDeltaY = dx / 10, dy / 10
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
        item.ReferencePixelX0 = item.ReferencePixelY0 = 0
        item.ReferencePixelPhysicalValueX = item.ReferencePixelPhysicalValueY = 0.0
    facts = {"SpecificCharacterSet": "ISO_IR 100", "FrameTime": 40, "FrameIncrementPointer": 0x00181063}
    facts |= PATIENT | STUDY | IDENTIFIERS | {"SOPClassUID": MULTI_FRAME_ULTRASOUND} | elements
    return save(dataset(loop(frames, 130, 230), SequenceOfUltrasoundRegions=regions, **facts), path)


def write(tmp_path: Path, file: Path, lesions=(1, 2), source=None) -> Path:
    """Write the results of lesions: the second is there from frame 3 on, and missed in frame 6."""
    dicom_results = pytest.importorskip("stnet.inference.dicom_results")
    pytest.importorskip("highdicom")
    model = {"checkpoint": "made", "dtype": "float32"}
    run = RunFacts(output=tmp_path, videos=1, class_names=NAMES, score_threshold=0.3, model=model, shown={})
    sink, collector = dicom_results.DicomResults(run), LesionCollector(NAMES, 0.3)
    source = source or open_source(file)
    facts = {"name": "dicom-1", "folder": tmp_path, "source": source, "origin": "a", "frames": None}
    sink.begin(VideoFacts(**facts, scale=source.scale, dicom=file))
    for frame in source:
        here = [n for n in lesions if n == 1 or (frame.index >= 3 and frame.index != 6)]
        boxes = torch.tensor(np.array([true_box(n, frame.index) for n in here]).reshape(-1, 4), dtype=torch.float32)
        scores = torch.tensor([0.9 if (n, frame.index) in ((1, 4), (2, 8)) else 0.6 for n in here])
        result = FrameResult(
            video="dicom-1",
            index=frame.index,
            time=frame.time,
            detections=Detections(boxes, scores, torch.tensor(here, dtype=torch.int64)),
            size=frame.image.shape[:2],
            origin=frame.origin,
        )
        sink.write(result)
        collector.add(result)
    sink.lesions(collector.found())
    sink.end(VideoEnd(key=0, name="dicom-1", status="ok", problems=(), frames=12))
    assert sorted(path.name for path in tmp_path.iterdir() if path != file) == ["dicom"]
    return tmp_path / "dicom"


def errors(path: Path) -> list[str]:
    """What the validator objects to."""
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("needs dicom3tools")
    done = subprocess.run([validator, "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any("IOD" in line or line in ("ComprehensiveSR", "MultiframeTrueColorSCImage") for line in lines), lines
    return [line for line in lines if line.startswith("Error") or "Abort" in line]


def groups(report) -> list:
    from highdicom.sr import ComprehensiveSR

    content = ComprehensiveSR.from_dataset(report).content
    return [content.get_planar_roi_measurement_groups(), content.get_image_measurement_groups()]


def told(group) -> dict[str, float]:
    return {one.name.meaning: float(one.value) for one in group.get_measurements()}


def test_report_and_frames_of_a_file_with_two_regions(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    folder = write(tmp_path, made_file(tmp_path / "a.dcm"))
    report, capture = (pydicom.dcmread(folder / name) for name in ("lesions.dcm", "annotated.dcm"))
    assert errors(folder / "lesions.dcm") == errors(folder / "annotated.dcm") == []
    for result in (report, capture):
        for keyword, value in (PATIENT | STUDY | {"StudyInstanceUID": "1.2.3.4.5"}).items():
            assert str(result.get(keyword)) == value, keyword
        assert result.SeriesInstanceUID not in IDENTIFIERS.values()
    boxes, (video, *images) = groups(report)
    assert len(boxes) == len(images) == 2 and told(video) == {"Lesions found": 2}
    assert list(video.source_images[0].referenced_frame_numbers) == list(range(1, 13))
    for number, (one, every) in enumerate(zip(boxes, images, strict=True), start=1):
        assert one.tracking_identifier == every.tracking_identifier == f"Lesion {number}"
        assert one.tracking_uid == every.tracking_uid
        region = one.roi
        best = {1: 4, 2: 8}[number]
        image = region.ContentSequence[0].ReferencedSOPSequence[0]
        assert (image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID) == (MULTI_FRAME_ULTRASOUND, SOURCE)
        assert int(image.ReferencedFrameNumber) == best + 1
        corners = np.concatenate([region.value.min(0), region.value.max(0)])
        assert np.abs(corners - true_box(number, best)).max() < 0.6
        sizes = told(one)
        for title, size, spacing in zip(("Width", "Height"), SIZES[number], MM[number], strict=True):
            assert abs(sizes[title] - size) <= spacing, title
        assert sizes["Depth"] == pytest.approx((true_box(number, best)[1] - 20) * MM[number][1], abs=MM[number][1])
        assert sizes["Certainty of Finding"] == pytest.approx(63, abs=1.0)
        assert sizes[f"Score for {NAMES[number]}"] == pytest.approx(0.63, abs=0.01)
        frames = range(1, 13) if number == 1 else [4, 5, 6, 8, 9, 10, 11, 12]
        assert list(every.source_images[0].referenced_frame_numbers) == list(frames)
        assert told(every) == {"Number of Frames": len(frames)}
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == SOURCE and list(source.ReferencedFrameNumber) == list(range(1, 13))


def test_frames_show_the_regions_with_what_was_found(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    file = made_file(tmp_path / "a.dcm")
    capture = pydicom.dcmread(write(tmp_path, file) / "annotated.dcm")
    assert (capture.NumberOfFrames, capture.FrameTime, capture.BurnedInAnnotation) == (12, 40, "YES")
    frames = list(pydicom.encaps.generate_frames(capture.PixelData, number_of_frames=12))
    shown = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in frames]
    assert shown[0].shape[:2] == (capture.Rows, capture.Columns)
    plain = [frame.image.astype(int) for frame in open_source(file)]
    scale = capture.Rows // plain[0].shape[0]
    apart = [[np.abs(one[::scale, ::scale] - other).mean() for other in plain] for one in shown]
    assert np.argmin(apart, axis=1).tolist() == list(range(12))
    back = pydicom.pixels.pixel_array(capture, index=1).astype(int)
    assert back.shape == shown[1].shape


@pytest.mark.parametrize("lesions", [(), (1,)])
def test_files_of_one_frame_and_without_lesions(tmp_path, lesions):
    pydicom = pytest.importorskip("pydicom")
    still = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "NumberOfFrames": 1}
    folder = write(tmp_path, made_file(tmp_path / "a.dcm", frames=1, **still), lesions)
    assert errors(folder / "lesions.dcm") == errors(folder / "annotated.dcm") == []
    boxes, (video, *_) = groups(pydicom.dcmread(folder / "lesions.dcm"))
    assert len(boxes) == len(lesions) and told(video) == {"Lesions found": len(lesions)}


def test_frames_are_numbered_as_in_the_file_where_some_cannot_be_decoded(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    file = made_file(tmp_path / "a.dcm")
    source = open_source(file)
    every = list(source)

    class Damaged(type(source)):
        def __iter__(self):
            for index, frame in enumerate(f for f in every if f.stored != 1):
                yield VideoFrame(**{**vars(frame), "index": index})

    source.__class__ = Damaged
    folder = write(tmp_path, file, (1,), source)
    (one,), _ = groups(pydicom.dcmread(folder / "lesions.dcm"))
    assert int(one.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber) == 6  # fifth, one left out
    (shown,) = pydicom.dcmread(folder / "annotated.dcm").SourceImageSequence
    assert list(shown.ReferencedFrameNumber) == [1, *range(3, 13)]


def test_the_command_tells_the_patient_in_these_files_alone(tmp_path):
    pytest.importorskip("highdicom")
    from tests.inference.conftest import SMALL, scrambled

    stnet.save(scrambled(SMALL), tmp_path / "small.safetensors", {})
    canary = {"PatientName": "CANARY^" + "Ä" * 80, "PatientID": "CANARY", "PatientBirthDate": "CANARY"}
    canary |= {"StudyTime": "CANARY", "AccessionNumber": "CANARY" * 5, "PatientSex": "CANARY"}
    file = made_file(tmp_path / "CANARY.dcm", **canary)
    command = [sys.executable, "-X", "dev", str(ROOT / "infer.py"), str(file), "--device", "cpu", "--dicom-results"]
    command += ["--checkpoint", str(tmp_path / "small.safetensors"), "--score-threshold", "0.05"]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"CANARY" not in done.stdout + done.stderr
    telling = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"CANARY" in path.read_bytes()]
    assert sorted(path.name for path in telling) == ["annotated.dcm", "lesions.dcm"]


def test_patients_that_break_the_standard(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    broken = {"PatientBirthDate": "unknown", "PatientSex": "female", "StudyTime": "noon", "PatientName": "a" * 80}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write(tmp_path, made_file(tmp_path / "a.dcm", **broken))
        report = pydicom.dcmread(folder / "lesions.dcm")
    assert (report.PatientBirthDate, report.PatientSex, report.StudyTime) == ("", "", "")


def test_frames_per_second_are_kept(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    times = [0, 40, 45, 200, 10, 12, 13, 14, 15, 16, 17, 18]
    file = made_file(tmp_path / "a.dcm", FrameTimeVector=times, FrameIncrementPointer=0x00181065)
    folder = write(tmp_path, file)
    assert errors(folder / "annotated.dcm") == []
    assert list(pydicom.dcmread(folder / "annotated.dcm").FrameTimeVector) == pytest.approx(times)
    assert [frame.time for frame in open_source(folder / "annotated.dcm", Fraction(1), full_frame=True)][:3] == (
        pytest.approx([0, 0.04, 0.085])
    )


def test_boxes_of_the_report_lie_in_the_frame(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dicom_report = pytest.importorskip("stnet.inference.dicom_report")
    pytest.importorskip("highdicom")
    reference = read_reference(made_file(tmp_path / "a.dcm"), "dicom-1")
    lesion = Lesion(  # smoothed boxes of a lesion at the border may reach beyond it
        number=1,
        frames=np.arange(3),
        times=np.arange(3) / 25,
        boxes=np.array([[-2.5, 20.0, 30.0, 131.5]] * 3),
        found=np.ones(3, dtype=bool),
        rows=np.zeros(3, dtype=int),
        scores=np.array([[0.9, 0.1]] * 3),
        class_scores=np.array([0.9, 0.1]),
    )
    report = dicom_report.LesionReport(reference, NAMES, {}, None, (130, 230))
    report.write(tmp_path / "lesions.dcm", [lesion], {index: index + 1 for index in range(12)})
    boxes, _ = groups(pydicom.dcmread(tmp_path / "lesions.dcm"))
    corners = np.concatenate([boxes[0].roi.value.min(0), boxes[0].roi.value.max(0)])
    assert corners.tolist() == [0, 20, 30, 130]
