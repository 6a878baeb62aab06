"""A repair leaves a set that loads, says what was done, and loses neither originals nor much of the data."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from stnet.data.check import check_dataset, repair_dataset
from stnet.data.check_command import main
from stnet.data.clips.dataset import ClipDataset
from stnet.data.clips.transforms import evaluation_transform
from stnet.data.index import load_index
from stnet.errors import DataError
from tests.data.faulty_sets import box_of, edit, kinds, plant_faults


def test_repaired_set_loads_and_says_what_was_done(dataset, capsys):
    plant_faults(dataset)
    with pytest.raises(DataError):
        load_index(dataset, "train")
    before = (dataset / "train.json").read_text()
    # Of two dozen boxes of a class three are a tenth.
    assert main([str(dataset), "--repair"]) == 2
    assert "of class 'malignant' (10%); nothing was changed" in capsys.readouterr().err
    assert (dataset / "train.json").read_text() == before
    assert main([str(dataset), "--repair", "--accept-loss"]) == 1
    printed = capsys.readouterr().out
    assert "after the repair: 2 findings: 1 size change, 1 duplicate video" in printed
    assert (dataset / "train.json.original").read_text() == before
    assert not (dataset / "val.json.original").exists()
    (log,) = json.loads((dataset / "repairs.json").read_text())
    done = {repair["kind"] for repair in log["repairs"]}
    assert {
        "missing frame",
        "unreadable frame",
        "reversed box",
        "empty box",
        "bad box",
        "frame left without boxes",
    } <= done
    index = load_index(dataset, "train")
    assert index.repairs == ()
    clips = ClipDataset(index, 6, evaluation_transform(32, 64))
    assert len(clips) > 20 and all(clips[i].images.shape[0] == 6 for i in range(len(clips)))
    again = check_dataset(dataset)
    assert kinds(again) == {"duplicate video", "size change"} and repair_dataset(again) == []


def test_originals_are_never_lost(dataset, capsys):
    plant_faults(dataset)
    (dataset / "train.json.original").write_text("precious")
    before = (dataset / "train.json").read_text()
    assert main([str(dataset), "--repair", "--accept-loss"]) == 2
    assert "move it away" in capsys.readouterr().err
    assert (dataset / "train.json.original").read_text() == "precious"
    assert (dataset / "train.json").read_text() == before


def test_a_list_of_somebody_else_is_not_overwritten(dataset, capsys):
    edit(dataset, "train", lambda document: box_of(document, 0)["bbox"].__setitem__(0, -5))
    for content in ('{"mine": 1}', "no JSON"):
        (dataset / "repairs.json").write_text(content)
        assert main([str(dataset), "--quick", "--repair"]) == 2
        assert "repairs.json: " in capsys.readouterr().err
        assert (dataset / "repairs.json").read_text() == content and not list(dataset.glob("*.original"))


def test_other_keys_survive_a_repair(dataset):
    def change(document):
        document["info"] = {"by": "somebody"}
        document["images"][0]["site"] = "left"
        box_of(document, 0)["bbox"][0] = -2

    edit(dataset, "train", change)
    repair_dataset(check_dataset(dataset, quick=True))
    document = json.loads((dataset / "train.json").read_text())
    assert document["info"] == {"by": "somebody"} and document["images"][0]["site"] == "left"
    assert "instance_id" in document["annotations"][0]


def test_classes_named_twice_are_merged(dataset):
    def change(document):
        document["categories"].append({"id": 9, "name": "BENIGN"})
        next(box for box in document["annotations"] if box["category_id"] == 1)["category_id"] = 9

    before = [frame.labels.tolist() for video in load_index(dataset, "val").videos for frame in video.frames]
    edit(dataset, "val", change)
    report = check_dataset(dataset, quick=True)
    (finding,) = report.findings
    assert (finding.kind, finding.entry) == ("duplicate class", "categories (id 9)")
    repair_dataset(report)
    assert check_dataset(dataset, quick=True).findings == ()
    index = load_index(dataset, "val")
    assert [frame.labels.tolist() for video in index.videos for frame in video.frames] == before


def test_boxes_that_share_an_id_are_kept(dataset):
    def change(document):
        boxes = document["annotations"]
        boxes[4]["id"] = boxes[7]["id"] = boxes[2]["id"]

    count = sum(len(frame.boxes) for video in load_index(dataset, "train").videos for frame in video.frames)
    edit(dataset, "train", change)
    report = check_dataset(dataset, quick=True)
    assert kinds(report) == {"duplicate id"} and len(report.findings) == 2
    repair_dataset(report)
    boxes = json.loads((dataset / "train.json").read_text())["annotations"]
    assert len({box["id"] for box in boxes}) == len(boxes) == count
    assert check_dataset(dataset, quick=True).findings == () and load_index(dataset, "train")


def test_numbers_that_are_none_are_found_with_their_entry(dataset):
    def change(document):
        box_of(document, 0)["bbox"][2] = float("nan")
        box_of(document, 1)["bbox"][0] = float("inf")

    edit(dataset, "train", change)
    report = check_dataset(dataset)
    assert [finding.kind for finding in report.findings] == ["bad box"] * 2
    repair_dataset(report, accept_loss=True)
    assert check_dataset(dataset).findings == ()


def test_first_of_two_repairs_is_listed_when_the_second_is_refused(dataset):
    for split in ("train", "val"):
        edit(dataset, split, lambda document: box_of(document, 0)["bbox"].__setitem__(0, -5))
    (dataset / "val.json.original").write_text("precious")
    assert main([str(dataset), "--repair"]) == 2
    (entry,) = json.loads((dataset / "repairs.json").read_text())
    assert entry["file"] == "train.json" and entry["repairs"]


def test_files_listed_twice_and_links_out(dataset, tmp_path):
    outside = tmp_path / "outside.png"
    frame = dataset / "rawframes" / json.loads((dataset / "train.json").read_text())["images"][3]["file_name"]
    frame.rename(outside)
    frame.symlink_to(outside)
    edit(dataset, "train", lambda d: d["images"][5].update(file_name=d["images"][4]["file_name"]))
    report = check_dataset(dataset)
    # The frame that gave up its place to another is listed nowhere now.
    assert kinds(report) == {"path leaves the dataset", "file listed twice", "unlisted images"}
    repair_dataset(report)
    assert kinds(check_dataset(dataset)) == {"unlisted images"} and load_index(dataset, "train")


def test_errata_and_leak_of_buv_by_name(tmp_path):
    rng = np.random.default_rng(0)

    def split(names: list[str]) -> dict:
        images = []
        for i, name in enumerate(names):
            (tmp_path / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (30, 30), dtype=np.uint8)).save(tmp_path / name / "0.png")
            image = {"id": i, "file_name": f"{name}/0.png", "height": 30, "width": 30}
            images.append(image | {"video_id": i, "frame_id": 0})
        return {
            "categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}],
            "videos": [{"id": i, "name": name} for i, name in enumerate(names)],
            "images": images,
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [3, 3, 9, 9]} for i in range(len(names))
            ],
        }

    train = split(["benign/x66ef02e7f1b9a0ef", "benign/x5a1c46ec6377e946", "benign/x1282311c38f808f"])
    (tmp_path / "imagenet_vid_train_15frames.json").write_text(json.dumps(train))
    (tmp_path / "imagenet_vid_val.json").write_text(json.dumps(split(["malignant/x9c1c965d274c457"])))
    report = check_dataset(tmp_path)
    found = sorted((finding.kind, finding.file) for finding in report.findings)
    errata = [("BUV erratum", "imagenet_vid_train_15frames.json")] * 2 + [("BUV leak", "imagenet_vid_val.json")]
    assert [finding for finding in found if finding[0].startswith("BUV")] == errata
    repair_dataset(report)
    index = load_index(tmp_path, "train", errata=False)
    assert [video.frames[0].labels.tolist() for video in index.videos] == [[2], [1]]


def test_schema_example_with_made_frames(buv_example):
    report = check_dataset(buv_example)
    about_its_size = {"missing split", "videos of one frame"}
    assert kinds(report) == {"clipped box", "reversed box"} | about_its_size
    repair_dataset(report)
    assert kinds(check_dataset(buv_example)) == about_its_size


def test_a_repair_that_loses_a_tenth_of_anything_has_to_be_asked_for_twice(dataset, capsys):
    frames = [i["file_name"] for i in json.loads((dataset / "train.json").read_text())["images"]]
    before = (dataset / "train.json").read_text()
    for name in frames[::9]:  # 4 of 36
        (dataset / "rawframes" / name).write_bytes(b"")
    edit(dataset, "val", lambda d: box_of(d, 0)["bbox"].__setitem__(0, -1))
    assert main([str(dataset), "--repair"]) == 2
    captured = capsys.readouterr()
    assert "4 of 36 frames (11%)" in captured.err and "--accept-loss" in captured.err and captured.err.count("\n") == 1
    # The other file, whose repair loses nothing, is left alone too.
    assert (dataset / "train.json").read_text() == before and not list(dataset.glob("*.original"))
    assert main([str(dataset), "--repair", "--accept-loss"]) == 0
    assert len(json.loads((dataset / "train.json").read_text())["images"]) == 32
    assert {entry["file"] for entry in json.loads((dataset / "repairs.json").read_text())} == {"train.json", "val.json"}


def test_a_repair_that_would_leave_nothing_says_so(dataset, capsys):
    for path in (dataset / "rawframes").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    assert main([str(dataset), "--repair"]) == 2
    captured = capsys.readouterr()
    assert "36 of 36 frames (100%)" in captured.err and "2 empty split" in captured.out
    assert main([str(dataset), "--repair", "--accept-loss"]) == 1
    assert "after the repair: 2 findings: 2 empty split" in capsys.readouterr().out


def test_full_disk_leaves_the_set_as_it_was(dataset, capsys, monkeypatch):
    edit(dataset, "train", lambda d: box_of(d, 0)["bbox"].__setitem__(0, -5))
    before = {path.name: path.read_bytes() for path in dataset.iterdir() if path.is_file()}
    original = before["train.json"]

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for allowed in range(4):
        (dataset / "train.json").write_bytes(original)
        calls = iter([lambda path: None] * allowed + [full] * 99)
        monkeypatch.setattr("stnet.files.synchronize", lambda path, calls=calls: next(calls)(path))
        assert main([str(dataset), "--quick", "--repair"]) == 2
        assert capsys.readouterr().err.strip().endswith("No space left on device")
        after = {path.name: path.read_bytes() for path in dataset.iterdir() if path.is_file()}
        if allowed == 3:  # the file is in place, the disk alone did not say so
            assert after.pop("train.json.original") == original and after["train.json"] != original
            after["train.json"] = original
        assert after == before, allowed
