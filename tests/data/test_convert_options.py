"""What the options of a conversion say, and what is left where it fails."""

import errno

import pytest
from PIL import Image

from stnet.data import convert as command
from stnet.data.convert import convert
from stnet.data.convert_command import main
from stnet.data.formats.assigning import Rules
from stnet.data.formats.classes import ClassRules
from stnet.data.index import load_index
from stnet.errors import ConfigError
from tests.data.small_sources import box, coco, cvat, frame_folder, squares, table, track


def test_classes_are_mapped_ignored_and_alike_in_both_splits(tmp_path):
    source = frame_folder(tmp_path / "a", 2)
    file = coco(tmp_path / "x.json", ["000000.png", "000001.png"])
    text = file.read_text().replace("benign", "Fibroadenoma").replace("malignant", "nobody uses this")
    file.write_text(
        text.replace('"id": 1, "image_id": 1, "category_id": 1', '"id": 1, "image_id": 1, "category_id": 2')
    )
    with pytest.raises(ConfigError, match=r"Fibroadenoma, nobody uses this are not among .*--class NAME=CLASS"):
        table(tmp_path, source, file, classes=ClassRules(names=["benign", "malignant"]))
    rules = ClassRules(renamed={"fibroadenoma": "benign"}, ignored=["nobody uses this", "cyst"])
    states, remarks = table(tmp_path, source, file, classes=rules)
    assert states == [*squares(0), "-"] and "ignored classes" in remarks and "no mark is of the class 'cyst'" in remarks
    assert load_index(tmp_path / "out0", "train").class_names == ("benign", "malignant")
    frame_folder(tmp_path / "b", 1)
    with pytest.raises(ConfigError, match="are not among benign, malignant"):
        convert(tmp_path / "b", coco_of_cyst(tmp_path), tmp_path / "out0", split="val")
    convert(tmp_path / "b", coco_of_cyst(tmp_path), tmp_path / "new", split="val")
    assert load_index(tmp_path / "new", "val").class_names == ("cyst",)


def coco_of_cyst(tmp_path):
    file = coco(tmp_path / "cyst.json", ["000000.png"])
    file.write_text(file.read_text().replace("benign", "cyst"))
    return file


def test_command_line_options(tmp_path, capsys):
    source = frame_folder(tmp_path / "a", 3)
    file = coco(tmp_path / "x.json", [f"img{i}.png" for i in range(1, 4)])
    file.write_text(file.read_text().replace("benign", "cyst"))
    arguments = [str(source), str(file), str(tmp_path / "out"), "--split", "train"]
    more = ["--numbering", "1", "--class", "cyst=benign", "--video-from", "^img", "--format", "coco"]
    assert main([*arguments, *more]) == 0
    assert "3 of 3 entries placed; classes benign, malignant" in capsys.readouterr().out
    for wrong in (
        ["--class", "cyst"],
        ["--video-from", "("],
        ["--frame-step", "0"],
        ["--class", "a=b", "--class", "a=c"],
    ):
        assert main([*arguments[:2], str(tmp_path / "no"), "--split", "train", *wrong]) == 2
        assert capsys.readouterr().err.startswith(f"error: {wrong[0]} ")
    assert main([*arguments[:2], str(tmp_path / "rest"), "--split", "train", "--allow-left-out"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ClassRules(renamed={"benign": "malignant", "Benign": "benign"})},
            "Benign is mapped to malignant, too",
        ),
        (
            {"classes": ClassRules(renamed={"benign": "malignant"}, ignored=["BENIGN"])},
            "benign is mapped by --class and ignored",
        ),
        ({"classes": ClassRules(names=["benign", "Benign"])}, "--classes benign Benign: give each class once"),
        ({"classes": ClassRules(names=["benign", " "])}, "none without a name"),
        ({"rules": Rules(frame_step=3)}, "--frame-step needs --numbering"),
    ],
)
def test_options_that_contradict_each_other_or_do_nothing(tmp_path, options, message):
    source = frame_folder(tmp_path / "a", 2)
    with pytest.raises(ConfigError, match=message):
        table(tmp_path, source, coco(tmp_path / "x.json", ["000000.png"]), **options)


def test_options_for_names_do_not_fit_tracks(tmp_path, capsys):
    source = frame_folder(tmp_path / "a", 2)
    file = cvat(tmp_path / "x.xml", track(box(0, 1)))
    with pytest.raises(ConfigError, match="leave out --numbering"):
        table(tmp_path, source, file, rules=Rules(numbering=1))
    assert main([str(source), str(file), str(tmp_path / "o"), "--split", "val", "--video-from", "(?P<clip>a)"]) == 2
    assert "a group 'clip' means nothing" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["frame", "annotations", "marker"])
def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch, target):
    source = frame_folder(tmp_path / "a", 3)
    file = coco(tmp_path / "x.json", ["000000.png"])
    arguments = [str(source), str(file), str(tmp_path / "deep" / "out"), "--split", "train"]

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    with monkeypatch.context() as patched:
        if target == "frame":
            patched.setattr(Image.Image, "save", fail)
        elif target == "annotations":
            patched.setattr(command, "write_annotations", fail)
        else:
            patched.setattr(command.files, "write_json", fail)
        assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1 and message[0].startswith("error: ") and "No space left on device" in message[0]
    assert not (tmp_path / "deep").exists()
    assert main(arguments) == 0  # nothing is left that blocks the next try
