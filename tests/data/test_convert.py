"""Plain folders and video files with COCO or CVAT annotations become data sets that load."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from stnet.data.convert import convert
from stnet.data.convert_command import main
from stnet.data.formats.classes import ClassRules
from stnet.data.formats.cvat import read_cvat
from stnet.data.index import load_index
from stnet.errors import ConfigError, DataError

LENGTH, HEIGHT, WIDTH = 6, 40, 64


def pixels(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8) for _ in range(LENGTH)]


def frame_folder(folder, seed: int = 0, pattern: str = "{:06d}.png"):
    folder.mkdir(parents=True)
    for number, frame in enumerate(pixels(seed)):
        Image.fromarray(frame).save(folder / pattern.format(number))
    return folder


def video_file(path, seed: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray"
        for frame in pixels(seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return path


def coco(file, names: list[str], boxes: dict[int, list[float]]):
    """Images by name; `boxes` maps the position of an image to its only box, a malignant one."""
    document = {
        "categories": [{"id": 4, "name": "Malignant"}, {"id": 9, "name": "benign"}],
        "images": [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 4, "bbox": box} for i, box in boxes.items()],
    }
    file.write_text(json.dumps(document))
    return file


TRACKS = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <track id="0" label="benign" source="manual">
    <box frame="1" outside="0" keyframe="1" xtl="3.5" ytl="4" xbr="20" ybr="18.25" z_order="0"></box>
    <box frame="2" outside="0" keyframe="0" xtl="4" ytl="4" xbr="21" ybr="18"></box>
    <box frame="3" outside="1" keyframe="1" xtl="4" ytl="4" xbr="21" ybr="18"></box>
  </track>
  <track id="1" label="malignant">
    <box frame="2" outside="0" xtl="40" ytl="10" xbr="60" ybr="30"><attribute name="x">y</attribute></box>
    <polygon frame="2" points="1,2;3,4"/>
  </track>
</annotations>
"""

IMAGES = """<annotations>
  <image id="0" name="a/000000.png" width="64" height="40"/>
  <image id="1" name="a/000001.png" width="64" height="40">
    <box label="benign" xtl="1" ytl="2" xbr="11" ybr="12"/><ellipse label="benign" cx="30" cy="20" rx="2"
    ry="1"/>
  </image>
</annotations>
"""


def state(index) -> list[list[str]]:
    """Per video and frame: u(nannotated), - (negative) or the labels."""
    return [
        ["u" if not f.annotated else "".join(map(str, f.labels)) or "-" for f in video.frames] for video in index.videos
    ]


def test_folders_with_a_coco_file(tmp_path):
    frame_folder(tmp_path / "src" / "a")
    frame_folder(tmp_path / "src" / "b", 1)
    names = ["a/000000.png", "a/000002.png", "b/000005.png"]
    file = coco(tmp_path / "x.json", names, {1: [5, 6, 20, 10], 2: [1, 1, 8, 8]})
    done = convert(tmp_path / "src", file, tmp_path / "out", split="train")
    assert (done.videos, done.frames, done.boxes, done.remarks) == (2, 12, 2, ())
    index = load_index(tmp_path / "out", "train")
    assert index.class_names == ("benign", "malignant")
    assert state(index) == [["-", "u", "2", "u", "u", "u"], ["u", "u", "u", "u", "u", "2"]]
    assert index.videos[0].frames[2].boxes.tolist() == [[5, 6, 25, 16]]
    np.testing.assert_array_equal(np.asarray(Image.open(index.videos[1].frames[4].path)), pixels(1)[4])


def test_video_file_with_cvat_tracks(tmp_path):
    video_file(tmp_path / "clip.mkv", 3)
    (tmp_path / "clip.xml").write_text(TRACKS)
    done = convert(tmp_path / "clip.mkv", tmp_path / "clip.xml", tmp_path / "out", split="val")
    assert done.boxes == 3 and "shapes beside the box of the same track" in done.remarks[0]
    index = load_index(tmp_path / "out", "val")
    assert state(index) == [["-", "1", "12", "-", "-", "-"]]
    assert index.videos[0].frames[1].boxes.tolist() == [[3.5, 4, 20, 18.25]]
    np.testing.assert_array_equal(np.asarray(Image.open(index.videos[0].frames[4].path)), pixels(3)[4])
    document = json.loads((tmp_path / "out" / "val.json").read_text())
    assert [box["instance_id"] for box in document["annotations"]] == [1, 1, 2]


def test_empty_frames_may_be_unknown(tmp_path):
    frame_folder(tmp_path / "clip")
    (tmp_path / "clip.xml").write_text(TRACKS)
    convert(tmp_path / "clip", tmp_path / "clip.xml", tmp_path / "out", split="val", empty_unknown=True)
    assert state(load_index(tmp_path / "out", "val")) == [["u", "1", "12", "u", "u", "u"]]


def test_cvat_for_images_and_a_second_split(tmp_path):
    frame_folder(tmp_path / "src" / "a")
    (tmp_path / "a.xml").write_text(IMAGES)
    convert(tmp_path / "src", tmp_path / "a.xml", tmp_path / "out", split="train")
    frame_folder(tmp_path / "more" / "c", 5, "frame_{:03d}.png")
    file = coco(tmp_path / "c.json", ["frame_001.png"], {0: [1, 1, 9, 9]})
    convert(tmp_path / "more", file, tmp_path / "out", split="val")
    index = load_index(tmp_path / "out", "train")
    assert state(index) == [["-", "11", "u", "u", "u", "u"]]
    assert index.videos[0].frames[1].boxes.tolist() == [[1, 2, 11, 12], [28, 19, 32, 21]]
    assert state(load_index(tmp_path / "out", "val")) == [["u", "2", "u", "u", "u", "u"]]


