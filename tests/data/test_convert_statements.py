"""What annotation files say of themselves is honoured, converted or refused; nothing is placed by a guess."""

import errno
import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from stnet.data import convert as command
from stnet.data.convert import convert
from stnet.data.convert_command import main
from stnet.data.formats.assigning import Rules
from stnet.data.formats.classes import ClassRules
from stnet.data.index import load_index
from stnet.errors import ConfigError, DataError

HEIGHT, WIDTH = 48, 64
CATEGORIES = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]


def frame_folder(folder, count: int, first: int = 0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.fromarray(np.full((HEIGHT, WIDTH), 5 * number % 256, np.uint8)).save(folder / f"{number:06d}.png")
    return folder


def video_file(path, count: int = 10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH), number, np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def coco(file, names, size=(WIDTH, HEIGHT), image=None, entry=None, **document):
    """One box [5 i + 1, 1, 10, 10] on the image i; `image` and `entry` are more keys for each of both."""
    images = [{"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names)]
    images = [item | (image(i) if image else {}) for i, item in enumerate(images)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5 * i + 1, 1, 10, 10]} for i in range(len(names))]
    boxes = [box | (entry or {}) for box in boxes]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES} | document))
    return file


def box(frame, x, extra=""):
    return f'<box frame="{frame}" outside="0" keyframe="1" xtl="{x}" ytl="5" xbr="{x + 10}" ybr="15" {extra}/>'


def cvat(file, body, meta=""):
    meta = f"<meta><task>{meta}</task></meta>" if meta else ""
    file.write_text(f"<annotations><version>1.1</version>{meta}{body}</annotations>")
    return file


OUTSIDE = box(3, 1).replace('outside="0"', 'outside="1"')


def track(*boxes):
    return f'<track id="0" label="benign">{"".join(boxes)}</track>'


def table(tmp_path, source, annotations, **options):
    """Per frame: the boxes, "-" for a negative, "u" for a frame that is not annotated; and the remarks."""
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    done = convert(source, annotations, out, split="train", **options)
    states = [
        [f.boxes.round(2).tolist() if len(f.boxes) else "-" if f.annotated else "u" for f in video.frames]
        for video in load_index(out, "train").videos
    ]
    return (states[0] if len(states) == 1 else states), "\n".join(done.remarks)


def squares(*numbers):
    return [[[5 * n + 1, 1, 5 * n + 11, 11]] for n in numbers]


def test_boxes_of_other_videos_stay_away(tmp_path):
    source = frame_folder(tmp_path / "src" / "a", 2)
    names = ["a/000000.png", "a/000001.png", "b/000000.png", "b/000001.png"]
    states, remarks = table(tmp_path, source, coco(tmp_path / "x.json", names))
    assert states == squares(0, 1) and "2 entries with 2 marks: of the video 'b'" in remarks
    stated = {"image": lambda i: {"video_id": i % 2}, "videos": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}
    names = ["000000.png", "000001.png", "000001.png", "x.png"]
    states, _ = table(tmp_path, source, coco(tmp_path / "y.json", names, **stated))
    assert states == squares(0, 2)
    with pytest.raises(DataError, match="in the folder of a, but said to be of the video b"):
        frame_folder(tmp_path / "src" / "b", 2)
        table(tmp_path, tmp_path / "src", coco(tmp_path / "z.json", ["a/000000.png", "a/000001.png"], **stated))


@pytest.mark.parametrize(
    "pattern", ["1a2b3c4d-{:06d}.png", "a/{:d}.png", "{:06d}_png.rf.0f9a{:08d}3e12.jpg", "images/{:06d}.png"]
)
def test_names_of_no_frame_are_refused(tmp_path, pattern):
    source = frame_folder(tmp_path / "a", 5, first=1)
    file = coco(tmp_path / "x.json", [pattern.format(i, i) for i in range(1, 6)])
    with pytest.raises(DataError, match=r"5 of 5 entries would be left out(.|\n)*(--numbering|--video-from)"):
        table(tmp_path, source, file)
    with pytest.raises(DataError, match="left out"):  # one that fits does not excuse five that do not
        table(tmp_path, source, coco(tmp_path / "x.json", ["000001.png", *(pattern.format(i, i) for i in range(1, 6))]))
    assert not (tmp_path / "out0").exists()


