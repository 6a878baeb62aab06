"""What a file states is used, compared or refused where it is easily missed: numbers, names, counting, other tasks."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from stnet.data.convert import convert
from stnet.data.formats import label_studio
from stnet.data.formats.account import Account
from stnet.data.formats.assigning import Owned, Rules, assign
from stnet.data.formats.classes import ClassRules, choose_classes
from stnet.data.formats.coco import parse_coco
from stnet.data.formats.cvat import read_cvat
from stnet.data.formats.label_studio import parse_label_studio
from stnet.data.formats.labelme import parse_labelme
from stnet.data.formats.marks import FoundBox, FrameMarks, ImageMarks, Mark, MarksFile, VideoBoxes, VideoMarks
from stnet.data.formats.placing import place
from stnet.data.formats.yolo import read_yolo, write_yolo
from stnet.errors import ConfigError, DataError
from stnet.video import VideoInput

WIDTH, HEIGHT = 64, 48


def key(frame, x, enabled=True):
    return {"frame": frame, "enabled": enabled, "x": x, "y": 20, "width": 10, "height": 40}


def region(*sequence, length=None, kind="videorectangle"):
    value = {"sequence": list(sequence), "labels": ["benign"]} | ({"framesCount": length} if length else {})
    return {"id": f"r{sequence[0]['x']}", "type": kind, "value": value}


def studio(tmp_path, *regions, video="clip.mp4") -> MarksFile:
    return parse_label_studio([{"data": {"video": video}, "annotations": [{"result": list(regions)}]}], tmp_path / "x")


def cvat(tmp_path, body, *tasks) -> MarksFile:
    meta = "".join(f"<task>{task}</task>" for task in tasks)
    meta = f"<meta><project><tasks>{meta}</tasks></project></meta>" if len(tasks) > 1 else f"<meta>{meta}</meta>"
    (tmp_path / "x.xml").write_text(f"<annotations>{meta}{body}</annotations>", encoding="utf-8")
    return read_cvat(tmp_path / "x.xml")


def box(x, more=""):
    return f'<box {more} xtl="{x}" ytl="5" xbr="{x + 10}" ybr="15"/>'


def track(task, frame, label="benign"):
    shape = box(3, f'frame="{frame}" outside="0"')
    return f'<track {task} label="{label}">{shape}</track>'


def image(number, more=""):
    shape = box(number, 'label="benign"')
    return f'<image id="{number}" name="frame_{number:06d}" {more}>{shape}</image>'


def task(identity, name, size, more=""):
    return f"<id>{identity}</id><size>{size}</size><mode>interpolation</mode><source>{name}.mp4</source>{more}"


def states(video, length) -> str:
    """Per frame: how many marks, "-" for a negative, "u" where nobody looked at all of it."""
    found = [video.at(number) for number in range(length)]
    return "".join("u" if f is None or f.unseen else str(len(f.marks) or "-") for f in found)


def test_a_lesion_of_label_studio_that_stays_to_the_end_is_there_beside_others(tmp_path):
    staying, later = region(key(2, 10)), region(key(5, 50, enabled=False))
    assert states(studio(tmp_path, staying, later).videos[0], 8) == "-1uuuuuu"  # nothing says where the end is
    stated = region(key(5, 50, enabled=False), length=8)  # for all regions of the video
    assert states(studio(tmp_path, staying, stated).videos[0], 8) == "-1112111"


def test_what_was_skipped_in_label_studio_is_not_taken_from_predictions(tmp_path):
    predicted = {"data": {"video": "clip.mp4"}, "predictions": [{"result": [region(key(1, 1))]}]}
    skipped = predicted | {"annotations": [{"was_cancelled": True, "result": []}]}
    assert parse_label_studio([predicted], tmp_path / "x.json").videos
    assert not parse_label_studio([skipped], tmp_path / "x.json").videos


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("clip#2.mp4", "clip#2"),
        ("clip?2.mp4", "clip?2"),
        ("https://host/a/clip%202.mp4?token=1", "clip 2"),
        (r"/data/local-files/?d=videos\clip.mp4", "clip"),
        ("http://[clip/clip.mp4", None),
    ],
)
def test_addresses_of_label_studio_are_whole_names(tmp_path, address, name):
    if name is None:
        with pytest.raises(DataError, match=r"task 0: video 'http://.*' is no address"):
            studio(tmp_path, region(key(1, 1)), video=address)
        return
    assert studio(tmp_path, region(key(1, 1)), video=address).videos[0].video == name


def test_what_two_key_frames_stand_for_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(label_studio, "MAX_BOXES", 100)
    assert studio(tmp_path, region(key(1, 1), length=100)).videos
    with pytest.raises(DataError, match="result 1: more than 100 boxes between key frames"):
        studio(tmp_path, region(key(1, 1), length=60), region(key(1, 2), length=60))


@pytest.mark.parametrize("huge", ["<size>9007199254740000</size>", "<stop_frame>1000001</stop_frame>"])
def test_frames_of_cvat_that_no_video_has(tmp_path, huge):
    with pytest.raises(DataError, match="more than 1000000 frames"):  # not after days
        cvat(tmp_path, track("", 3), huge)
    with pytest.raises(DataError, match=r"line 1: frame is 1000001, more than"):
        cvat(tmp_path, track("", 1000001))


def test_tasks_without_tracks_are_looked_at_and_unknown_ones_refused(tmp_path):
    tasks = task(4, "a", 3), task(9, "b", 2)
    videos = {video.video: video for video in cvat(tmp_path, track('task_id="4"', 2), *tasks).videos}
    assert states(videos["a"], 4) == "--1u" and states(videos["b"], 4) == "--uu"
    for unknown in ("", 'task_id="77"'):
        with pytest.raises(DataError, match=r"'frame_000002': of a task '.*' \(task_id\) that it does not list"):
            cvat(tmp_path, image(2, unknown), *tasks)
    assert cvat(tmp_path, image(1, 'task_id="9"'), *tasks).images[0].video == "b"


def test_what_a_task_says_of_its_video_holds_for_its_images(tmp_path):
    size = "<original_size><width>128</width><height>96</height></original_size>"
    steps = "<stop_frame>4</stop_frame><frame_filter>step=2</frame_filter><deleted_frames>4</deleted_frames>"
    marks = cvat(tmp_path, "".join(map(image, (0, 1, 2, 4))), task(1, "clip", 2, size + steps))
    assert [one.frame.unseen for one in marks.images] == ["", "not a frame of the CVAT task", "", "deleted in CVAT"]
    assert {one.frame.size for one in marks.images} == {(128, 96)}
    with pytest.raises(ConfigError, match="states its own frame step; leave out --frame-step"):
        place(Owned(images=list(marks.images)), "clip", [None] * 8, Rules(frame_step=2), Account())


def test_names_that_may_count_from_one_are_asked_for_where_the_file_counts_from_zero(tmp_path):
    marks = cvat(tmp_path, image(1) + image(3), task(1, "clip", 5))
    owned, names = Owned(images=list(marks.images)), [f"frame_{number:06d}.png" for number in range(1, 6)]

    def places(frames, numbering=None):
        placed = place(owned, "clip", frames, Rules(numbering=numbering), Account())
        return [index for index, frame in enumerate(placed) if frame is not None]

    with pytest.raises(DataError, match=r"is frame 1, counted from 0, but the file of that name is frame 0 of clip"):
        places(names)
    assert places(names, 0) == [1, 3] and places(names, 1) == [0, 2]
    assert places(["frame_000000.png", *names]) == [1, 3]
    assert places([names[0], names[2], names[4]]) == [0, 1]  # some of the frames, which their names tell


def test_accents_may_be_written_in_two_ways():
    composed, apart = "caf\u00e9", "cafe\u0301"
    for here, there in ((composed, apart), (apart, composed)):
        image = ImageMarks(name=f"{there}/{there}.png", frame=FrameMarks(where="here"))
        file = MarksFile(name="x.json", stem="x", images=(image,))
        videos = [VideoInput(name=name, paths=(Path(name),), origin=name) for name in (here, "other")]
        owned = assign([file], videos, Rules(), Account())
        assert place(owned[here], here, ["a.png", f"{here}.png"], Rules(), Account())[1] is image.frame
        both = [f"{here}.png", f"{there}.png"]
        assert place(owned[here], here, both, Rules(), Account()) == [None, image.frame]


def test_tracks_on_the_first_half_of_a_video_may_have_been_taken_at_a_step(tmp_path):
    account, marks = Account(), cvat(tmp_path, track("", 1), "<size>4</size>").videos[0]
    place(Owned(video=marks), "clip", [None] * 7, Rules(), account)
    assert not account.notes
    place(Owned(video=marks), "clip", [None] * 8, Rules(), account)
    assert "the first 4 of 8 frames are listed; if they were taken at a step" in next(iter(account.notes))


def test_an_order_of_images_that_nothing_states_is_asked_for():
    names = [f"{number}.png" for number in (1, 2, 10)]
    with pytest.raises(DataError, match=r"2\.png goes before 10\.png by number but not by letter"):
        place(Owned(video=VideoMarks(where="here")), "clip", names, Rules(), Account())
    for stated, frames in (("clip", names), (None, sorted(names)), (None, ["01.png", "02.png", "10.png"])):
        account = Account()
        marks = VideoMarks(where="here", video=stated)
        assert all(place(Owned(video=marks), "clip", frames, Rules(), account)) and not account.notes
    place(Owned(video=VideoMarks(where="here")), "clip", ["cover.png", "f1.png", "f2.png"], Rules(), account)
    assert "names that are not alike (cover.png, f1.png)" in next(iter(account.notes))


def test_names_in_another_order_than_the_stated_one_make_no_shuffled_video():
    def placed(*numbers):
        named = zip(("a.png", "b.png", "c.png"), numbers, strict=True)
        images = [ImageMarks(name=name, frame=FrameMarks(where="here"), number=number) for name, number in named]
        return place(Owned(images=images), "clip", ["a.png", "b.png", "c.png", "d.png"], Rules(), Account())

    for numbers in ((0, 1, 2), (7, 9, 30), (0, 0, 0), (3, None, 4)):
        assert placed(*numbers)[3] is None
    with pytest.raises(DataError, match=r"numbers 'c.png' 4 and 'b.png' 5 \(frame_id\), but the frames of clip are"):
        placed(1, 5, 4)


def test_boxes_on_images_of_cvat_are_no_lesions_of_other_files(tmp_path):
    (marks,) = cvat(tmp_path, image(1)).images[0].frame.marks
    assert marks.instance is None  # numbers that count from 1 in each file would join them


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 11, 20], [30, 40, 41]],
        [[10, 11, float("nan"), 30, 20, 30]],
        [[10**400, 5.5, 20, 30, 20.5, 30]],
        [[True, 11, 20, 30, 20, 30]],
        [[10, 11, 20, 30, 20, 30], {"counts": "abc", "size": [4, 4]}],
    ],
)
def test_polygons_of_coco_that_are_none(tmp_path, segmentation):
    document = {
        "categories": [{"id": 1, "name": "benign"}],
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}],
    }
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1\): bbox is None"):
        parse_coco(document, tmp_path / "x.json")


@pytest.mark.parametrize("number", ["1_0", "\uff11\uff10"])
def test_numbers_are_written_in_digits(tmp_path, number):
    with pytest.raises(DataError, match=f"xtl is '{number}', not a coordinate"):
        cvat(tmp_path, track("", 0).replace('xtl="3"', f'xtl="{number}"'))


def test_difficult_shapes_of_labelme_are_those_of_voc(tmp_path):
    shape = {"label": "benign", "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}
    document = {"imagePath": "a.png", "shapes": [shape | {"difficult": True}, shape | {"difficult": False}]}
    (read,) = parse_labelme(document, tmp_path / "x.json").images
    assert [mark.box for mark in read.frame.marks] == [None, (1, 2, 9, 8)]


def test_boxes_that_rounding_makes_empty_are_listed(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "0.png")
    shape = {"label": "benign", "shape_type": "rectangle"}
    shapes = [shape | {"points": [[1, 1], [right, 9]]} for right in (1.004, 9)]
    (tmp_path / "x.json").write_text(json.dumps({"imagePath": "0.png", "shapes": shapes}))
    done = convert(folder, tmp_path / "x.json", tmp_path / "out", split="train")
    assert done.boxes == 1 and "left out 1 mark: covers nothing of its frame" in done.remarks[0]


def of_labels(*marks) -> dict[str, Owned]:
    frame = FrameMarks(where="here", marks=tuple(Mark(label=label, box=found) for label, found in marks))
    return {"clip": Owned(images=[ImageMarks(name="a.png", frame=frame)])}


@pytest.mark.parametrize("label", [" ", "two\nlines", "x" * 600])
def test_names_that_no_class_can_have(tmp_path, label):
    with pytest.raises(ConfigError, match=r"class '.* is empty, too long or holds control characters"):
        choose_classes(of_labels((label, (1, 2, 3, 4))), ClassRules(), tmp_path, Account())


def test_marks_without_boxes_make_no_classes(tmp_path):
    owned = of_labels(("Benign", (1, 2, 3, 4)), ("ruler", None))
    assert choose_classes(owned, ClassRules(), tmp_path, Account()).names == ("benign", "malignant")


def labels_of(folder, names: str, *lines: str, ending=".txt") -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "data.yaml").write_text(names, encoding="utf-8")
    (folder / f"000000{ending}").write_text("\n".join(lines))
    return [mark.label for mark in read_yolo(folder)[0].images[0].frame.marks]


def test_names_of_yolo_are_read_as_they_were_written(tmp_path):
    names = ("乳腺", 'a "b"', "it's", "a\\b")
    boxes = {0: tuple(FoundBox(label=name, box=(1, 2, 30, 40)) for name in names)}
    facts = {"name": "clip", "source": "clip.mp4", "size": (WIDTH, HEIGHT), "frames": 1, "fps": 25.0}
    files = write_yolo(VideoBoxes(**facts, labels=names, boxes=boxes))
    lines = files["labels/clip/000000.txt"].splitlines()
    assert labels_of(tmp_path / "a", files["data.yaml"], *lines, ending=".TXT") == list(names)
    whole = [f"{number} 0.5 0.5 0.2 0.4" for number in range(3)]
    assert labels_of(tmp_path / "b", """names: ['it''s', "b, c", d, ]""", *whole) == ["it's", "b, c", "d"]
    for wrong in ("names: ['it's', b]", "names: [a,, b]", 'names: ["\\x"]', "names: ['a' b, c]"):
        with pytest.raises(DataError, match=re.escape("data.yaml: names")):
            labels_of(tmp_path / "c", wrong, *whole[:1])
    with pytest.raises(DataError, match="class '00000000012'"):
        labels_of(tmp_path / "d", "names: [a, b]", "00000000012 0.5 0.5 0.2 0.4")


def test_a_type_that_is_no_text_is_no_traceback(tmp_path):
    result = region(key(1, 1), kind=["videorectangle"]) | {"value": {}}
    task = {"data": {"image": "clip/0.png"}, "annotations": [{"result": [result]}]}
    with pytest.raises(DataError, match=r"result 0: type is \['videorectangle'\], expected a text"):
        parse_label_studio([task], tmp_path / "x.json")
