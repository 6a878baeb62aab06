"""The data check finds planted faults, finds nothing on a clean set, and its repair leaves a set that loads."""

import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from stnet.data.check import check_dataset, repair_dataset
from stnet.data.check_command import main
from stnet.data.clips.dataset import ClipDataset
from stnet.data.clips.transforms import evaluation_transform
from stnet.data.index import load_index
from stnet.data.phantom import write_phantoms
from stnet.data.quality.duplicates import perceptual_hash
from stnet.errors import DataError


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("check") / "set", 6, 3, 2, frames=6, height=64, width=80)


@pytest.fixture
def dataset(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


def edit(root, split, change) -> None:
    file = root / f"{split}.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def kinds(report) -> set[str]:
    return {finding.kind for finding in report.findings}


def image_with_boxes(document, count: int = 1, start: int = 0) -> dict:
    """An image with at least `count` boxes, among those from `start` on."""
    owners = [box["image_id"] for box in document["annotations"]]
    return next(i for i in document["images"][start:] if owners.count(i["id"]) >= count)


def box_of(document, number: int) -> dict:
    """The number-th annotation that is alone on its image."""
    owners = [box["image_id"] for box in document["annotations"]]
    return [box for box in document["annotations"] if owners.count(box["image_id"]) == 1][number]


def plant_faults(root) -> dict[str, str]:
    """Twelve faults; returns the kind each has to be found as, and a part of where."""
    expected = {}

    def train(document):
        images, boxes = document["images"], document["annotations"]
        (root / "rawframes" / images[0]["file_name"]).unlink()
        expected["missing frame"] = "images[0] (id 1)"
        damaged = root / "rawframes" / images[1]["file_name"]
        damaged.write_bytes(damaged.read_bytes()[:200])
        expected["unreadable frame"] = "images[1] (id 2)"
        Image.linear_gradient("L").resize((80, 70)).save(root / "rawframes" / images[2]["file_name"])
        expected["wrong size"] = "images[2] (id 3)"
        flipped = box_of(document, 0)
        x, y, w, h = flipped["bbox"]
        flipped["bbox"] = [x + w, y, -w, h]
        expected["reversed box"] = f"(id {flipped['id']})"
        outside = box_of(document, 1)
        outside["bbox"] = [-5, *outside["bbox"][1:]]
        expected["clipped box"] = f"(id {outside['id']})"
        empty = box_of(document, 2)
        empty["bbox"][2] = 0
        expected["empty box"] = f"(id {empty['id']})"
        twice = box_of(document, 3)
        boxes.append(twice | {"id": 9000})
        expected["duplicate box"] = "(id 9000)"
        box_of(document, 4)["category_id"] = 17
        expected["unknown category"] = "category_id 17"
        box_of(document, 6)["id"] = boxes[0]["id"]
        expected["duplicate id"] = f"id {boxes[0]['id']} occurs twice"
        box_of(document, 5)["bbox"] = ["wide", 1, 2, 3]
        expected["bad box"] = "'wide'"
        images.append(images[-1] | {"id": 9001})
        expected["duplicate frame"] = "(id 9001)"

    edit(root, "train", train)

    def val(document):
        source = json.loads((root / "train.json").read_text())
        video = source["videos"][3]
        copied = [i for i in source["images"] if i["video_id"] == video["id"]]
        target = document["videos"][0]
        replaced = [i for i in document["images"] if i["video_id"] == target["id"]]
        for old, new in zip(copied, replaced, strict=True):
            pixels = np.asarray(Image.open(root / "rawframes" / old["file_name"])).astype(float)
            brighter = np.clip(pixels * 1.15 + 4, 0, 255).astype(np.uint8)
            Image.fromarray(brighter).save(root / "rawframes" / new["file_name"])
        expected["duplicate video"] = target["name"]

    edit(root, "val", val)
    return expected


def test_nothing_is_found_on_a_clean_set(clean, capsys):
    assert check_dataset(clean).findings == ()
    assert main([str(clean)]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_twelve_planted_faults_are_found_with_entry_and_remedy(dataset):
    expected = plant_faults(dataset)
    report = check_dataset(dataset)
    assert len(expected) == 12 and kinds(report) == set(expected)
    for finding in report.findings:
        assert expected[finding.kind] in str(finding), finding
        assert finding.file in {"train.json", "val.json"} and finding.remedy
    assert len(report.findings) == 12


def test_quick_check_finds_what_needs_no_pixels(dataset):
    expected = plant_faults(dataset)
    assert kinds(check_dataset(dataset, quick=True)) == set(expected) - {
        "unreadable frame",
        "wrong size",
        "duplicate video",
    }


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


def test_gaps_contradictions_size_changes_and_empty_videos(dataset):
    def change(document):
        images, boxes = document["images"], document["annotations"]
        document["videos"].append({"id": 77, "name": "nobody"})
        image = image_with_boxes(document, start=12)
        image["annotated"] = False
        first = next(i for i in images if i["video_id"] == 3)
        first["height"] = 60
        # Three frames in a row with the same box, of which the middle one is removed.
        run = [i for i in images if i["video_id"] == 1][:3]
        ids = {i["id"] for i in run}
        document["annotations"] = boxes = [b for b in boxes if b["image_id"] not in ids]
        for number, owner in enumerate((run[0], run[2])):
            boxes.append({"id": 9100 + number, "image_id": owner["id"], "category_id": 1, "bbox": [20, 20, 22, 14]})

    edit(dataset, "train", change)
    report = check_dataset(dataset, quick=True)
    expected = {"contradiction", "size change", "frame without annotation", "video without frames"}
    assert kinds(report) == expected and len(report.findings) == 4


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


def test_relative_coordinates_and_shuffled_frames(dataset):
    def change(document):
        box_of(document, 0)["bbox"] = [0.3, 0.4, 0.2, 0.1]
        images = [image for image in document["images"] if image["video_id"] == 2]
        images[1]["frame_id"], images[4]["frame_id"] = images[4]["frame_id"], images[1]["frame_id"]

    edit(dataset, "train", change)
    found = {finding.kind: finding for finding in check_dataset(dataset, quick=True).findings}
    assert {"tiny box", "frame order"} == set(found) - {"frame without annotation"}
    assert "(id 2)" in found["frame order"].entry and "in pixels" in found["tiny box"].remedy


def test_first_of_two_repairs_is_listed_when_the_second_is_refused(dataset):
    for split in ("train", "val"):
        edit(dataset, split, lambda document: box_of(document, 0)["bbox"].__setitem__(0, -5))
    (dataset / "val.json.original").write_text("precious")
    assert main([str(dataset), "--repair"]) == 2
    (entry,) = json.loads((dataset / "repairs.json").read_text())
    assert entry["file"] == "train.json" and entry["repairs"]


def test_frames_nobody_annotated_are_no_finding(dataset):
    def change(document):
        for image in document["images"]:
            if image["video_id"] == 3:
                image["annotated"] = False

    edit(dataset, "train", change)
    assert check_dataset(dataset, quick=True).findings == ()


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


def test_schema_example_with_made_frames(tmp_path, shared):
    document = json.loads((shared / "data" / "buv_schema_example.json").read_text())
    rng = np.random.default_rng(0)
    for image in document["images"]:
        path = tmp_path / "rawframes" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (image["height"], image["width"]), dtype=np.uint8)).save(path)
    (tmp_path / "train.json").write_text(json.dumps(document))
    report = check_dataset(tmp_path)
    about_its_size = {"missing split", "videos of one frame"}
    assert kinds(report) == {"clipped box", "reversed box"} | about_its_size
    repair_dataset(report)
    assert kinds(check_dataset(tmp_path)) == about_its_size


