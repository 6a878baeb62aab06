"""Lesions in files: sizes in millimetres, entries and rows, the JSON schema, and exports that are read back."""

import csv
import json
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.data.convert import convert
from stnet.data.index import load_index
from stnet.errors import ConfigError
from stnet.inference import FrameResult
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.formats import EXPORT_FORMATS
from stnet.inference.outputs import Outputs
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.lesions.sizes import agree, sizes_of, stated_scale
from stnet.model.postprocess import Detections
from stnet.video import ArraySource
from stnet.video.scale import PixelScale, RegionScale

NAMES = {1: "benign", 2: "malignant"}
FRAMES, WIDTH, HEIGHT = 12, 64, 48
MISSED = 5
TWO_REGIONS = PixelScale(
    regions=(
        RegionScale(box=(0, 0, 40, 48), pixel_width=0.1, pixel_height=0.2, surface=4.0),
        RegionScale(box=(40, 0, 64, 48), pixel_width=0.5, pixel_height=0.5),
    )
)


def box(frame: int) -> tuple[float, float, float, float]:
    return (4.0 + frame, 10.0, 20.0 + frame, 22.0)


def result(frame: int) -> FrameResult:
    """One lesion that is missed once, listed for both classes, behind a detection that is no lesion."""
    seen = [] if frame == MISSED else [(*box(frame), 0.9, 2), (*box(frame), 0.3, 1)]
    rows = [(40.0, 30.0, 60.0, 44.0, 0.95, 1), *seen] if frame == 0 else seen
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    return FrameResult(
        video="clip",
        index=frame,
        time=frame / 25,
        detections=Detections(table[:, :4], table[:, 4], table[:, 5].long()),
        size=(HEIGHT, WIDTH),
    )


@pytest.fixture
def write(tmp_path):
    """Writes results of the clip and returns their folder."""

    def written(*formats: str, scale: PixelScale | None = None, name: str = "clip") -> Path:
        folder = tmp_path / "out"
        source = ArraySource(np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8), name, Fraction(25))
        run = RunFacts(output=tmp_path, videos=1, class_names=NAMES, score_threshold=0.4, model={}, shown={})
        files = Outputs(formats, run, True, print)
        files.begin(VideoFacts(name=name, folder=folder, source=source, origin="x", frames=FRAMES, scale=scale))
        for frame in range(FRAMES):
            files.write(result(frame))
        assert files.end(VideoEnd(key=0, name=name, status="ok", problems=(), frames=FRAMES))
        return folder

    return written


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_lesion(write):
    (row,) = rows_of(write("lesions", scale=TWO_REGIONS) / "lesions.csv")
    assert (row["lesion"], row["class"], row["frames"], row["best_frame"]) == ("1", "malignant", str(FRAMES - 1), "0")
    assert (row["first_frame"], row["last_frame"], row["last_time"]) == ("0", "11", "0.440000")
    assert float(row["score"]) == pytest.approx(0.9)
    assert [float(row[key]) for key in ("x0", "y0", "x1", "y1")] == pytest.approx(box(0), abs=0.1)
    assert [float(row[key]) for key in ("width_mm", "depth_mm", "top_mm")] == pytest.approx([1.6, 2.4, 1.2], abs=0.02)


def test_sizes_that_are_unknown_are_absent(write):
    folder = write("lesions", "json", "csv")
    (row,) = rows_of(folder / "lesions.csv")
    assert [row[key] for key in ("width_mm", "depth_mm", "top_mm")] == ["", "", ""]
    assert {row["width_mm"] for row in rows_of(folder / "detections.csv")} == {""}
    assert "mm" not in json.dumps(
        [json.loads((folder / "detections.json").read_text())[key] for key in ("frames", "lesions")]
    )


def test_the_track_tells_where_frames_list_the_lesion(write):
    content = json.loads((write("json", scale=TWO_REGIONS) / "detections.json").read_text())
    (lesion,) = content["lesions"]
    track = lesion["track"]
    assert track["frames"] == list(range(FRAMES))
    assert [number for number, row in enumerate(track["rows"]) if row is None] == [MISSED]
    for frame, row, score in zip(track["frames"], track["rows"], track["scores"], strict=True):
        if row is not None:
            listed = content["frames"][frame]
            assert listed["labels"][row] == lesion["label"] == 2 and listed["scores"][row] == score
            assert listed["boxes"][row] == list(box(frame))
            assert listed["sizes_mm"][row][:2] == pytest.approx([1.6, 2.4])
    assert track["boxes"][MISSED] == pytest.approx(box(MISSED), abs=0.1)
    assert lesion["class_scores"] == {"1": pytest.approx(0.3), "2": pytest.approx(0.9)}