@pytest.mark.parametrize(
    ("pattern", "rules"),
    [
        ("1a2b3c4d-{:06d}.png", Rules(numbering=1)),
        ("{:06d}_png.rf.0f9a3e12.jpg", Rules(video_from=re.compile(r"(?P<name>\d+)_png\.rf"))),
        ("{:06d}_png.rf.0f9a3e12.jpg", Rules(numbering=1, video_from=re.compile(r"(?P<frame>\d+)_png\.rf"))),
        ("images/{:06d}.png", Rules(video_from=re.compile("^images/"))),
        ("a_{:06d}.png", Rules(video_from=re.compile(r"^(?P<video>.)_(?P<name>\d+)"))),
        ("{:06d}.jpg", Rules()),
    ],
)
def test_what_the_user_says_places_them(tmp_path, pattern, rules):
    source = frame_folder(tmp_path / "a", 3, first=1)
    file = coco(tmp_path / "x.json", [pattern.format(i) for i in range(1, 4)])
    states, _ = table(tmp_path, source, file, rules=rules)
    assert states == squares(0, 1, 2)


def test_frames_of_video_files_are_counted_only_from_a_stated_number(tmp_path):
    clip = video_file(tmp_path / "clip.mkv")
    zero = coco(tmp_path / "zero.json", ["clip/000000.png", "clip/000004.png"])
    assert table(tmp_path, clip, zero)[0] == [*squares(0), "u", "u", "u", *squares(1), *"uuuuu"]
    one = coco(tmp_path / "one.json", [f"frame_{i:04d}.jpg" for i in range(1, 11)])
    with pytest.raises(DataError, match=r"counted from \(they go from 1 to 10, clip has 10 frames\).*--numbering 0 or"):
        table(tmp_path, clip, one)
    assert table(tmp_path, clip, one, rules=Rules(numbering=1))[0] == squares(*range(10))
    stepped = coco(tmp_path / "stepped.json", [f"{i}.jpg" for i in range(4)])
    states, remarks = table(tmp_path, clip, stepped)
    assert states[:4] == squares(*range(4)) and "--frame-step" in remarks
    states, _ = table(tmp_path, clip, stepped, rules=Rules(frame_step=3))
    assert states == [*squares(0), "u", "u", *squares(1), "u", "u", *squares(2), "u", "u", *squares(3)]
    hashes = coco(tmp_path / "hash.json", ["0a1b2c0.png", "77fe01.png"])
    with pytest.raises(DataError, match="no number of a frame"):
        table(tmp_path, clip, hashes, rules=Rules(numbering=0))
    frames = {"image": lambda i: {"frame_id": 3 * i, "video_id": 7}, "videos": [{"id": 7, "name": "clip.mkv"}]}
    vid = coco(tmp_path / "vid.json", ["x.png", "y.png", "z.png"], **frames)
    assert table(tmp_path, clip, vid)[0][3] == squares(1)[0]
    vid = coco(tmp_path / "vid.json", ["0.png", "1.png", "2.png"], **frames)
    with pytest.raises(DataError, match="count differently"):
        table(tmp_path, clip, vid)


def test_a_frame_named_twice_is_refused(tmp_path):
    source = frame_folder(tmp_path / "a", 3)
    with pytest.raises(DataError, match=r"images\[1\].*the same frame as .*images\[0\]"):
        table(tmp_path, source, coco(tmp_path / "x.json", ["000000.png", "a/000000.png"]))


def test_keys_that_stand_twice_are_refused(tmp_path):
    source = frame_folder(tmp_path / "a", 1)
    file = coco(tmp_path / "x.json", ["000000.png"])
    file.write_text(file.read_text().replace('"bbox"', '"bbox": [1, 1, 2, 2], "bbox"'))
    with pytest.raises(DataError, match="the key 'bbox' twice"):
        table(tmp_path, source, file)


def test_marks_of_scaled_copies_are_scaled_and_of_other_pictures_refused(tmp_path):
    source = frame_folder(tmp_path / "a", 2)
    names = ["000000.png", "000001.png"]
    states, remarks = table(tmp_path, source, coco(tmp_path / "x.json", names, (640, 480)))
    assert np.allclose(states[0], [[0.1, 0.1, 1.1, 1.1]]) and "scaled from 640 x 480 to 64 x 48 (2 times)" in remarks
    for size in ((640, 400), (64, 47), (48, 64), (65, 48)):
        with pytest.raises(DataError, match=rf"drawn on a picture of {size[0]} x {size[1]}, the frames are 64 x 48"):
            table(tmp_path, source, coco(tmp_path / "x.json", names, size))
    size = "<original_size><width>128</width><height>96</height></original_size><size>2</size>"
    states, _ = table(tmp_path, source, cvat(tmp_path / "x.xml", track(box(0, 10)), size))
    assert states == [[[5, 2.5, 10, 7.5]], "u"]
    labelled = box(0, 10, 'label="benign"')
    image = f'<image name="000000.png" width="128" height="96">{labelled}</image>'
    assert table(tmp_path, source, cvat(tmp_path / "x.xml", image))[0] == [[[5, 2.5, 10, 7.5]], "u"]


