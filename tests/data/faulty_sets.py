"""Data sets with faults in them, for what finds and what repairs these."""

import json

import numpy as np
from PIL import Image


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
