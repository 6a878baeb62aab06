"""Phantoms: the same bytes from the same seed, boxes around what can be seen, physics of the right sign."""

import errno
import json
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from stnet.data import layout
from stnet.data.index import load_index
from stnet.data.phantom import PhantomVideo, render_phantom, write_phantoms
from stnet.data.phantom_command import main
from stnet.data.synthetic.phantom_anatomy import MIN_SECTION_MM, Breast, draw_lesion
from stnet.data.synthetic.phantom_render import Pose, Renderer, draw_scanner
from stnet.errors import ConfigError


def tree(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "set", 4, 2, 5, frames=6, height=64, width=80)


def contrast(frame: np.ndarray, box: np.ndarray) -> float:
    """How much darker the middle of a box is than the tissue to its left and right, in gray levels."""
    x0, y0, x1, y1 = box.astype(int)
    w, h = x1 - x0, y1 - y0
    inside = frame[y0 + h // 4 : y1 - h // 4, x0 + w // 4 : x1 - w // 4]
    rows = frame[y0 + h // 4 : y1 - h // 4]
    around = np.concatenate((rows[:, max(0, x0 - w) : x0], rows[:, x1 : x1 + w]), axis=1)
    return float(around.mean() - inside.mean())


def test_same_seed_same_bytes():
    first, second, other = (render_phantom(seed, frames=3, height=64, width=80) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.frames, second.frames)
    assert (first.frames != other.frames).mean() > 0.5
    for a, b in zip(first.boxes, second.boxes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_processes_do_not_change_a_byte(dataset, tmp_path):
    write_phantoms(tmp_path / "again", 4, 2, 5, frames=6, height=64, width=80, workers=2)
    assert tree(tmp_path / "again") == tree(dataset)


def test_written_data_set_loads_without_repairs(dataset):
    train, val = load_index(dataset, "train"), load_index(dataset, "val")
    assert [len(index.videos) for index in (train, val)] == [4, 2]
    for index in (train, val):
        assert index.repairs == () and index.class_names == ("benign", "malignant")
        assert all(len(video.frames) == 6 for video in index.videos)
        assert all(frame.annotated for video in index.videos for frame in video.frames)
    labels = {video.name.split("/")[0]: np.concatenate([f.labels for f in video.frames]) for video in train.videos}
    assert set(labels["benign"]) == {1} and 2 in labels["malignant"] and len(labels["normal"]) == 0


@pytest.mark.parametrize("lesions", [(), ("benign",), ("malignant",), ("benign", "malignant")])
def test_lesions_are_the_ones_asked_for(lesions):
    seen = [render_phantom(seed, frames=5, height=64, width=80, lesions=lesions) for seed in range(4)]
    expected = {("benign", "malignant").index(name) + 1 for name in lesions}
    labels = [set(np.concatenate(video.labels)) for video in seen]
    assert set().union(*labels) == expected
    for video in seen:
        assert video.frames.shape == (5, 64, 80, 3) and video.frames.dtype == np.uint8
        for boxes, frame_labels, instances in zip(video.boxes, video.labels, video.instances, strict=True):
            assert len(boxes) == len(frame_labels) == len(instances) <= len(lesions)
            assert boxes.shape[1] == 4 and (boxes >= 0).all() and (boxes <= [80, 64, 80, 64]).all()


@pytest.fixture(scope="module")
def videos() -> dict[str, list[PhantomVideo]]:
    return {
        label: [render_phantom((3, seed), frames=9, lesions=(label,)) for seed in range(6)]
        for label in ("benign", "malignant")
    }


def test_lesions_enter_and_leave_and_change_size(videos):
    everything = [video for group in videos.values() for video in group]
    visible = [np.array([len(boxes) for boxes in video.boxes]) for video in everything]
    assert 0.35 < np.mean([v.mean() for v in visible]) < 0.85
    assert sum((v == 0).any() for v in visible) >= len(visible) // 2
    for video in everything:
        boxes = np.concatenate(video.boxes)
        if len(boxes) < 4:
            continue
        heights = boxes[:, 3] - boxes[:, 1]
        assert heights.max() > heights.min()
        steps = [
            np.abs(b[0, :2] + b[0, 2:] - a[0, :2] - a[0, 2:]).max() / 2
            for a, b in zip(video.boxes, video.boxes[1:], strict=False)
            if len(a) and len(b)
        ]
        assert max(steps) < 20, "a lesion moves smoothly"


def test_boxed_lesions_can_be_seen(videos):
    contrasts = [
        contrast(frame[..., 0], boxes[0])
        for group in videos.values()
        for video in group
        for frame, boxes in zip(video.frames, video.boxes, strict=True)
        if len(boxes)
    ]
    assert np.mean(np.array(contrasts) > 10) > 0.97 and np.median(contrasts) > 25


def test_shapes_and_wakes_tell_the_classes_apart(videos):
    ratios, wakes = {}, {}
    for label, group in videos.items():
        largest = []
        for video in group:
            frames = [
                (boxes[0], frame[..., 0]) for frame, boxes in zip(video.frames, video.boxes, strict=True) if len(boxes)
            ]
            largest.append(max(frames, key=lambda item: np.prod(item[0][2:] - item[0][:2])))
        ratios[label] = [(box[3] - box[1]) / (box[2] - box[0]) for box, _ in largest]
        below = [(box + np.array([0, 0.9, 0, 0.9]) * (box[3] - box[1]), frame) for box, frame in largest]
        wakes[label] = [-contrast(frame, box) for box, frame in below]
    assert max(ratios["benign"]) < 0.95 < np.median(ratios["malignant"])
    assert np.median(wakes["malignant"]) < -15 < 0 < np.median(wakes["benign"])


def still_renderer(seed: int, label: str, height: int = 128, width: int = 160):
    """A scanner held still over one lesion in the middle of the view."""
    rng = np.random.default_rng(seed)
    scanner = draw_scanner(rng)
    lesion = draw_lesion(rng, label, (0.0, 0.0, scanner.depth_mm * 0.45))
    renderer = Renderer(Breast(rng, scanner.depth_mm, (lesion,)), scanner, height, width, (seed,))
    return renderer, lesion


def pose(**changes: float) -> Pose:
    return Pose(**({"x_mm": 0.0, "y_mm": 0.0, "turn": 0.0, "tilt": 0.0, "press": 0.0} | changes))


@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_boxes_fit_the_section_of_the_ellipsoid(label):
    for seed in range(4):
        renderer, lesion = still_renderer(seed, label)
        _, (box,) = renderer.render(pose())
        width_mm, height_mm = (box[2:] - box[:2]) * renderer.pixel_mm
        slack = 2 * lesion.roughness + 2 * renderer.pixel_mm / lesion.radii[2]
        assert width_mm == pytest.approx(2 * lesion.radii[0], rel=slack)
        assert height_mm == pytest.approx(2 * lesion.radii[2], rel=slack)
        assert (box[0] + box[2]) / 2 == pytest.approx(80, abs=slack * lesion.radii[0] / renderer.pixel_mm)
        _, (away,) = renderer.render(pose(y_mm=1.3 * lesion.radii[1]))
        assert away is None


def test_boxes_follow_the_probe_and_end_at_the_image():
    renderer, lesion = still_renderer(1, "benign")
    _, (middle,) = renderer.render(pose())
    _, (moved,) = renderer.render(pose(x_mm=3.0))
    shift = 3.0 / renderer.pixel_mm
    np.testing.assert_allclose(moved - middle, [-shift, 0, -shift, 0], atol=1.5)
    half_view = 80 * renderer.pixel_mm
    _, (cut,) = renderer.render(pose(x_mm=half_view))
    assert cut is None or cut[0] == 0
    _, (gone,) = renderer.render(pose(x_mm=half_view + lesion.radii[0]))
    assert gone is None


def test_small_sections_have_no_box():
    renderer, lesion = still_renderer(2, "malignant")
    sides = []
    for y in np.linspace(0, lesion.radii[1], 30):
        _, (box,) = renderer.render(pose(y_mm=y))
        if box is not None:
            sides.append((box[2:] - box[:2]).min() * renderer.pixel_mm)
    assert 0 < len(sides) < 30 and min(sides) >= MIN_SECTION_MM


def test_speckle_moves_with_the_tissue_and_decorrelates_out_of_plane():
    def speckle(y_mm: float, x_mm: float = 0.0) -> np.ndarray:
        renderer, _ = still_renderer(4, "benign")
        frame, _ = renderer.render(pose(y_mm=y_mm, x_mm=x_mm))
        return frame[45:90, 20:140].astype(float)

    def alike(a: np.ndarray, b: np.ndarray) -> float:
        detail = [x - (np.roll(x, 3, 0) + np.roll(x, -3, 0) + np.roll(x, 3, 1) + np.roll(x, -3, 1)) / 4 for x in (a, b)]
        return np.corrcoef(detail[0].ravel(), detail[1].ravel())[0, 1]

    still = [alike(speckle(20.0), speckle(20.0 + step)) for step in (0.0, 0.4, 1.0, 4.0)]
    assert still[0] > 0.9 and still[0] > still[1] > still[2] > still[3] and still[3] < 0.25
    pixel = still_renderer(4, "benign")[0].pixel_mm
    a, b = speckle(20.0), speckle(20.0, 5 * pixel)
    assert alike(a[:, 5:], b[:, :-5]) > 0.7 > 0.3 > alike(a, b)


def test_long_and_single_frame_videos_and_other_sizes():
    assert render_phantom(0, frames=1, height=48, width=96).frames.shape == (1, 48, 96, 3)
    assert render_phantom(0, frames=2, height=192, width=96, lesions=("benign", "benign")).frames.shape[0] == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 0}, "frames 0"),
        ({"height": 20}, "height 20"),
        ({"width": 5000}, "width 5000"),
        ({"height": 64, "width": 200}, "200x64"),
        ({"lesions": ("cyst",)}, "cyst"),
        ({"lesions": ("benign",) * 3}, "at most two"),
    ],
)
def test_options_that_cannot_be_rendered(options, message):
    with pytest.raises(ConfigError, match=message):
        render_phantom(0, **options)


