"""A share of the fuzzing that `python -m tests.fuzz.annotations` does in full."""

from stnet.data.formats import conversion, placing
from tests.fuzz.annotations import fuzz


def test_mutated_files_end_in_no_traceback_and_on_no_other_frame(tmp_path):
    done = fuzz(0, 120, tmp_path)
    assert done.failures == []
    assert done.converted >= 30 and done.refused >= 30


def test_the_fuzzer_sees_boxes_on_the_next_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "place", lambda *args: [None, *placing.place(*args)[:-1]])
    assert any("for which the file names" in failure for failure in fuzz(0, 10, tmp_path).failures)