def test_detections_tell_their_lesion(write):
    folder = write("json", "csv")
    frames = json.loads((folder / "detections.json").read_text())["frames"]
    assert [frame["lesions"] for frame in frames[:2]] == [[None, 1, 1], [1, 1]] and frames[MISSED]["lesions"] == []
    rows = rows_of(folder / "detections.csv")
    assert [row["lesion"] for row in rows] == ["", *["1"] * (FRAMES - 1)]
    assert sorted(path.name for path in folder.iterdir()) == ["detections.csv", "detections.json"]


@pytest.mark.parametrize("scale", [None, TWO_REGIONS])
def test_the_schema_describes_the_file(write, scale):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((resources.files("stnet.inference") / "detections.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    content = json.loads((write("json", scale=scale) / "detections.json").read_text())
    assert list(validator.iter_errors(content)) == []
    del content["lesions"][0]["track"]["rows"]
    content["lesions"][0]["guess"] = 1
    content["frames"][0]["lesions"][0] = 0
    assert len(list(validator.iter_errors(content))) == 3


@pytest.mark.parametrize("name", EXPORT_FORMATS)
def test_exports_are_read_back(write, tmp_path, name):
    folder = write(name) / f"export-{name}"
    frames = tmp_path / "clip"
    frames.mkdir()
    for number in range(FRAMES):
        Image.fromarray(np.full((HEIGHT, WIDTH), number, np.uint8)).save(frames / f"{number:06d}.png")
    marks = folder / "labels" if name == "yolo" else next(folder.iterdir())
    convert(frames, marks, tmp_path / "read", split="val")
    for number, frame in enumerate(load_index(tmp_path / "read", "val").videos[0].frames):
        assert frame.labels.tolist() == [2]
        assert np.asarray(frame.boxes)[0] == pytest.approx(box(number), abs=0.15)


def test_a_second_run_replaces_exports(write):
    folder = write("yolo")
    (folder / "export-yolo" / "labels" / "clip" / "000099.txt").write_text("")
    assert not (write("yolo") / "export-yolo" / "labels" / "clip" / "000099.txt").exists()
    assert [path.name for path in write("json").iterdir()] == ["detections.json"]


@pytest.mark.parametrize("name", ["esc\x1b[31m", "M\udcfcller", '"quoted" & <b>'])
def test_names_of_any_kind(write, name):
    folder = write(*EXPORT_FORMATS, "lesions", name=name)
    assert len(list(folder.iterdir())) == len(EXPORT_FORMATS) + 1


def test_sizes_by_regions():
    sizes = sizes_of([(10, 10, 20, 20), (50, 10, 60, 20), (-30, 0, 5, 10), (5, 5, 5, 9)], TWO_REGIONS)
    assert sizes == [(1.0, 2.0, 1.2), (5.0, 5.0, None), None, None]
    assert sizes_of([(1, 2, 3, 4)], None) == [None]


def test_a_stated_size_of_pixels():
    assert sizes_of([(0, 0, 10, 10)], stated_scale("0.1")) == [(1.0, 1.0, None)]
    assert sizes_of([(0, 0, 10, 10)], stated_scale("0.1", Fraction(2))) == [(2.0, 1.0, None)]
    assert sizes_of([(0, 0, 10, 10)], stated_scale("0.1,0.3")) == [(1.0, 3.0, None)]
    assert agree(stated_scale("0.1"), stated_scale("0.1005"))
    assert not agree(TWO_REGIONS, stated_scale("0.1,0.2"))


@pytest.mark.parametrize("text", ["", "abc", "0", "-1", "nan", "inf", "1,2,3", "0.1,", "100"])
def test_sizes_of_pixels_that_are_none(text):
    with pytest.raises(ConfigError, match="pixel"):
        stated_scale(text)