def test_overwrite_replaces_phantoms_and_nothing_else(tmp_path, capsys):
    options = ["--train-videos", "2", "--val-videos", "1", "--frames", "2", "--height", "48", "--width", "48"]
    options += ["--workers", "1"]
    out = tmp_path / "p"
    assert main([str(out), *options]) == 0
    assert "2 train and 1 val" in capsys.readouterr().out
    before = tree(out)
    assert main([str(out), *options]) == 2
    assert "error:" in capsys.readouterr().err and tree(out) == before
    assert main([str(out), *options, "--overwrite", "--train-videos", "1", "--seed", "3"]) == 0
    assert len(load_index(out, "train").videos) == 1
    assert len(list(out.glob("rawframes/*/*"))) == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious.txt").write_text("x")
    assert main([str(mine), *options, "--overwrite"]) == 2
    assert tree(mine) == {"precious.txt": b"x"}
    assert main([str(mine / "precious.txt"), *options]) == 2
    assert main([str(tmp_path / "none"), "--train-videos", "0", "--val-videos", "0"]) == 2
    assert main([str(tmp_path / "none"), "--seed", "-1"]) == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("room", [0, 3, "annotations"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, capsys, monkeypatch, full_disk, room):
    options = ["--train-videos", "2", "--val-videos", "1", "--frames", "2", "--height", "48", "--width", "48"]
    options += ["--workers", "1"]
    mine = tmp_path / "mine"
    assert main([str(mine), *options]) == 0
    (mine / "notes.txt").write_text("x")
    if room == "annotations":
        full = OSError(errno.ENOSPC, "No space left on device", "val.json")
        monkeypatch.setattr(layout, "write_text", Mock(side_effect=full))
    else:
        full_disk(room)
    capsys.readouterr()
    for out, more in ((tmp_path / "a" / "new", []), (tmp_path / "empty", []), (mine, ["--overwrite"])):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main([str(out), *options, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "No space left" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "a").exists() and not list((tmp_path / "empty").iterdir())
    assert sorted(tree(mine)) == ["notes.txt", "phantom.json"]
    monkeypatch.undo()
    assert main([str(mine), *options, "--overwrite"]) == 0


def test_what_goes_wrong_while_processes_render_leaves_nothing_behind(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "out", 6, 0, 0, frames=2, height=48, width=48, workers=2, on_video=stop)
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "stnet.data.phantom", str(tmp_path / "out"), "--train-videos", "1"]
    command += ["--val-videos", "0", "--frames", "2", "--height", "48", "--width", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "train.json").read_text())
    assert len(document["images"]) == 2 and not (tmp_path / "out" / "val.json").exists()