@pytest.mark.parametrize(
    ("body", "meta", "expected"),
    [
        (
            track(box(2, 1), box(4, 1), box(6, 1)),
            "<start_frame>2</start_frame><stop_frame>6</stop_frame><frame_filter>step=2</frame_filter><size>3</size>",
            "uuBuBuBu",
        ),
        (track(box(2, 1)), "<start_frame>2</start_frame><stop_frame>4</stop_frame>", "uuBuuuuu"),
        (track(box(2, 1)), "<size>4</size>", "--Buuuuu"),
        (track(box(2, 1), OUTSIDE), "<size>5</size>", "--B--uuu"),
        (track(box(3, 1)), "<size>4</size>", "---Buuuu"),
        (track(box(3, 1)), "<size>5</size><deleted_frames>4</deleted_frames>", "---Buuuu"),
        (track(box(2, 1), box(4, 1)), "<size>8</size><deleted_frames>3, 6</deleted_frames>", "--BuBuuu"),
        (track(box(0, 1), box(4, 1, 'outside="1"').replace('outside="0"', "")), "", "Buuu----"),
        (track(box(0, 1), box(4, 1)), "", "BuuuBuuu"),
        (track(box(0, 1), box(4, 1)), "<size>6</size>", "BuuuBuuu"),
        ("", "<size>8</size>", "--------"),
        ("", "<size>3</size><mode>interpolation</mode>", "---uuuuu"),
        (track('<polyline frame="1" points="1,1;5,5"/>', box(0, 3)), "", "Bu------"),
        (
            track('<points frame="1" points="1,1"/>', '<skeleton frame="2"><points points="1,1"/></skeleton>'),
            "",
            "-uu-----",
        ),
        (track('<mask frame="1" rle="1" left="3" top="4" width="5" height="6"/>'), "", "-B------"),
        ('<image name="000001.png"><tag label="malignant"/></image>', "", "uuuuuuuu"),
    ],
)
def test_frames_that_nobody_saw_are_no_negatives(tmp_path, body, meta, expected):
    source = frame_folder(tmp_path / "a", 8)
    states, _ = table(tmp_path, source, cvat(tmp_path / "x.xml", body, meta))
    assert "".join(state if isinstance(state, str) else "B" for state in states) == expected


@pytest.mark.parametrize(
    ("body", "meta", "message"),
    [
        (
            track(box(3, 1)),
            "<start_frame>2</start_frame><stop_frame>6</stop_frame><frame_filter>step=2</frame_filter>",
            "not a frame of the CVAT task",
        ),
        (track(box(1, 1), box(3, 1)), "<size>300</size>", "shows frames to 299, but the video has 8"),
        (track(box(3, 1)), "<size>300</size>", "shows frames to 299, but the video has 8"),
        (track(box(3, 1)), "<size>3</size><stop_frame>7</stop_frame>", "a task of 3 frames that are 8"),
        (track(box(3, 1)), "<frame_filter>every 5th</frame_filter>", "frame_filter is 'every 5th'"),
        (track(box(3, 1)), "<size>8</size><deleted_frames>3</deleted_frames>", "deleted in CVAT"),
        (track(box(3, 1)), "<size>8</size><size>9</size>", "size is both '8' and '9'"),
        (track(box(3, 1)), "<size>many</size>", "size is 'many'"),
        (track(box(3, 1)), "<original_size><width>64</width></original_size>", "original_size is 64 x None"),
        (track(box(3, 1)), "<source>other.mp4</source>", "made on the video 'other'"),
        (track(box(3, 1), box(3, 2)), "", "two different shapes on frame 3"),
        (track(box(3, 1)) + track(box(3, 1)), "", "track '0' twice"),
        (track(box(3, 1, 'rotation="much"')), "", "rotation is 'much'"),
        (track('<polygon frame="1" points="1,1;5"/>'), "", "points are not pairs"),
        (box(3, 1), "", "a <box> outside of a track"),
    ],
)
def test_cvat_files_that_contradict_the_video_or_themselves(tmp_path, body, meta, message):
    source = frame_folder(tmp_path / "a", 8)
    with pytest.raises(DataError, match=re.escape(message)):
        table(tmp_path, source, cvat(tmp_path / "x.xml", body, meta))