def test_folder_of_videos_with_one_cvat_file_each(tmp_path):
    for name in ("p", "q"):
        video_file(tmp_path / "videos" / f"{name}.avi", ord(name))
        (tmp_path / "marks").mkdir(exist_ok=True)
        (tmp_path / "marks" / f"{name}.xml").write_text(TRACKS)
    convert(tmp_path / "videos", tmp_path / "marks", tmp_path / "out", split="train")
    assert [video.name for video in load_index(tmp_path / "out", "train").videos] == ["p", "q"]
    (tmp_path / "marks" / "q.xml").unlink()
    with pytest.raises(DataError, match=r"no q\.xml"):
        convert(tmp_path / "videos", tmp_path / "marks", tmp_path / "other", split="train")
    with pytest.raises(DataError, match=r"nothing for the video q \(no q\.xml\)"):
        convert(tmp_path / "videos", tmp_path / "marks" / "p.xml", tmp_path / "other", split="train")
    (tmp_path / "marks" / "p.xml").rename(tmp_path / "all.xml")
    with pytest.raises(DataError, match="tracks of one video, but there are 2"):
        convert(tmp_path / "videos", tmp_path / "all.xml", tmp_path / "other", split="train")


def test_other_classes(tmp_path):
    frame_folder(tmp_path / "clip")
    (tmp_path / "clip.xml").write_text(TRACKS.replace("benign", "cyst"))
    convert(tmp_path / "clip", tmp_path / "clip.xml", tmp_path / "one", split="train")
    assert load_index(tmp_path / "one", "train").class_names == ("cyst", "malignant")
    with pytest.raises(ConfigError, match="cyst, malignant are not among lesion"):
        convert(
            tmp_path / "clip",
            tmp_path / "clip.xml",
            tmp_path / "two",
            split="train",
            classes=ClassRules(names=["lesion"]),
        )


def test_boxes_beyond_the_video_are_reported(tmp_path):
    frame_folder(tmp_path / "clip")
    (tmp_path / "clip.xml").write_text(TRACKS.replace('frame="3"', 'frame="700"').replace('outside="1"', ""))
    done = convert(tmp_path / "clip", tmp_path / "clip.xml", tmp_path / "out", split="train")
    assert done.boxes == 3 and "left out 1 entry with 1 mark: the video has only 6 frames" in done.remarks[0]


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotations>&y;</annotations>'


@pytest.mark.parametrize(
    "text, message",
    [
        (BOMB, "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "document type"),
        ("<annotations>" + "<a>" * 100, "nested too deeply"),
        ("<annotations>", "not valid XML"),
        ("", "not valid XML"),
        ("<html/>", "<annotations> is expected"),
        ("<annotations/>", "no track, no image and no task"),
        (TRACKS.replace('xtl="40"', 'xtl="nan"'), "line 9: xtl is 'nan'"),
        (TRACKS.replace('xtl="40"', 'xtl="1e400"'), "xtl is '1e400'"),
        (TRACKS.replace('xtl="40"', ""), "xtl is missing"),
        (TRACKS.replace('frame="2"', 'frame="-2"'), "frame is '-2'"),
        (TRACKS.replace('label="benign"', ""), "label is missing"),
        (TRACKS.replace('frame="2"', 'frame="' + "9" * 3000 + '"'), "frame is"),
    ],
)
def test_hostile_or_broken_cvat_files(tmp_path, text, message):
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_cvat(tmp_path / "x.xml")
    assert "x.xml" in str(caught.value) and len(str(caught.value)) < 500


def test_nothing_is_overwritten_and_failures_leave_no_frames(tmp_path, capsys):
    frame_folder(tmp_path / "clip")
    (tmp_path / "clip.xml").write_text(TRACKS)
    arguments = [str(tmp_path / "clip"), str(tmp_path / "clip.xml")]
    out = str(tmp_path / "out")
    assert main([*arguments, out, "--split", "train"]) == 0
    assert "1 videos, 6 frames, 3 boxes" in capsys.readouterr().out
    assert main([*arguments, out, "--split", "train"]) == 2
    assert "train split already" in capsys.readouterr().err
    assert main([*arguments, out, "--split", "val"]) == 2
    assert "has a video clip already" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").touch()
    assert main([*arguments, str(tmp_path / "mine"), "--split", "val"]) == 2
    (tmp_path / "clip" / "000003.png").write_bytes(b"broken")
    assert main([*arguments, str(tmp_path / "new"), "--split", "val"]) == 2
    assert "damaged inside" in capsys.readouterr().err
    assert not list((tmp_path / "new").rglob("*.png")) and not list((tmp_path / "new").rglob("val.json"))
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "clip.xml"), str(tmp_path / "z"), "--split", "val"]) == 2
    assert main([str(tmp_path / "clip"), str(tmp_path / "clip.txt"), str(tmp_path / "z"), "--split", "val"]) == 2


def test_images_of_no_video(tmp_path):
    frame_folder(tmp_path / "src" / "a")
    frame_folder(tmp_path / "src" / "b")
    file = coco(tmp_path / "x.json", ["c/000000.png"], {})
    with pytest.raises(DataError, match="of the video 'c', which is not there"):
        convert(tmp_path / "src", file, tmp_path / "out", split="train")
    assert not (tmp_path / "out").exists()
