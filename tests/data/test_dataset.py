"""Clips as training sees them: reproducible, bounded, with errors that name the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torch.utils.data import DataLoader

from stnet.data.augment import Augmentation, TimeJitter, improved_training_transform
from stnet.data.check import check_dataset, repair_dataset
from stnet.data.check_command import main
from stnet.data.clips.dataset import ClipDataset, collate_clips
from stnet.data.clips.transforms import evaluation_transform, paper_training_transform
from stnet.data.frames import FrameReader
from stnet.data.images import decode_image, image_size
from stnet.data.index import load_index
from stnet.errors import DataError
from stnet.video import open_source

LENGTH = 7


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two videos of noise with a bright square; in the first, frame 3 is not annotated and frame 5 is empty."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for video, (height, width) in enumerate([(40, 60), (50, 44)], start=1):
        (root / f"v{video}").mkdir()
        for frame in range(LENGTH):
            pixels = rng.integers(0, 90, (height, width), dtype=np.uint8)
            name = f"v{video}/{frame}.png"
            identity = 100 * video + frame
            image = {"id": identity, "file_name": name, "height": height, "width": width}
            images.append(image | {"video_id": video, "frame_id": frame, "annotated": (video, frame) != (1, 3)})
            if (video, frame) not in {(1, 3), (1, 5)}:
                pixels[10:30, 5 + frame : 25 + frame] = 250
                box = {"image_id": identity, "category_id": video, "bbox": [5 + frame, 10, 20, 20]}
                annotations.append(box)
            Image.fromarray(pixels).save(root / name)
    document = {
        "categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}],
        "videos": [{"id": 1, "name": "v1"}, {"id": 2, "name": "v2"}],
        "images": images,
        "annotations": annotations,
    }
    (root / "train.json").write_text(json.dumps(document))
    return load_index(root, "train")


def same(a, b) -> bool:
    return (
        torch.equal(a.images, b.images)
        and a.frames == b.frames
        and all(torch.equal(x, y) for x, y in zip(a.boxes, b.boxes, strict=True))
    )


def test_items_are_clips_around_annotated_frames(index):
    dataset = ClipDataset(index, 6, evaluation_transform(32, 100))
    assert len(dataset) == 2 * LENGTH - 1
    sample = dataset[3]
    assert sample.video == "v1" and sample.frames[:3] == (4, 3, 5)
    assert sample.image_ids == tuple(100 + frame for frame in sample.frames)
    assert sample.images.shape == (6, 3, 32, 48) and sample.images.dtype == torch.float32
    assert sample.annotated == [True, False, True]
    assert [boxes.shape for boxes in sample.boxes] == [(1, 4), (0, 4), (0, 4)]
    assert [labels.tolist() for labels in sample.labels] == [[1], [], []]
    expected = torch.tensor([(9 + 10) / 60, 0.5, 20 / 60, 0.5])
    torch.testing.assert_close(sample.boxes[0][0], expected)
    assert sample.images[0, 0, 12, 16] > 2 > sample.images[0, 0, 2, 2]


def test_more_targets(index):
    sample = ClipDataset(index, 6, evaluation_transform(32, 100), targets=5)[10]
    assert len(sample.boxes) == len(sample.labels) == len(sample.annotated) == 5
    assert sample.video == "v2" and sample.frames[:5] == (4, 3, 5, 6, 2)


def test_items_depend_on_seed_epoch_and_index_alone(index):
    transform = improved_training_transform(32, 100, Augmentation())
    jitter = TimeJitter(stride=2, reversal=True)
    first, second, other = (
        ClipDataset(index, 6, transform, seed=seed, sampler=jitter, cache_bytes=size)
        for seed, size in ((1, 10**6), (1, 0), (2, 10**6))
    )
    for item in reversed(range(len(first))):
        second[item]
    assert all(same(first[item], second[item]) for item in range(len(first)))
    assert not all(same(first[item], other[item]) for item in range(len(first)))
    before = [first[item] for item in range(len(first))]
    first.set_epoch(1)
    assert not all(same(first[item], before[item]) for item in range(len(first)))
    first.set_epoch(0)
    assert all(same(first[item], before[item]) for item in range(len(first)))


def test_further_indices_draw_the_same_clips_anew(index):
    dataset = ClipDataset(index, 6, paper_training_transform(32, 100))
    again = dataset[2 + len(dataset)]
    assert again.image_ids[0] == dataset[2].image_ids[0]
    assert not same(again, dataset[2])
    assert same(again, dataset[2 + len(dataset)])
    assert len(list(dataset)) == len(dataset)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_make_the_same_items_in_every_epoch(index, start):
    dataset = ClipDataset(index, 6, paper_training_transform(24, 60), seed=3)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=1,
        persistent_workers=True,
        collate_fn=collate_clips,
        multiprocessing_context=start,
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        alone = [
            collate_clips([dataset[i] for i in range(k, min(k + 4, len(dataset)))]) for k in range(0, len(dataset), 4)
        ]
        for batch, expected in zip(loader, alone, strict=True):
            assert torch.equal(batch.images, expected.images) and batch.frames == expected.frames
            assert torch.equal(batch.padding_mask, expected.padding_mask)


def test_batches_are_padded_at_the_right_and_bottom(index):
    dataset = ClipDataset(index, 6, evaluation_transform(30, 100))
    samples = [dataset[0], dataset[10]]
    batch = collate_clips(samples)
    assert batch.images.shape == (2, 6, 3, 34, 45)
    for sample, images, mask in zip(samples, batch.images, batch.padding_mask, strict=True):
        h, w = sample.images.shape[2:]
        assert torch.equal(images[:, :, :h, :w], sample.images)
        assert not mask[:h, :w].any() and mask[h:].all() and mask[:, w:].all()
        assert (images[:, :, mask] == 0).all()
    moved = batch.to("meta")
    assert moved.images.device.type == moved.boxes[0][0].device.type == "meta"
    assert moved.videos == ["v1", "v2"] and moved.annotated == batch.annotated


def test_reader_keeps_the_latest_frames_within_its_bytes(index):
    frames = index.videos[0].frames
    size = frames[0].height * frames[0].width
    reader = FrameReader(3 * size)
    pixels = [reader.read(frame) for frame in frames]
    assert reader.held_bytes == 3 * size
    frames[0].path.rename(frames[0].path.with_suffix(".away"))
    try:
        for frame, expected in zip(frames[-3:], pixels[-3:], strict=True):
            np.testing.assert_array_equal(reader.read(frame), expected)
        with pytest.raises(DataError, match=r"v1/0\.png: no such file"):
            reader.read(frames[0])
    finally:
        frames[0].path.with_suffix(".away").rename(frames[0].path)
    assert FrameReader(size - 1).read(frames[0]).shape == (40, 60, 3)
    with pytest.raises(ValueError, match="negative"):
        FrameReader(-1)


def test_changing_a_clip_does_not_change_the_cache(index):
    reader = FrameReader(10**6)
    stack = reader.read_clip(index.videos[0], (0, 1))
    before = stack.frames.copy()
    stack.frames[:] = 7
    np.testing.assert_array_equal(reader.read_clip(index.videos[0], (0, 1)).frames, before)


def test_frames_of_other_sizes_take_the_size_of_the_centre(index):
    first, second = (video.frames[0] for video in index.videos)
    mixed = replace(index.videos[0], frames=(first, second))
    stack = FrameReader(0).read_clip(mixed, (0, 1))
    assert stack.frames.shape == (2, 40, 60, 1)
    np.testing.assert_allclose(stack.boxes[1], second.boxes * np.tile([60 / 44, 40 / 50], 2), rtol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bit_modes_decode(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    pixels = decode_image(path, 4, 5)
    assert pixels.shape[:2] == (4, 5) and pixels.dtype == np.uint8 and (pixels == 255).all()


def test_gray_pixels_in_rgb_files_take_one_channel(tmp_path):
    Image.new("RGB", (5, 4), (9, 9, 9)).save(tmp_path / "gray.png")
    Image.new("RGB", (5, 4), (9, 9, 8)).save(tmp_path / "colour.png")
    assert decode_image(tmp_path / "gray.png", 4, 5).shape == (4, 5, 1)
    assert decode_image(tmp_path / "colour.png", 4, 5).shape == (4, 5, 3)


def test_damaged_images_are_named(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    bad = tmp_path / "bad.png"
    for damaged in (b"", b"GIF89a", content[:30], content[: len(content) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        bad.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.png: cannot be decoded"):
            decode_image(bad, 40, 40)
    rng = np.random.default_rng(1)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        bad.write_bytes(flipped)
        try:
            assert decode_image(bad, 40, 40).shape == (40, 40, 1)
        except DataError as error:
            assert "bad.png" in str(error)


def test_wrong_sizes_and_values_that_are_no_brightness(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="5x4 but its annotation says 4x5"):
        decode_image(tmp_path / "x.png", 5, 4)
    Image.fromarray(np.full((4, 5), -1, dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match="8 bits"):
        decode_image(tmp_path / "deep.tif", 4, 5)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(tmp_path, 4, 5)


def make_set(root, images, boxes=()) -> None:
    """Write frames (name -> function that saves) as one video; sizes as in the files once upright."""
    entries = []
    for number, (name, (save, height, width)) in enumerate(images.items()):
        path = root / "rawframes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        entry = {"id": number, "file_name": name, "height": height, "width": width}
        entries.append(entry | {"video_id": 1, "frame_id": number})
    document = {
        "categories": [{"id": 1, "name": "benign"}],
        "videos": [{"id": 1, "name": "v"}],
        "images": entries,
        "annotations": list(boxes),
    }
    (root / "train.json").write_text(json.dumps(document))


def as_inference_reads(folder) -> np.ndarray:
    return np.stack([frame.image for frame in open_source(folder)])


def as_training_reads(root) -> np.ndarray:
    (video,) = load_index(root, "train").videos
    reader = FrameReader(0)
    return np.stack([reader.read(frame) for frame in video.frames])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mark_stays_on_its_pixel_whatever_the_orientation(tmp_path, orientation):
    """Boxes are drawn on the upright frame, whichever way it is stored; check finds nothing to correct."""
    upright = np.full((40, 60), 20, dtype=np.uint8)
    upright[5:15, 30:50] = 240
    stored = ImageOps.exif_transpose(exif_image(upright, INVERSE[orientation]))

    def save(path):
        exif_image(np.asarray(stored), orientation).save(path, exif=exif(orientation))

    boxes = [{"image_id": i, "category_id": 1, "bbox": [30, 5, 20, 10]} for i in range(3)]
    make_set(tmp_path, {f"v/{i}.png": (save, 40, 60) for i in range(3)}, boxes)
    np.testing.assert_array_equal(as_training_reads(tmp_path)[0, ..., 0], upright)
    np.testing.assert_array_equal(as_training_reads(tmp_path), as_inference_reads(tmp_path / "rawframes" / "v"))
    (video,) = load_index(tmp_path, "train").videos
    x0, y0, x1, y1 = video.frames[0].boxes[0].astype(int)
    assert (FrameReader(0).read(video.frames[0])[y0:y1, x0:x1] == 240).all()
    assert not [repair for split in check_dataset(tmp_path).splits for repair in split.repairs]


# What undoes each orientation.
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def exif_image(pixels, orientation) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return image


DEEP = {
    "12 bits in 16": (np.uint16, 4095, "png"),
    "16 bits": (np.uint16, 65535, "png"),
    "32 bits": (np.int32, 4095, "tif"),
    "floats to 1": (np.float32, 1, "tif"),
    "floats to 255": (np.float32, 255, "tif"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.filterwarnings("ignore:.*is taken for white")
def test_deep_pixels_are_read_as_by_inference_alike_in_all_frames(tmp_path, name):
    """A dark frame stays dark among bright ones, in training and in the check, and repairing leaves it."""
    dtype, top, ending = DEEP[name]
    ramp = np.linspace(0, 1, 40 * 60).reshape(40, 60)

    def saved(part):
        return lambda path: Image.fromarray((ramp * part * top).astype(dtype)).save(path)

    make_set(tmp_path, {f"v/{i}.{ending}": (saved(part), 40, 60) for i, part in enumerate((1, 0.1, 0.5))})
    pixels = as_training_reads(tmp_path)
    np.testing.assert_array_equal(pixels, as_inference_reads(tmp_path / "rawframes" / "v"))
    assert abs(int(pixels[0].max()) - 255) <= 1 and abs(int(pixels[1].max()) - 25) <= 1
    before = (tmp_path / "train.json").read_text()
    main([str(tmp_path), "--repair"])
    assert (tmp_path / "train.json").read_text() == before


def test_frames_that_are_no_brightness_are_found_and_left_out(tmp_path):
    def saved(least):
        return lambda path: Image.fromarray(np.full((40, 60), least, dtype=np.int32)).save(path)

    make_set(tmp_path, {f"v/{i}.tif": (saved(-3 if i == 4 else i * 300), 40, 60) for i in range(12)})
    with pytest.raises(DataError, match="its pixels go from -3"):
        load_index(tmp_path, "train")
    report = check_dataset(tmp_path)
    (repair,) = report.splits[0].repairs
    assert repair.kind == "unreadable frame" and "images[4]" in repair.entry
    repair_dataset(report)
    with pytest.warns(UserWarning, match="4095 is taken for white"):
        assert len(load_index(tmp_path, "train").videos[0].frames) == 11


def test_orientation_that_follows_the_pixels_of_a_png_file(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (60, 40)).save(path, exif=exif(6))
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    path.write_bytes(content.replace(chunk, b"").replace(content[-12:], chunk + content[-12:]))
    assert path.read_bytes().index(b"eXIf") > path.read_bytes().index(b"IDAT")
    assert image_size(path) == (60, 40) and decode_image(path, 60, 40).shape == (60, 40, 1)


def test_headers_are_read_without_decoding(tmp_path, monkeypatch):
    Image.new("L", (60, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert image_size(tmp_path / "x.png") == (40, 60)
