"""Clips as training sees them: reproducible, bounded, with errors that name the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from stnet.data.augment import Augmentation, TimeJitter, improved_training_transform
from stnet.data.clips.dataset import ClipDataset, collate_clips
from stnet.data.clips.transforms import evaluation_transform, paper_training_transform
from stnet.data.frames import FrameReader, decode_image
from stnet.data.index import load_index
from stnet.errors import DataError

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


def test_wrong_size_and_sixteen_bits(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="5x4 but its annotation says 4x5"):
        decode_image(tmp_path / "x.png", 5, 4)
    Image.fromarray(np.zeros((4, 5), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits"):
        decode_image(tmp_path / "deep.png", 4, 5)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(tmp_path, 4, 5)
