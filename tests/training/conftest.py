"""A small dataset that is quick to make and quick to learn."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stnet.console import Reporter
from stnet.data.index import load_index
from stnet.model.config import ModelConfig
from stnet.training.config import TrainConfig
from stnet.training.distributed import World
from stnet.training.loop import RunOptions, Trainer
from stnet.training.run_folder import RunFolder

FRAMES = 8
HEIGHT, WIDTH = 48, 64


def write_dataset(root, videos: dict[str, int], seed: int = 0):
    """Write bright (class 2) and dark (class 1) ellipses drifting over noise; `videos` per split."""
    generator = np.random.default_rng(seed)
    (root / "rawframes").mkdir(parents=True)
    for split, count in videos.items():
        content = {"categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]}
        content |= {"videos": [], "images": [], "annotations": []}
        for video in range(1, count + 1):
            _write_video(root / "rawframes", f"{split}_{video}", video, generator, content)
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def _write_video(folder, name, video, generator, content):
    (folder / name).mkdir()
    label = 1 + video % 2
    centre, drift = generator.uniform((20, 16), (44, 32)), generator.uniform(-1, 1, 2)
    radius = generator.uniform(8, 12, 2)
    content["videos"].append({"id": video, "name": name})
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(FRAMES):
        inside = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 < 1
        image = generator.normal(110, 25, (HEIGHT, WIDTH)) + inside * (100 if label == 2 else -100)
        file = f"{name}/{number:06d}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / file)
        identity = len(content["images"]) + 1
        content["images"].append(
            {"id": identity, "file_name": file, "height": HEIGHT, "width": WIDTH, "video_id": video, "frame_id": number}
        )
        if number != FRAMES - 1:  # the last frame shows the lesion to nobody: a lesion-free frame for the metrics
            x0, y0 = centre - radius
            box = [float(x0), float(y0), float(2 * radius[0]), float(2 * radius[1])]
            content["annotations"].append({"image_id": identity, "category_id": label, "bbox": box})
        centre = centre + drift


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small", {"train": 4, "val": 3})


def small_config(**changes):
    """A recipe that trains in a second: dropout is on, so that random states matter."""
    model = ModelConfig(
        backbone="resnet10",
        backbone_width=8,
        backbone_norm="group",
        hidden_dim=64,
        heads=2,
        feedforward_dim=32,
        dropout=0.1,
        encoder_layers=1,
        decoder_layers=2,
        queries=6,
        image_size=HEIGHT,
        max_image_size=2 * HEIGHT,
    )
    settings = {
        "model": model,
        "epochs": 2,
        "batch_size": 2,
        "clips_per_epoch": 6,
        "learning_rate": 1e-3,
        "backbone_learning_rate": 1e-3,
        "backbone_weights": "",
        "ema_decay": 0.9,
        "denoising": 2,
    }
    return TrainConfig(**(settings | changes))


@pytest.fixture(scope="session")
def small_recipe():
    """The function `small_config`, for test files to call."""
    return small_config


@pytest.fixture
def make_trainer(small_dataset, tmp_path):
    """A function that builds a Trainer on the small dataset, from a name, a device and changes of the recipe."""

    def make(name: str, resume: bool = False, device: str = "cpu", **changes):
        config = small_config(**changes)
        folder = RunFolder(tmp_path / name)
        if not resume:
            folder.create(config, {})
        trainer = Trainer(
            config,
            load_index(small_dataset, "train"),
            load_index(small_dataset, "val"),
            folder,
            World(device=torch.device(device)),
            RunOptions(workers=0),
            Reporter(quiet=True),
        )
        if resume:
            trainer.resume()
        return trainer

    return make