def test_videos_and_classes_across_splits(dataset):
    name = json.loads((dataset / "train.json").read_text())["videos"][0]["name"]
    edit(dataset, "val", lambda d: d["videos"][1].update(name=name))
    edit(dataset, "val", lambda d: d["categories"][0].update(name="cyst"))
    assert {"video in both splits", "classes differ"} <= kinds(check_dataset(dataset, quick=True))


def test_unusable_sets(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path)]) == 2
    (tmp_path / "train.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)


def test_report_and_fingerprint(dataset, tmp_path, capsys):
    edit(dataset, "train", lambda d: [box.update(bbox=[-1, 5, 20, 20]) for box in d["annotations"][:9]])
    options = ["--quick", "--json", str(tmp_path / "r.json"), "--fingerprint", str(tmp_path / "f"), "--limit", "3"]
    assert main([str(dataset), *options]) == 1
    assert "[clipped box] and " in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert {"kind", "file", "entry", "what", "remedy"} == set(report["findings"][0])
    facts = json.loads((tmp_path / "f" / "fingerprint.json").read_text())
    assert facts == report["fingerprint"]
    train = facts["train"]
    assert train["videos"] == 6 and train["frames"] == 36 and train["frame_sizes"] == {"80x64": 36}
    assert train["boxes"] == sum(train["box_size_histogram"]) == sum(map(sum, train["box_positions"]))
    assert sum(train["boxes_per_frame"].values()) == train["frames_annotated"] == 36
    assert train["boxes_per_frame"]["0"] == train["frames_without_lesion"]
    assert Image.open(tmp_path / "f" / "fingerprint.png").size[0] > 1000
    assert main([str(dataset), "--quick", "--json", str(dataset)]) == 2


def test_hash_survives_brightness_and_size_but_not_content():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (24, 24), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((240, 200), Image.Resampling.BICUBIC))
    code = perceptual_hash(image[..., None])
    dim = (image * 0.7 + 20).astype(np.uint8)
    small = np.asarray(Image.fromarray(image).resize((170, 150), Image.Resampling.BILINEAR))
    for alike in (dim, small, np.repeat(image[..., None], 3, axis=2)):
        other = perceptual_hash(alike if alike.ndim == 3 else alike[..., None])
        assert (code != other).sum() < 20
    unrelated = perceptual_hash(rng.integers(0, 255, (200, 240, 1), dtype=np.uint8))
    assert (code != unrelated).sum() > 80
    assert perceptual_hash(np.full((50, 50, 1), 7, dtype=np.uint8)) is None


