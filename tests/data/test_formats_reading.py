"""Label Studio, LabelMe, Pascal VOC and YOLO: seen in the contents, read with all that they state."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from stnet.data.convert import convert
from stnet.data.formats.assigning import Rules
from stnet.data.index import load_index
from stnet.errors import DataError

WIDTH, HEIGHT = 100, 50


def frame_folder(folder, count: int):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((HEIGHT, WIDTH), 5 * number, np.uint8)).save(folder / f"{number:06d}.png")
    return folder


def states(tmp_path, source, annotations, **options):
    """Per frame: its boxes, "-" for a negative, "u" for a frame that is not annotated."""
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    done = convert(source, annotations, out, split="train", **options)
    frames = [frame for video in load_index(out, "train").videos for frame in video.frames]
    found = [f.boxes.round(3).tolist() if len(f.boxes) else "-" if f.annotated else "u" for f in frames]
    return found, "\n".join(done.remarks)


def key(frame, x, enabled=True, **more):
    return {"frame": frame, "enabled": enabled, "x": x, "y": 20, "width": 10, "height": 40, "rotation": 0} | more


def region(*sequence, label="benign", length=8, **more):
    value = {"sequence": list(sequence), "labels": [label], "framesCount": length} | more
    return {"id": f"r{len(sequence)}{label}", "type": "videorectangle", "value": value}


def label_studio(file, *regions, video="clip.mp4", **task):
    annotation = {"was_cancelled": False, "result": list(regions)}
    file.write_text(json.dumps([{"data": {"video": video}, "annotations": [annotation]} | task]))
    return file


def strip(x):
    return [x, 10, x + 10, 30]


def test_key_frames_of_label_studio(tmp_path):
    clip = frame_folder(tmp_path / "clip", 8)
    moving = region(key(2, 10), key(4, 30, enabled=False), key(7, 50))
    file = label_studio(tmp_path / "x.json", moving, region(key(4, 80, enabled=False), label="malignant"))
    found, _ = states(tmp_path, clip, file)
    assert found == ["-", [strip(10)], [strip(20)], [strip(30), strip(80)], "-", "-", [strip(50)], [strip(50)]]
    document = json.loads((tmp_path / "out0" / "train.json").read_text())
    assert [box["instance_id"] for box in document["annotations"]] == [1, 1, 1, 2, 1, 1]
    uploaded = "/data/upload/7/0a1b2c3d-clip.mp4"
    assert states(tmp_path, clip, label_studio(tmp_path / "x.json", moving, video=uploaded))[0][1] == [strip(10)]
    local = "/data/local-files/?d=videos/clip.mp4"
    assert states(tmp_path, clip, label_studio(tmp_path / "x.json", moving, video=local))[0][1] == [strip(10)]
    assert states(tmp_path, clip, label_studio(tmp_path / "x.json"))[0] == ["-"] * 8


@pytest.mark.parametrize(
    ("regions", "task", "message"),
    [
        ([region(key(2, 10))], {"data": {"video": "other.mp4"}}, "made on the video 'other'"),
        ([region(key(2, 10), length=80)], {}, "framesCount: states a video of 80 frames, clip has 8"),
        ([region(key(2, 3), length=4)], {}, "framesCount: states a video of 4 frames, clip has 8"),
        ([region(key(2, 10)), region(key(3, 10), length=9)], {}, "framesCount is 8 and 9"),
        ([region(key(9, 10))], {}, "frame 9 of a video of 8 frames"),
        ([region(key(0, 10))], {}, "frame is 0, expected a whole number from 1"),
        ([region(key(2, 10), key(2, 20))], {}, "frame 2 twice"),
        ([region(key(2, "10"))], {}, "x is '10', expected a number"),
        ([region(key(2, 10, enabled="yes"))], {}, "enabled is 'yes'"),
        ([region(key(2, 10), labels=["benign", "malignant"])], {}, "give every region one label"),
        ([region(key(2, 10), labels=None)], {}, "give every region one label"),
        ([], {"annotations": [{"result": []}, {"result": []}]}, "has 2 annotations"),
        ([], {"annotations": [{"result": [3]}]}, "expected a list of objects"),
        ([], {"data": 3}, "has no `data`"),
    ],
)
def test_label_studio_files_that_are_refused(tmp_path, regions, task, message):
    clip = frame_folder(tmp_path / "clip", 8)
    with pytest.raises(DataError, match=message):
        states(tmp_path, clip, label_studio(tmp_path / "x.json", *regions, **task))


def test_what_nobody_looked_at_in_label_studio(tmp_path):
    clip = frame_folder(tmp_path / "clip", 3)
    turned = region(key(2, 10, enabled=False, rotation=30), length=3)
    assert states(tmp_path, clip, label_studio(tmp_path / "x.json", turned))[0] == ["-", "u", "-"]
    endless = region(key(1, 10, enabled=False), key(2, 10))
    del endless["value"]["framesCount"]
    assert states(tmp_path, clip, label_studio(tmp_path / "x.json", endless))[0] == [[strip(10)], [strip(10)], "u"]
    skipped = [{"was_cancelled": True, "result": []}]
    with pytest.raises(DataError, match="nothing for the video clip"):
        states(tmp_path, clip, label_studio(tmp_path / "x.json", annotations=skipped))
    predicted = {"annotations": [], "predictions": [{"result": [region(key(2, 10, enabled=False), length=3)]}]}
    found, remarks = states(tmp_path, clip, label_studio(tmp_path / "x.json", **predicted))
    assert found == ["-", [strip(10)], "-"] and "nobody confirmed" in remarks


def test_images_of_label_studio(tmp_path):
    clip = frame_folder(tmp_path / "clip", 3)
    place = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}

    def result(kind, size=True, **value):
        stated = {"original_width": 200, "original_height": 100} if size else {}
        return {"type": kind, "value": {kind: ["benign"]} | value, **stated}

    tasks = [
        [result("rectanglelabels", **place), {"type": "choices", "value": {"choices": ["good"]}}],
        [result("polygonlabels", size=False, points=[[10, 20], [40, 20], [40, 60]])],
        [
            result("rectanglelabels", **place | {"rotation": 90}),
            result("ellipselabels", x=20, y=50, radiusX=5, radiusY=8),
        ],
    ]
    document = [
        {"data": {"image": f"/data/local-files/?d=clip/{number:06d}.png"}, "annotations": [{"result": results}]}
        for number, results in enumerate(tasks)
    ]
    (tmp_path / "x.json").write_text(json.dumps(document))
    found, remarks = states(tmp_path, clip, tmp_path / "x.json")
    assert found == [[[10, 10, 40, 30]], [[10, 10, 40, 30]], [[0, 10, 10, 40], [15, 21, 25, 29]]]
    assert "scaled from 200 x 100 to 100 x 50" in remarks and "no shapes are passed over" in remarks


def test_labelme(tmp_path):
    clip = frame_folder(tmp_path / "clip", 4)
    shapes = [
        [("rectangle", [[30, 5], [10, 25]])],
        [("polygon", [[10, 5], [30, 5], [20, 25]]), ("circle", [[50, 20], [50, 25]])],
        [("linestrip", [[1, 1], [5, 5]])],
        [],
    ]
    (tmp_path / "marks").mkdir()
    for number, drawn in enumerate(shapes):
        document = {
            "version": "5.4.1",
            "imagePath": f"..\\clip\\{number:06d}.png",
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
            "imageData": None,
            "shapes": [{"label": "benign", "points": p, "shape_type": kind, "group_id": None} for kind, p in drawn],
        }
        (tmp_path / "marks" / f"{number:06d}.json").write_text(json.dumps(document))
    found, remarks = states(tmp_path, clip, tmp_path / "marks")
    assert found == [[[10, 5, 30, 25]], [[10, 5, 30, 25], [45, 15, 55, 25]], "u", "-"] and "linestrip" in remarks
    (tmp_path / "marks" / "000003.json").write_text(
        json.dumps(document | {"shapes": [{"label": "x", "points": [[1]]}]})
    )
    with pytest.raises(DataError, match=r"shapes\[0\]: points is \[\[1\]\]"):
        states(tmp_path, clip, tmp_path / "marks")


VOC = """<annotation><folder>clip</folder><filename>{name}</filename><size><width>{width}</width><height>50</height>
<depth>1</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>benign</name><difficult>{difficult}</difficult><bndbox><xmin>10</xmin><ymin>5</ymin>
<xmax>30</xmax><ymax>25</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"""


def test_pascal_voc(tmp_path):
    clip = frame_folder(tmp_path / "clip", 4)
    turned = OBJECT.format(difficult=0).split("<bndbox>")[0] + (
        "<robndbox><cx>50</cx><cy>20</cy><w>20</w><h>6</h><angle>1.5707963267948966</angle></robndbox></object>"
    )
    objects = [OBJECT.format(difficult=0) + turned, OBJECT.format(difficult=1), ""]
    (tmp_path / "marks").mkdir()
    for number, found in enumerate(objects):
        text = VOC.format(name=f"{number:06d}.png", width=WIDTH, objects=found)
        (tmp_path / "marks" / f"{number}.xml").write_text(text)
    found, _ = states(tmp_path, clip, tmp_path / "marks")
    assert found == [[[10, 5, 30, 25], [47, 10, 53, 30]], "u", "-", "u"]
    for name, width, body, message in (
        ("000003.png", 70, "", "drawn on a picture of 70 x 50"),
        ("", WIDTH, "", "filename is missing"),
        ("000003.png", WIDTH, OBJECT.format(difficult=0).replace("<xmin>10</xmin>", ""), "bndbox has no xmin"),
        ("000003.png", WIDTH, OBJECT.format(difficult=0).replace("<xmin>10", "<xmin>9</xmin><xmin>10"), "xmin is both"),
    ):
        (tmp_path / "marks" / "3.xml").write_text(VOC.format(name=name, width=width, objects=body))
        with pytest.raises(DataError, match=message):
            states(tmp_path, clip, tmp_path / "marks")


BOMB = """<!DOCTYPE annotation [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>
<annotation><filename>&y;</filename></annotation>"""


def test_hostile_files_of_every_format(tmp_path):
    clip = frame_folder(tmp_path / "clip", 1)
    deep = "[" * 100_000 + "]" * 100_000
    for name, text, message in (
        ("bomb.xml", BOMB, "document type"),
        ("deep.json", deep, "nested too deeply|not valid JSON"),
        ("number.json", "3", "a JSON int"),
        ("text.json", '"text"', "a JSON str"),
        ("twice.json", '{"shapes": [], "shapes": []}', "key 'shapes' twice"),
        ("empty.json", "[]", "nothing for the video clip"),
        ("csv.csv", "a,b", "give a .json, .xml or .txt file"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            states(tmp_path, clip, tmp_path / name)
    for format_name in ("coco", "cvat", "label-studio", "labelme", "voc", "yolo"):
        (tmp_path / "any").write_bytes(b"\xff\xfe\x00garbage")
        with pytest.raises(DataError):
            states(tmp_path, clip, tmp_path / "any", format_name=format_name)


NAMES = {
    "data.yaml": "path: x\nnc: 2\nnames: ['benign', \"malignant\"]  # two\n",
    "dataset.yaml": "names:\n  0: benign\n  1: 'malignant'\nnc: 2\n",
    "classes.txt": "benign\nmalignant\n\n",
    "obj.names": "benign\r\nmalignant",
}


@pytest.mark.parametrize("names", NAMES)
def test_yolo(tmp_path, names):
    clip = frame_folder(tmp_path / "clip", 4)
    labels = tmp_path / "labels" / "clip"
    labels.mkdir(parents=True)
    (tmp_path / names).write_bytes(NAMES[names].encode())
    (labels / "000000.txt").write_text("1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.2 0.4 0.93\n")
    (labels / "000001.txt").write_text("0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n")
    (labels / "000002.txt").write_text("")
    found, _ = states(tmp_path, clip, tmp_path / "labels")
    assert found == [[[40, 15, 60, 35], [0, 0, 20, 20]], [[10, 10, 30, 30]], "-", "u"]
    labelled = load_index(tmp_path / "out0", "train").videos[0].frames[0].labels
    assert labelled.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.4", "class '2' is not among the 2 classes"),
        ("0 50 50 20 40", "not pixels"),
        ("0 0.5 0.5 0.2", "4 values; expected"),
        ("0 0.5 0.5 0.2 nan", "'nan' is no number"),
        ("0 0.5 0.5 0.2 0.4 0.9 3", "7 values; expected"),
        ("-1 0.5 0.5 0.2 0.4", "class '-1'"),
    ],
)
def test_yolo_labels_that_are_refused(tmp_path, line, message):
    clip = frame_folder(tmp_path / "clip", 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000000.txt").write_text("0 0.5 0.5 0.2 0.4\n" + line)
    with pytest.raises(DataError, match="names the classes"):
        states(tmp_path, clip, tmp_path / "labels")
    (tmp_path / "classes.txt").write_text("benign\nmalignant")
    with pytest.raises(DataError, match=f"000000.txt: line 2: .*{message}"):
        states(tmp_path, clip, tmp_path / "labels")


@pytest.mark.parametrize(
    "text", ["names: &a [x]", "names: !!python/object:os.system [x]", "nc: 2", "names: [a, [b]]", ""]
)
def test_only_plain_lists_of_names_are_read_from_yaml(tmp_path, text):
    clip = frame_folder(tmp_path / "clip", 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000000.txt").write_text("0 0.5 0.5 0.2 0.4")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        states(tmp_path, clip, tmp_path / "labels")


def test_names_of_ultralytics_count_from_what_the_user_says(tmp_path):
    clip = frame_folder(tmp_path / "clip", 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("benign")
    for number in (1, 3):
        (tmp_path / "labels" / f"clip_{number}.txt").write_text("0 0.5 0.5 0.2 0.4")
    with pytest.raises(DataError, match="2 of 2 entries would be left out"):
        states(tmp_path, clip, tmp_path / "labels")
    found, _ = states(tmp_path, clip, tmp_path / "labels", rules=Rules(numbering=1))
    assert found == [[[40, 15, 60, 35]], "u", [[40, 15, 60, 35]]]


def test_marks_on_rotated_pictures_of_label_studio_are_refused(tmp_path):
    clip = frame_folder(tmp_path / "clip", 1)
    value = {"x": 10, "y": 10, "width": 10, "height": 10, "rectanglelabels": ["benign"]}
    result = {"type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    task = {"data": {"image": "clip/000000.png"}, "annotations": [{"result": [result | {"image_rotation": 90}]}]}
    (tmp_path / "x.json").write_text(json.dumps([task]))
    with pytest.raises(DataError, match="result 0: drawn on a rotated picture"):
        states(tmp_path, clip, tmp_path / "x.json")


def test_a_voc_file_in_the_folder_of_another_video_is_refused(tmp_path):
    for name in ("clip", "other"):
        frame_folder(tmp_path / "src" / name, 1)
    (tmp_path / "marks" / "other").mkdir(parents=True)
    (tmp_path / "marks" / "other" / "0.xml").write_text(VOC.format(name="000000.png", width=WIDTH, objects=""))
    with pytest.raises(DataError, match="in the folder of other, but said to be of the video clip"):
        states(tmp_path, tmp_path / "src", tmp_path / "marks")


def test_files_that_name_the_classes_of_yolo_differently_are_refused(tmp_path):
    clip = frame_folder(tmp_path / "clip", 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000000.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "labels" / "classes.txt").write_text("malignant\nbenign\n")
    (tmp_path / "data.yaml").write_text("names: [benign, malignant]\n")
    with pytest.raises(DataError, match=r"class 0 is 'malignant', by .*data.yaml it is 'benign'"):
        states(tmp_path, clip, tmp_path / "labels")


def test_key_points_of_yolo_are_no_polygon(tmp_path):
    clip = frame_folder(tmp_path / "clip", 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000000.txt").write_text("0 0.5 0.5 0.2 0.4 0.45 0.45 1 0.55 0.55 1\n")
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 3]  # a comment\nnames: [benign]\n")
    box = [0.4 * WIDTH, 0.3 * HEIGHT, 0.6 * WIDTH, 0.7 * HEIGHT]
    np.testing.assert_allclose(states(tmp_path, clip, tmp_path / "labels")[0][0][0], box, atol=0.01)
    (tmp_path / "data.yaml").write_text("kpt_shape: [3, 3]\nnames: [benign]\n")
    with pytest.raises(DataError, match="11 values; expected a class, a box and 9 of key points"):
        states(tmp_path, clip, tmp_path / "labels")


def test_a_data_yaml_that_counts_its_classes_otherwise_is_refused(tmp_path):
    clip = frame_folder(tmp_path / "clip", 1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000000.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("nc: 3\nnames: [benign, malignant]\n")
    with pytest.raises(DataError, match="nc is 3, but names lists 2 classes"):
        states(tmp_path, clip, tmp_path / "labels")


def test_frames_counted_at_another_rate_than_the_videos_are_refused(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((HEIGHT, WIDTH), np.uint8), format="gray")))
        container.mux(stream.encode())

    def marks(rate, length):
        lesion = region(key(1, 5, time=0), key(9, 5, enabled=False, time=8 / rate), length=length)
        if length is None:
            del lesion["value"]["framesCount"]
        return label_studio(tmp_path / "x.json", lesion)

    with pytest.raises(DataError, match=r"count 25 frames per second, the video has 10; set the frame rate"):
        states(tmp_path, tmp_path / "clip.mkv", marks(25, None))
    for rate, length in ((10, None), (25, 12)):
        assert states(tmp_path, tmp_path / "clip.mkv", marks(rate, length))[0][:9] == [[strip(5)]] * 9


FOREIGN = {
    "COCO results": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
    "GeoJSON": {"type": "FeatureCollection", "features": []},
    "VGG Image Annotator": {"a.png12": {"filename": "a.png", "size": 12, "regions": [], "file_attributes": {}}},
    r"\(VIA\)": {"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}},
    "Supervisely": {"description": "", "tags": [], "size": {"height": 4, "width": 4}, "objects": []},
    "CreateML": [{"image": "a.png", "annotations": []}],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_formats_are_named_for_what_they_are(tmp_path, name):
    clip = frame_folder(tmp_path / "clip", 1)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(FOREIGN[name]))
    for read in (
        lambda: states(tmp_path, clip, file),
        lambda: states(tmp_path, clip, file, format_name="coco"),
        lambda: load_index(tmp_path, "train"),
    ):
        with pytest.raises(DataError, match=rf"train\.json: is .*{name}.*, which is not read; (export|give)"):
            read()


@pytest.mark.parametrize(
    ("content", "what"), [(b"PK\x03\x04rest", "an archive .zip., not .*; unpack it first"), (b"<html>", "an HTML page")]
)
@pytest.mark.parametrize("ending", [".json", ".zip"])
def test_archives_and_pages_are_no_annotation_files(tmp_path, content, what, ending):
    (tmp_path / f"marks{ending}").write_bytes(content)
    with pytest.raises(DataError, match=f"marks{ending}: is {what}"):
        states(tmp_path, frame_folder(tmp_path / "clip", 1), tmp_path / f"marks{ending}")


def test_shapes_of_labelme_that_state_no_type(tmp_path):
    clip = frame_folder(tmp_path / "clip", 1)
    shape = {"label": "benign", "points": [[10, 5], [30, 5], [20, 25]], "shape_type": None}
    document = {"imagePath": "000000.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": [shape]}
    (tmp_path / "000000.json").write_text(json.dumps(document))
    assert states(tmp_path, clip, tmp_path / "000000.json")[0] == [[[10, 5, 30, 25]]]  # as LabelMe reads them
    shape["points"].pop()
    (tmp_path / "000000.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="2 points without a shape_type, no polygon; state"):
        states(tmp_path, clip, tmp_path / "000000.json")


def test_a_voc_file_of_another_name_than_its_image_is_told(tmp_path):
    clip = frame_folder(tmp_path / "clip", 2)
    text = VOC.format(name="000000.png", width=100, objects="").replace("<height>50", f"<height>{HEIGHT}")
    (tmp_path / "000001.xml").write_text(text.replace("<width>100", f"<width>{WIDTH}"))
    found, remarks = states(tmp_path, clip, tmp_path / "000001.xml")
    assert found == ["-", "u"] and "placed by their filename (first in " in remarks


def test_a_labelme_file_of_another_name_than_its_image_is_told(tmp_path):
    clip = frame_folder(tmp_path / "clip", 3)
    (tmp_path / "marks").mkdir()
    shape = {"label": "benign", "points": [[10, 5], [30, 25]], "shape_type": "rectangle"}
    document = {"imagePath": "000000.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": [shape]}
    (tmp_path / "marks" / "000000.json").write_text(json.dumps(document))
    assert "imagePath" not in states(tmp_path, clip, tmp_path / "marks")[1]
    (tmp_path / "marks" / "000000.json").rename(tmp_path / "marks" / "000002.json")
    found, remarks = states(tmp_path, clip, tmp_path / "marks")
    assert found == [[[10, 5, 30, 25]], "u", "u"]
    assert "not called like their image are placed by their imagePath (first in " in remarks
    assert "000002.json)" in remarks
