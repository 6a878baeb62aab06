"""Several data sets as one: every frame once, ids unique, classes equal."""

from dataclasses import replace

import pytest

from stnet.data.index import load_index
from stnet.data.joined import join_indexes
from stnet.data.phantom import write_phantoms
from stnet.errors import DataError
from stnet.training.cli import main as train


def test_joining_keeps_every_frame_and_numbers_anew(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_phantoms(tmp_path / name, 1, 1, seed, frames=2, height=48, width=48)
    parts = [load_index(tmp_path / "a", "train"), load_index(tmp_path / "a", "val"), load_index(tmp_path / "b", "val")]
    joined = join_indexes(parts)
    assert [video.video_id for video in joined.videos] == [0, 1, 2]
    assert len({video.name for video in joined.videos}) == 3
    frames = [frame for video in joined.videos for frame in video.frames]
    assert [frame.image_id for frame in frames] == list(range(6))
    assert [frame.path for frame in frames] == [f.path for part in parts for v in part.videos for f in v.frames]
    assert join_indexes(parts[:1]) is parts[0]


def test_what_does_not_go_together_is_refused(tmp_path):
    write_phantoms(tmp_path / "a", 1, 1, 0, frames=2, height=48, width=48)
    train, val = (load_index(tmp_path / "a", split) for split in ("train", "val"))
    with pytest.raises(DataError, match=r"train\.json: given twice"):
        join_indexes([train, val, train])
    with pytest.raises(DataError, match=r"val\.json: classes cyst, but .*train\.json has benign, malignant"):
        join_indexes([train, replace(val, class_names=("cyst",))])


def test_the_command_takes_several_data_sets(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name, val in (("a", 1), ("b", 2), ("c", 0)):
        write_phantoms(tmp_path / name, 1, val, 0, frames=2, height=48, width=48)
    data = [str(tmp_path / name) for name in "abc"]
    assert train(["--evaluate", "tiny", "--device", "cpu", "--data", *data]) == 0
    assert "6 frames" in capsys.readouterr().out  # c has no val split
    assert train(["--evaluate", "tiny", "--device", "cpu", "--data", *data, "--split", "x.json"]) == 2
    assert "a file belongs to one data set" in capsys.readouterr().err