def test_too_little_to_train_on_or_to_validate_with(dataset, capsys):
    (dataset / "val.json").rename(dataset / "kept.json")
    assert main([str(dataset), "--quick"]) == 1
    assert "[missing split] val.json: file: there is none" in capsys.readouterr().out
    (dataset / "kept.json").rename(dataset / "val.json")

    before = json.loads((dataset / "val.json").read_text())
    for name, change in {
        "empty split": lambda d: d.update(videos=[], images=[], annotations=[]),
        "no boxes": lambda d: d.update(annotations=[]),
        "videos of one frame": lambda d: [image.update(video_id=2) for image in d["images"][1:6]],
    }.items():
        (dataset / "val.json").write_text(json.dumps(before))
        edit(dataset, "val", change)
        found = kinds(check_dataset(dataset, quick=True)) - {"unlisted images"}
        assert name in found and (name == "videos of one frame" or found == {name})
    (dataset / "val.json").write_text(json.dumps(before))
    edit(
        dataset, "val", lambda d: [image.update(annotated=False) for image in d["images"]] and d.update(annotations=[])
    )
    assert kinds(check_dataset(dataset, quick=True)) == {"empty split"}


def test_class_that_nobody_shows(dataset):
    edit(dataset, "train", lambda d: d["categories"].append({"id": 3, "name": "cyst"}))
    edit(dataset, "val", lambda d: d["categories"].append({"id": 3, "name": "cyst"}))
    (finding,) = check_dataset(dataset, quick=True).findings
    assert (finding.kind, finding.entry, finding.file) == ("class without boxes", "categories (id 3)", "train.json")


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


def test_boxes_written_by_corners_are_suspected(dataset):
    def by_corners(document):
        for box in document["annotations"]:
            x, y, w, h = box["bbox"]
            box["bbox"] = [x, y, x + w, y + h]

    assert "boxes may be corners" not in kinds(check_dataset(dataset, quick=True))
    edit(dataset, "train", by_corners)
    assert "boxes may be corners" in kinds(check_dataset(dataset, quick=True))


@pytest.mark.parametrize(("level", "word"), [(0, "wholly black"), (97, "of one colour throughout")])
def test_frames_that_show_nothing(dataset, level, word):
    document = json.loads((dataset / "train.json").read_text())
    marked = image_with_boxes(document)
    plain = next(i for i in document["images"] if i["video_id"] == marked["video_id"] and i is not marked)
    for image in (marked, plain):
        Image.new("RGB", (80, 64), (level,) * 3).save(dataset / "rawframes" / image["file_name"])
    found = [f for f in check_dataset(dataset).findings if f.kind == "blank frames"]
    assert [f.entry for f in found] == [f"videos (id {marked['video_id']})"]
    assert f"2 of 6 frames are {word}" in found[0].what and "of them with boxes" in found[0].what
    assert check_dataset(dataset, quick=True).findings == ()


def test_images_that_no_annotation_file_lists(dataset):
    document = json.loads((dataset / "train.json").read_text())
    first = document["images"][0]["file_name"]
    folder = (dataset / "rawframes" / first).parent
    shutil.copy(dataset / "rawframes" / first, folder / "900000.png")
    shutil.copytree(folder, dataset / "rawframes" / "nobody" / "video")
    found = check_dataset(dataset, quick=True).findings
    assert {f.kind for f in found} == {"unlisted images"}
    said = {f.entry: f.what for f in found}
    assert said.keys() == {document["videos"][0]["name"], "nobody/video"}
    assert "7 of 7 images are listed in no annotation file, for example nobody/video/" in said.pop("nobody/video")
    assert all("1 of 7 images" in what and "900000.png" in what for what in said.values())
    others = ["900000.png", *(f"nobody/video/{path.name}" for path in folder.iterdir())]
    others[0] = f"{first.rpartition('/')[0]}/900000.png"
    (dataset / "test.json").write_text(json.dumps({"images": [{"file_name": name} for name in others]}))
    assert check_dataset(dataset, quick=True).findings == ()  # a split of its own
    (dataset / "test.json").unlink()
    (dataset / "rawframes").rename(dataset / "frames")  # file names may start at the data set itself
    for split in ("train", "val"):
        edit(dataset, split, lambda d: [i.update(file_name=f"frames/{i['file_name']}") for i in d["images"]])
    (finding,) = check_dataset(dataset, quick=True).findings
    assert "frames/" in finding.what and "900000.png" in finding.what  # and folders of others are left alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accept-loss"], "--accept-loss says how much a repair may leave out: add --repair"),
        (["--limit", "-1"], "-1 must be 0 or more"),
    ],
)
def test_options_that_do_nothing_are_refused(clean, capsys, options, message):
    try:
        assert main([str(clean), *options]) == 2
    except SystemExit as end:
        assert end.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and "nothing found" not in captured.out
