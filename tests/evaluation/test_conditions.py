"""Stills under changed conditions: only what is meant to change does, and the command compares models."""

import json

import numpy as np
import pytest
from PIL import Image

from stnet.data.clips.transforms import FrameStack
from stnet.data.still_sets.stills import read_coco_stills
from stnet.evaluation import conditions
from stnet.evaluation.coco import ScoredFrame
from stnet.evaluation.condition_differences import MEASURES, differences
from stnet.evaluation.conditions import CONDITIONS, changed_stills, main
from stnet.model.checkpoint import resolve

BOX = (30, 20, 60, 50)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    root = tmp_path_factory.mktemp("stills")
    images, annotations = [], []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(70, 120, (90, 110), dtype=np.uint8)
        if number:
            pixels[20:50, 30:60] = 200 - number
            annotations.append({"image_id": number, "category_id": 1, "bbox": [30, 20, 30, 30]})
        Image.fromarray(pixels).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 90, "width": 110})
    document = {"categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]}
    path = root / "val.json"
    path.write_text(json.dumps(document | {"images": images, "annotations": annotations}))
    return path


@pytest.mark.parametrize("name", CONDITIONS)
def test_boxes_stay_on_their_lesions_and_changes_repeat(name, file, tmp_path):
    index = read_coco_stills(file).index
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = (changed_stills(index, name, tmp_path / part) for part in "ab")
    changed = 0
    for number, (old, new, again) in enumerate(zip(index.videos, first.videos, second.videos, strict=True)):
        still = new.frames[0]
        pixels = np.array(Image.open(still.path))
        assert (pixels == np.array(Image.open(again.frames[0].path))).all()
        assert pixels.shape[:2] == (still.height, still.width)
        assert len(old.frames[0].boxes) == (number > 0)
        assert len(still.boxes) == len(still.labels) == (number > 0) * (1 + (name == "beside its mirror image"))
        before = np.array(Image.open(old.frames[0].path))
        changed += before.shape != pixels.shape or bool((before != pixels).any())
        if name in ("interface around", "half the size", "beside its mirror image", "unchanged", "other grain"):
            for x0, y0, x1, y1 in still.boxes.astype(int):
                assert np.median(pixels[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3]) > 180
    if name == "unchanged":
        assert changed == 0
    elif name != "marks painted over":  # there may be none
        assert changed > 3


def test_false_marks_keep_away_from_lesions():
    boxes = np.array([BOX], dtype=np.float32)
    stack = FrameStack(frames=np.full((1, 90, 110, 1), 80, dtype=np.uint8), boxes=(boxes,), labels=(np.array([1]),))
    marked = CONDITIONS["marks where nothing is"](stack, np.random.default_rng(1))
    assert (marked.frames != stack.frames).any() and marked.boxes is stack.boxes


def test_the_command_compares_models_under_conditions(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "conditions.json"
    again = tmp_path / "again.safetensors"
    again.write_bytes(resolve("tiny").read_bytes())
    options = ["tiny", str(again), "--data", str(file), "--device", "cpu", "--limit", "3", "--output", str(out)]
    assert main([*options, "--conditions", "half the size", "beside its mirror image"]) == 0
    said = capsys.readouterr().out
    assert "tiny: 3 stills" in said and "half the size" in said
    assert "ahead of tiny" in said
    content = json.loads(out.read_text())
    (ahead,) = content["ahead_of_the_first"].values()
    assert ahead["several lesions"] == {"value": 0.0, "interval": [0.0, 0.0]} and "other machines" not in ahead
    written = content["models"]["tiny"]
    assert list(written) == ["unchanged", "half the size", "beside its mirror image"]
    assert written["unchanged"]["alarms"] <= 0.1
    assert written["unchanged"]["several_recall"] is None
    assert [found["several"] for found in written.values()] == [0, 0, 4]
    assert main(options) == 2
    assert "exists" in capsys.readouterr().err


def test_conditions_that_are_done_are_kept_when_the_command_is_interrupted(file, tmp_path, monkeypatch):
    def interrupted(model, sets, name, advance):
        if name != "unchanged":
            raise KeyboardInterrupt
        return predict(model, sets, name, advance)

    predict = conditions.predict_condition
    monkeypatch.setattr(conditions, "predict_condition", interrupted)
    document = json.loads(file.read_text())
    document["images"][0]["annotated"] = False  # of which nothing can be judged, so that it is not the one taken
    file = file.with_name("first_unseen.json")
    file.write_text(json.dumps(document))
    out = tmp_path / "folder" / "conditions.json"
    assert main(["tiny", "--data", str(file), "--device", "cpu", "--limit", "1", "--output", str(out)]) == 130
    assert list(json.loads(out.read_text())["models"]["tiny"]) == ["unchanged"]


def _found(share: float, side: int = 30) -> list[ScoredFrame]:
    """Twelve stills with a lesion each; of the first ones, that share, it is found."""
    lesion = np.array([[10.0, 10.0, 10.0 + side, 10.0 + side]])
    hit = {"boxes": lesion, "scores": np.array([0.9]), "labels": np.array([1])}
    miss = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, dtype=int)}
    return [
        ScoredFrame(
            video=f"{number:02d}",
            image_id=0,
            height=200,
            width=300,
            true_boxes=lesion,
            true_labels=np.array([1]),
            **(hit if number < 12 * share else miss),
        )
        for number in range(12)
    ]


def test_a_model_is_ahead_by_what_it_finds_more():
    patients = {f"{number:02d}": f"patient {number // 2}" for number in range(12)}
    worse = dict.fromkeys(CONDITIONS, _found(0.5))
    better = worse | {"gain x 0.5": _found(1.0), "half the size": _found(1.0)}
    ahead = differences(worse, better, patients)
    assert list(ahead) == list(MEASURES)
    assert ahead["unchanged"].value == ahead["several lesions"].value == 0
    half = 51 / 101  # of the recalls 0, 0.01 ... 1 those up to 0.5
    assert ahead["other machines"].value == pytest.approx((1 - half) / 4)
    assert ahead["small lesions"].value == pytest.approx(1 - half)  # 30 x 30 of 200 x 300 is 1.5 % of the still
    lower, upper = ahead["other machines"].interval
    assert 0 <= lower < ahead["other machines"].value < upper
    assert differences(better, worse, patients)["other machines"].value == -ahead["other machines"].value


def test_no_difference_where_nothing_was_compared():
    large = {"unchanged": _found(1.0), "half the size": _found(0.5, side=50)}
    ahead = differences(large, large, {}, samples=0)
    assert list(ahead) == ["unchanged", "small lesions"]
    assert ahead["unchanged"].value == 0 and ahead["small lesions"].value is None