def test_tasks_of_a_project_go_to_their_videos(tmp_path):
    for name in "ab":
        frame_folder(tmp_path / "src" / name, 2)
    meta = "".join(
        f"<task><id>{i}</id><size>2</size><source>{name}.mp4</source></task>" for i, name in ((4, "a"), (9, "b"))
    )
    tracks = "".join(track(box(0, i)).replace("id=", f'task_id="{i}" id=') for i in (9, 4))
    file = tmp_path / "p.xml"
    file.write_text(f"<annotations><meta><project><tasks>{meta}</tasks></project></meta>{tracks}</annotations>")
    assert table(tmp_path, tmp_path / "src", file)[0] == [[[[4, 5, 14, 15]], "u"], [[[9, 5, 19, 15]], "u"]]


def test_rotated_boxes_and_closed_shapes_become_the_boxes_around_them(tmp_path):
    source = frame_folder(tmp_path / "a", 4)
    body = track(box(0, 20, 'rotation="90.0"').replace('ybr="15"', 'ybr="9"')) + track(
        '<ellipse frame="1" cx="30" cy="20" rx="8" ry="4" rotation="90"/>',
        '<polygon frame="2" points="10,9;20,30;15,4"/>',
        box(3, 20, 'rotation="45"'),
    ).replace('id="0"', 'id="1"')
    states, remarks = table(tmp_path, source, cvat(tmp_path / "x.xml", body))
    assert states[:3] == [[[23, 2, 27, 12]], [[26, 12, 34, 28]], [[10, 4, 20, 30]]]
    np.testing.assert_allclose(states[3][0], [17.93, 2.93, 32.07, 17.07], atol=0.01)
    assert "each rotated box became the box around it (2 times)" in remarks
    rotated = coco(tmp_path / "r.json", ["000000.png"], entry={"attributes": {"rotation": 90}, "bbox": [20, 5, 10, 4]})
    assert table(tmp_path, source, rotated)[0][0] == [[23, 2, 27, 12]]
    polygon = {"bbox": [], "segmentation": [[10, 9, 20, 30, 15, 4], [3, 3, 4, 4, 3, 4]]}
    assert table(tmp_path, source, coco(tmp_path / "s.json", ["000000.png"], entry=polygon))[0][0] == [[3, 3, 20, 30]]


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_frame_with_a_crowd_is_not_annotated(tmp_path, key):
    source = frame_folder(tmp_path / "a", 2)
    states, remarks = table(tmp_path, source, coco(tmp_path / "x.json", ["000000.png"], entry={key: 1}))
    assert states == ["u", "u"] and "count as not annotated" in remarks
    with pytest.raises(DataError, match=f"{key} is 'maybe'"):
        table(tmp_path, source, coco(tmp_path / "x.json", ["000000.png"], entry={key: "maybe"}))


def test_integral_floats_and_other_harmless_spellings(tmp_path):
    source = frame_folder(tmp_path / "a", 2)
    file = coco(tmp_path / "x.json", ["./a/000000.png", "000001.png"])
    document = json.loads(file.read_text(), parse_int=float)
    document = {key: [dict(reversed(entry.items())) | {"more": None} for entry in document[key]] for key in document}
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        file.write_text(json.dumps(document), encoding=encoding)
        assert table(tmp_path, source, file)[0] == squares(0, 1)
    content = cvat(tmp_path / "x.xml", track(box("1.0", 1)), "<size>2.0</size>").read_text()
    for encoding in ("utf-16", "latin-1"):
        text = f'<?xml version="1.0" encoding="{encoding}"?>{content}'
        (tmp_path / "x.xml").write_text(text, encoding=encoding)
        assert table(tmp_path, source, tmp_path / "x.xml")[0] == ["-", [[1, 5, 11, 15]]]


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


