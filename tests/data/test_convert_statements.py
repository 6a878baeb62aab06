"""What annotation files say of their pictures, frames and shapes is honoured, converted or refused."""

import json
import re

import numpy as np
import pytest

from stnet.errors import DataError
from tests.data.small_sources import (
    HEIGHT,
    OUTSIDE,
    WIDTH,
    box,
    coco,
    cvat,
    frame_folder,
    squares,
    table,
    track,
    video_file,
)


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
