"""The DICOM loop that comes with pydicom, with canaries planted everywhere, through the whole command."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from stnet.video import find_inputs, open_source

pydicom = pytest.importorskip("pydicom")
from pydicom import examples  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CANARY = "CANARYDOE"
UID_CANARY = "1.2.840.99999.424242"
TAGS = (
    *("PatientName", "PatientID", "PatientAddress", "PatientComments", "OtherPatientNames", "PatientMotherBirthName"),
    *("AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "ProtocolName", "InstitutionName"),
    *("InstitutionAddress", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "StationName"),
    *("DeviceSerialNumber", "ImageComments", "AdditionalPatientHistory", "RequestedProcedureDescription", "Occupation"),
)


def planted(path: Path, preamble: bytes) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(examples.get_path("ybr_color"))
        for number, keyword in enumerate(TAGS):
            setattr(data, keyword, f"{CANARY}{number}")
        for number, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")):
            setattr(data, keyword, f"{UID_CANARY}.{number}")
        data.file_meta.MediaStorageSOPInstanceUID = f"{UID_CANARY}.9"
        data.file_meta.SourceApplicationEntityTitle = CANARY
        block = data.private_block(0x0099, CANARY, create=True)
        block.add_new(1, "LO", f"{CANARY}private")
        data.add_new(0x60000010, "US", 8)
        data.add_new(0x60000011, "US", 8)
        data.add_new(0x60000022, "LO", f"{CANARY}overlay")
        data.add_new(0x60003000, "OW", b"CANARYDO")
        data.preamble = preamble + CANARY.encode() + b"\0" * (128 - len(preamble) - len(CANARY))
        data.save_as(path, enforce_file_format=True)
    assert path.read_bytes().count(CANARY.encode()) >= 20
    return path


@pytest.mark.timeout(240)
def test_no_canary_in_any_output(checkpoint, tmp_path):
    folder = tmp_path / f"{CANARY}folder"
    folder.mkdir()
    whole = planted(folder / f"{CANARY}.dcm", b"MZ")
    data = whole.read_bytes()
    (folder / f"{CANARY}cut").write_bytes(data[: len(data) * 6 // 10])
    (folder / f"{CANARY}damaged").write_bytes(data.replace(b"YBR_FULL_422", f"{CANARY}422".encode()))
    (folder / f"{CANARY}index").write_bytes(Path(examples.get_path("dicomdir")).read_bytes())
    (folder / f"{CANARY}header").write_bytes(data[:700])
    command = [sys.executable, "-X", "dev", str(ROOT / "infer.py"), str(folder), "--checkpoint", str(checkpoint)]
    command += ["--output", str(tmp_path / "out"), "--report", "--device", "cpu", "--fps", "20", "--full-frame"]
    command += ["--dicom-key", str(tmp_path / "key.csv")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    name = find_inputs([whole])[0].name
    assert f"{name}: ok, 30 frames" in done.stdout and done.stdout.count("unreadable") == 3
    assert done.stdout.count("truncated") == 1 and "is a DICOMDIR" in done.stderr
    key = tmp_path / "key.csv"
    assert f"{name},{whole}\n" in key.read_text() and key.stat().st_mode & 0o077 == 0
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    texts = [done.stdout.encode(), done.stderr.encode(), *written.values()]
    texts += [str(path.relative_to(tmp_path)).encode() for path in (tmp_path / "out").rglob("*")]
    for secret in (CANARY, UID_CANARY, "CANARYDO", "MZ" + CANARY):
        assert [text[:80] for text in texts if secret.lower().encode() in text.lower()] == []
    assert len(list(open_source(tmp_path / "out" / name / "annotated.mp4"))) == 30
    assert json.loads((tmp_path / "out" / name / "detections.json").read_text())["video"]["source"] == name
    assert (tmp_path / "out/report.html") in written
