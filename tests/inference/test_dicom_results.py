"""DICOM results without highdicom: what is refused, whose they are, and the frames.

Whole results, their validator and the report are in tests/integrations/test_dicom_results.py.
"""

import sys

import numpy as np
import pytest

from stnet.errors import VideoError
from stnet.inference import cli

pydicom = pytest.importorskip("pydicom")
from stnet.inference.dicom_capture import SecondaryCapture  # noqa: E402
from stnet.inference.dicom_source import read_reference  # noqa: E402
from tests.video.dicom_making import dataset, loop, save  # noqa: E402

WHOLE = {"StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.5", "SOPInstanceUID": "1.2.3.6"}
WHOLE |= {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "PatientName": "Jörg^X", "SpecificCharacterSet": "ISO_IR 100"}


def source(tmp_path, **elements):
    return save(dataset(loop(2), **WHOLE | elements), tmp_path / "a")


def test_they_need_highdicom(checkpoint, make_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    clip = make_clip(tmp_path / "clip.mp4", frames=2)
    command = [str(clip), "--checkpoint", str(checkpoint), "--device", "cpu", "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--dicom-results"]) == 2
    assert "pip install 'stnet[dicom-results]'" in capsys.readouterr().err
    assert not (tmp_path / "out/clip").exists()


def test_other_videos_have_none(checkpoint, make_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stnet.inference.dicom_results.import_highdicom", lambda: None)
    clip = make_clip(tmp_path / "clip.mp4", frames=2)
    command = [str(clip), "--checkpoint", str(checkpoint), "--device", "cpu", "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--dicom-results", "--formats", "csv"]) == 0
    assert "clip is no DICOM file" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out/clip").iterdir()] == ["detections.csv"]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_file_that_nothing_can_refer_to(tmp_path, keyword):
    with pytest.raises(VideoError, match=f"dicom-1: states no usable {keyword}") as refused:
        read_reference(source(tmp_path, **{keyword: "CANARY" if keyword == "StudyInstanceUID" else ""}), "dicom-1")
    assert "CANARY" not in str(refused.value)


def test_patient_and_study_go_over_in_utf_8(tmp_path):
    reference = read_reference(source(tmp_path, PatientSex="W", StudyDate="20260230", InstitutionName="I"), "dicom-1")
    capture = SecondaryCapture(reference, tmp_path)
    frames = loop(3, 40, 60)
    for index, frame in enumerate(frames):
        capture.add(frame, index / 20, index + 1)
    capture.write(tmp_path / "b")
    capture.close()
    back = pydicom.dcmread(tmp_path / "b")
    assert (str(back.PatientName), back.PatientSex, back.StudyDate) == ("Jörg^X", "", "")
    assert "InstitutionName" not in back and back.StudyInstanceUID == "1.2.3.4" and back.FrameTime == 50
    pixels = pydicom.pixels.pixel_array(back, raw=False)
    assert pixels.shape == frames.shape and np.abs(pixels.astype(int) - frames).mean() < 25
    assert np.array_equal(pydicom.pixels.pixel_array(tmp_path / "b", index=2), pixels[2])
