"""Names of DICOM files: after their content, and the private key back to the files."""

import pytest

pytest.importorskip("pydicom")
from stnet.errors import ConfigError
from stnet.video import find_inputs, write_dicom_key
from stnet.video.dicom_names import dicom_name
from tests.video.dicom_making import dataset, loop, save


def test_names_are_the_same_in_every_call_and_differ_between_files(tmp_path):
    first = save(dataset(loop(), SOPInstanceUID="1.2.3"), tmp_path / "DOE_JANE.dcm")
    second = save(dataset(loop(), SOPInstanceUID="1.2.4"), tmp_path / "ROE.dcm")
    alone = [find_inputs([path])[0].name for path in (first, second)]
    together = [video.name for video in find_inputs([second, first])]
    assert len(set(alone)) == 2 and together == alone[::-1]
    assert first.rename(tmp_path / "x").read_bytes() and find_inputs([tmp_path / "x"])[0].name == alone[0]


def test_files_that_differ_only_in_the_middle_share_no_name(tmp_path):
    # Headers and so identifiers are at the beginning; a change of size or of either end is seen.
    data = bytearray(b"\0" * 5_000_000)
    (tmp_path / "a").write_bytes(data)
    data[-1] = 1
    (tmp_path / "b").write_bytes(data)
    (tmp_path / "c").write_bytes(data[:-2])
    assert len({dicom_name(tmp_path / name) for name in "abc"}) == 3
    assert dicom_name(tmp_path / "missing") is None


def test_key_is_private_and_added_to(tmp_path):
    key = tmp_path / "key.csv"
    write_dicom_key(key, [("dicom-1a", tmp_path / "DOE, JANE.dcm")])
    write_dicom_key(key, [("dicom-2b", tmp_path / "ROE"), ("dicom-1a", tmp_path / "DOE, JANE.dcm")])
    assert key.read_text().splitlines() == [
        "name,file",
        f'dicom-1a,"{tmp_path}/DOE, JANE.dcm"',
        f"dicom-2b,{tmp_path}/ROE",
    ]
    assert key.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "id,note\n1,2\n", "name,file\na\n"])
def test_other_files_are_not_overwritten(tmp_path, content):
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(ConfigError, match=r"other\.csv: is no DICOM key"):
        write_dicom_key(tmp_path / "other.csv", [("a", tmp_path)])
    assert (tmp_path / "other.csv").read_text() == content


def test_key_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_dicom_key(tmp_path / "missing" / "key.csv", [("a", tmp_path)])