def test_images_of_several_videos_need_names_of_these(tmp_path):
    source = frame_folder(tmp_path / "a", 3)
    names = [f"{n:06d}.png" for n in range(3)]
    with pytest.raises(DataError, match=r"of 2 videos .video_id., of which `videos` names none"):
        table(tmp_path, source, coco(tmp_path / "x.json", names, image=lambda i: {"video_id": i // 2}))
    states, _ = table(tmp_path, source, coco(tmp_path / "x.json", names, image=lambda i: {"video_id": 7}))
    assert states == squares(0, 1, 2)


def test_two_folders_of_one_name_are_not_one_video(tmp_path):
    source = frame_folder(tmp_path / "src" / "clip", 2).parent
    file = coco(tmp_path / "x.json", ["left/clip/000000.png", "right/clip/000001.png"])
    with pytest.raises(DataError, match=r"in 'right/clip', other entries of clip are in 'left/clip'; .*--video-from"):
        table(tmp_path, source, file)
    last = Rules(video_from=re.compile("([^/]+)/[^/]+$"))
    assert table(tmp_path, source, file, rules=last)[0] == squares(0, 1)
    longer = coco(tmp_path / "x.json", ["clip/000000.png", "left/clip/000001.png"])
    assert table(tmp_path, source, longer)[0] == squares(0, 1)


def test_images_of_cvat_belong_to_the_video_that_they_were_taken_from(tmp_path):
    clip = video_file(tmp_path / "clip.mkv")
    labelled = box(0, 10, 'label="benign"')
    image = f'<image id="2" name="frame_000002" width="{WIDTH}" height="{HEIGHT}">{labelled}</image>'
    with pytest.raises(DataError, match="of the video 'other', which is not there"):
        table(tmp_path, clip, cvat(tmp_path / "x.xml", image, "<source>other.mp4</source>"))
    assert table(tmp_path, clip, cvat(tmp_path / "x.xml", image, "<source>clip.mp4</source>"))[0][2] == [
        [10, 5, 20, 15]
    ]


def test_folders_beside_files_are_not_taken_for_the_videos(tmp_path):
    source = frame_folder(tmp_path / "src", 2)
    file = coco(tmp_path / "x.json", ["000000.png"])
    frame_folder(source / "masks", 2)
    with pytest.raises(DataError, match=r"holds 000000.png and folders; which are the videos"):
        table(tmp_path, source, file)
    frame_folder(tmp_path / "mixed" / "a", 2)
    video_file(tmp_path / "mixed" / "b.mkv")
    with pytest.raises(DataError, match=r"holds b.mkv and folders"):
        table(tmp_path, tmp_path / "mixed", coco(tmp_path / "x.json", ["a/000000.png"]))
    (tmp_path / "mixed" / "b.mkv").rename(tmp_path / "mixed" / "DICOMDIR")  # the index of a disc, whatever is in it
    assert table(tmp_path, tmp_path / "mixed", coco(tmp_path / "x.json", ["a/000000.png"]))[0] == [*squares(0), "u"]


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


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_coco_file_says_of_its_videos_is_compared_with_them(tmp_path, kind):
    source = frame_folder(tmp_path / "a", 10) if kind == "folder" else video_file(tmp_path / "a.mkv", 10)

    def converted(**stated):
        image = {"image": lambda i: {"video_id": 0, "frame_id": i}, "videos": [{"id": 0, "name": "a"} | stated]}
        return table(tmp_path, source, coco(tmp_path / "x.json", [f"{i:06d}.png" for i in range(10)], **image))

    for true in ({}, {"length": 10, "width": WIDTH, "height": HEIGHT}, {"length": 11.0}, {"width": 0, "height": None}):
        states, remarks = converted(**true)
        assert states == squares(*range(10)) and "states" not in remarks
    assert converted(width=2 * WIDTH, height=2 * HEIGHT)[0] == squares(*range(10))  # a scaled copy was annotated
    with pytest.raises(DataError, match=r"videos\[0\] 'a': drawn on a picture of 640 x 40, the frames are 64 x 48"):
        converted(width=640, height=40)
    with pytest.raises(DataError, match=r"videos\[0\] 'a': length is 'ten', expected a whole number"):
        converted(length="ten")
    if kind == "folder":  # a selection of a video's frames, which their names place
        assert "states a video of 30 frames, a has 10; its entries are placed by their names" in converted(length=30)[1]
    else:
        with pytest.raises(
            DataError, match=r"videos\[0\] 'a': states a video of 30 frames, a has 10: is it of another"
        ):
            converted(length=30)


def test_masks_beside_frames_are_no_frames(tmp_path):
    folder = frame_folder(tmp_path / "a", 3)
    Image.new("L", (20, 30)).save(folder / "000001_mask.png")  # of another size, too
    states, remarks = table(tmp_path, folder, coco(tmp_path / "x.json", [f"{i:06d}.png" for i in range(3)]))
    assert states == squares(0, 1, 2) and "named like masks of others (000001_mask.png) and left out" in remarks
