"""The data check finds planted faults with entry and remedy, and nothing on a clean set."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from stnet.data.check import check_dataset
from stnet.data.check_command import main
from stnet.data.quality.duplicates import perceptual_hash
from tests.data.faulty_sets import box_of, edit, image_with_boxes, kinds, plant_faults


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


def test_relative_coordinates_and_shuffled_frames(dataset):
    def change(document):
        box_of(document, 0)["bbox"] = [0.3, 0.4, 0.2, 0.1]
        images = [image for image in document["images"] if image["video_id"] == 2]
        images[1]["frame_id"], images[4]["frame_id"] = images[4]["frame_id"], images[1]["frame_id"]

    edit(dataset, "train", change)
    found = {finding.kind: finding for finding in check_dataset(dataset, quick=True).findings}
    assert {"tiny box", "frame order"} == set(found) - {"frame without annotation"}
    assert "(id 2)" in found["frame order"].entry and "in pixels" in found["tiny box"].remedy


def test_frames_nobody_annotated_are_no_finding(dataset):
    def change(document):
        for image in document["images"]:
            if image["video_id"] == 3:
                image["annotated"] = False

    edit(dataset, "train", change)
    assert check_dataset(dataset, quick=True).findings == ()


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
    for split in ("train", "val"):  # no formula
        edit(dataset, split, lambda d: d["categories"].append({"id": 3, "name": "$\\foo$ \udcfc"}))
    edit(dataset, "train", lambda d: d["annotations"][20].update(category_id=3))
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
