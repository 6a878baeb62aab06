"""Which video, and which frame of it, an entry belongs to: by what is stated, never by a guess."""

import re

import pytest
from PIL import Image

from stnet.data.formats.assigning import Rules
from stnet.errors import DataError
from tests.data.small_sources import HEIGHT, WIDTH, box, coco, cvat, frame_folder, squares, table, track, video_file


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


def test_masks_beside_frames_are_no_frames(tmp_path):
    folder = frame_folder(tmp_path / "a", 3)
    Image.new("L", (20, 30)).save(folder / "000001_mask.png")  # of another size, too
    states, remarks = table(tmp_path, folder, coco(tmp_path / "x.json", [f"{i:06d}.png" for i in range(3)]))
    assert states == squares(0, 1, 2) and "named like masks of others (000001_mask.png) and left out" in remarks
