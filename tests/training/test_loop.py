"""Whole runs on a small dataset: resume, faults, what the folder holds."""

import dataclasses
import errno
import json

import pytest
import torch

from stnet.data.clips.dataset import ClipDataset
from stnet.errors import ConfigError, NonFiniteError
from stnet.model.checkpoint import load, save
from stnet.model.detector import Detector
from stnet.training import recorder
from stnet.training.interrupt import Interrupted
from stnet.training.loop import Trainer
from stnet.training.state import checkpoints


def losses(trainer) -> list[str]:
    return trainer.folder.steps_file.read_text().splitlines()


def loss_of_steps(trainer) -> list[float]:
    return [row["loss"] for row in trainer.folder.rows(trainer.folder.steps_file)]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def interrupt_after(trainer, steps: int) -> None:
    """Have the run receive a request to stop during its step number `steps`."""
    original = trainer.stepper.run

    def run(*arguments):
        if trainer.step + 1 == steps:
            trainer.watch.received = 15
            arguments = (*arguments[:-1], (True, False))
        return original(*arguments)

    trainer.stepper.run = run


@pytest.mark.parametrize(
    ("optimizer", "stopped_after"),
    [
        ("adamw", 3),
        ("muon", 3),
        pytest.param("adamw", 1, marks=pytest.mark.slow),
        pytest.param("muon", 5, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bit_identical(make_trainer, optimizer, stopped_after):
    whole = make_trainer("whole", optimizer=optimizer)
    whole.run()

    first = make_trainer("parts", optimizer=optimizer)
    interrupt_after(first, stopped_after)
    with pytest.raises(Interrupted) as stopped:
        first.run()
    assert stopped.value.exit_code == 143
    (kept,) = first.folder.checkpoints.iterdir()
    usable = load(kept / "average.safetensors")  # to be evaluated, or started from
    for name, value in usable.state_dict().items():
        assert torch.equal(value, first.average.model.state_dict()[name]), name
    assert usable.provenance is not None and usable.provenance == first.detector.provenance
    torch.manual_seed(99)  # nothing may depend on what else drew random numbers
    second = make_trainer("parts", resume=True, optimizer=optimizer)
    assert second.step == stopped_after
    second.run()

    assert losses(second) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name
    for name, value in whole.average.model.state_dict().items():
        assert torch.equal(second.average.model.state_dict()[name], value), name


def test_the_run_folder_is_complete(make_trainer, small_recipe, tmp_path):
    start = tmp_path / "at Dr. Somebody" / "start.safetensors"
    start.parent.mkdir()
    save(Detector(small_recipe().model), start)
    trainer = make_trainer("run", start_from=str(start))
    trainer.run()
    folder = trainer.folder
    names = {path.name for path in folder.path.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "steps.csv",
        "metrics.csv",
        "curves.png",
        "train_batch_0.png",
        "train_batch_2.png",
        "val_clip_0.png",
        "evaluation.json",
        "videos.csv",
        "roc.png",
        "precision_recall.png",
        "froc.png",
        "scores.png",
        "best.safetensors",
        "last.safetensors",
        "checkpoints",
    }
    assert folder.reopen() == trainer.config
    rows = folder.rows(folder.metrics_file)
    assert [row["epoch"] for row in rows] == [1, 2] and rows[-1]["step"] == 6
    assert {"ap", "agnostic_ap50", "ap50_malignant", "false_positives_per_frame", "data_wait"} <= rows[-1].keys()
    assert len(checkpoints(folder.checkpoints)) == 2
    assert load(folder.last_file).config == trainer.config.model
    for weights_file in (folder.best_file, folder.last_file):  # weights go to others, and tell no folders
        assert b"start.safetensors" in weights_file.read_bytes() and b"Somebody" not in weights_file.read_bytes()
    evaluation = json.loads(folder.evaluation_file.read_text())
    assert evaluation["frames"] == 24 and len(evaluation["videos"]["videos"]) == 3
    for name in ("curves.png", "train_batch_0.png", "val_clip_0.png"):
        assert (folder.path / name).read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_resumes_to_nothing(make_trainer):
    make_trainer("run").run()
    again = make_trainer("run", resume=True)
    before = again.folder.metrics_file.read_text()
    again.run()
    assert again.step == 6 and again.folder.metrics_file.read_text() == before


@pytest.mark.parametrize("ends_by", ["steps", "minutes", "disk"])
def test_a_run_stopped_in_its_last_evaluation_still_makes_it(make_trainer, monkeypatch, ends_by):
    settings = {"epochs": 1, "clips_per_epoch": 4, "minutes": 1.0 if ends_by == "minutes" else 0.0}
    first = make_trainer("run", **settings)
    if ends_by == "minutes":  # in the middle of the epoch
        monkeypatch.setattr(first, "_seconds", lambda: 61.0 if first.step >= 1 else 0.0)
    if ends_by == "disk":
        monkeypatch.setattr(recorder, "save", _full_disk)
    else:
        validate = first._validate
        monkeypatch.setattr(first, "_validate", lambda: setattr(first.watch, "received", 15) or validate())
    with pytest.raises((Interrupted, OSError)):
        first.run()
    monkeypatch.undo()
    second = make_trainer("run", resume=True, **settings)
    second.run()
    assert second.step == (1 if ends_by == "minutes" else 2)
    (row,) = second.folder.rows(second.folder.metrics_file)
    assert row["step"] == second.step and "ap" in row
    assert second.folder.last_file.exists() and second.folder.best_file.exists()


def test_a_run_is_not_resumed_on_other_data(make_trainer, monkeypatch):
    make_trainer("run")._save()
    monkeypatch.setattr(Trainer, "_amounts", lambda _: {"clips to train on": 32, "frames to evaluate on": 16})
    with pytest.raises(ConfigError, match="has 24 frames to evaluate on, this data has 16"):
        make_trainer("run", resume=True)


def _full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_existing_folder_is_not_overwritten(make_trainer):
    make_trainer("run")
    with pytest.raises(ConfigError, match="not empty"):
        make_trainer("run")


def test_accumulation_changes_nothing(make_trainer):
    settings = {"model": _without_dropout(make_trainer), "batch_size": 4, "epochs": 1, "augmentation": "none"}
    whole, split = make_trainer("whole", **settings), make_trainer("split", accumulate=2, **settings)
    whole.run()
    split.run()
    for one, two in zip(
        whole.folder.rows(whole.folder.steps_file), split.folder.rows(split.folder.steps_file), strict=True
    ):
        for name in one:
            # Gradients are sums of many terms, so their order shows more.
            assert one[name] == pytest.approx(two[name], rel=1e-3 if name == "grad_norm" else 1e-5), name


def _without_dropout(make_trainer):
    model = make_trainer("model").config.model
    return dataclasses.replace(model, dropout=0.0)


@pytest.mark.parametrize("lesion_free", [False, True])
def test_a_nan_in_one_frame_stops_before_the_update(make_trainer, monkeypatch, lesion_free):
    trainer = make_trainer("run", augmentation="none")
    if lesion_free:
        monkeypatch.setattr("stnet.training.step._targets", _no_lesions)
    broken = 4
    original = ClipDataset.__getitem__

    def poisoned(self, item):
        sample = original(self, item)
        if item == broken:
            sample.images[1, 0, 3, 3] = float("nan")
        return sample

    monkeypatch.setattr(ClipDataset, "__getitem__", poisoned)
    trainer.order._order = lambda: [0, 1, 2, broken, 5, 6]
    states = []
    original_run = trainer.stepper.run

    def run(*arguments):
        states.append(weights(trainer))
        return original_run(*arguments)

    trainer.stepper.run = run
    with pytest.raises(NonFiniteError) as error:
        trainer.run()
    video, centre = trainer.dataset.centres[broken]
    assert f"video {trainer.train_index.videos[video].name}, frames {centre}," in str(error.value)
    assert trainer.step == 1
    after = weights(trainer)
    assert all(torch.equal(after[name], value) for name, value in states[-1].items())
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert json.loads((trainer.folder.path / "nonfinite.json").read_text())["step"] == 2


def _no_lesions(batch, device):
    from stnet.training.targets import FrameTargets

    frames = sum(len(clip) for clip in batch.boxes)
    return FrameTargets.from_lists([torch.zeros(0, 4)] * frames, [torch.zeros(0, dtype=torch.int64)] * frames)


def test_non_finite_gradients_stop_before_the_update(make_trainer):
    trainer = make_trainer("run")
    before = weights(trainer)
    trainer.detector.level_embed.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"gradients are not finite .* video train_"):
        trainer.run()
    assert all(torch.equal(weights(trainer)[name], value) for name, value in before.items())


def test_evaluations_can_be_rare_but_the_last_epoch_always_has_one(make_trainer):
    trainer = make_trainer("run", evaluate_every=5)
    trainer.run()
    rows = trainer.folder.rows(trainer.folder.metrics_file)
    assert "ap" not in rows[0] and "ap" in rows[1]


def test_all_frames_of_a_clip_can_be_supervised(make_trainer):
    trainer = make_trainer("run", targets=6)
    sample = trainer.dataset[3]
    published = make_trainer("published", targets=3).dataset[3]
    assert sample.frames == published.frames
    assert len(sample.boxes) == 6 and len(published.boxes) == 3


@pytest.mark.parametrize(("precision", "optimizer"), [("bfloat16", "adamw"), ("float16", "muon")])
def test_low_precision_trains(make_trainer, precision, optimizer):
    trainer = make_trainer("run", epochs=1, precision=precision, optimizer=optimizer)
    trainer.run()
    assert trainer.step == 3


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_on_the_gpu_agree_with_the_cpu(make_trainer, small_recipe, precision, optimizer):
    model = dataclasses.replace(small_recipe().model, dropout=0.0)
    recipe = {"model": model, "epochs": 1, "optimizer": optimizer}
    found = []
    for trainer in (
        make_trainer("cpu", **recipe),
        make_trainer("gpu", device="cuda", precision=precision, **recipe),
    ):
        trainer.run()
        found.append(loss_of_steps(trainer))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02)
    assert found[1] == pytest.approx(found[0], rel=0.2)


@pytest.mark.gpu
def test_a_run_on_the_gpu_resumes(make_trainer):
    whole = make_trainer("whole", device="cuda", optimizer="muon")
    whole.run()
    stopped = make_trainer("stopped", device="cuda", optimizer="muon")
    interrupt_after(stopped, 2)
    with pytest.raises(Interrupted):
        stopped.run()
    resumed = make_trainer("stopped", resume=True, device="cuda", optimizer="muon")
    resumed.run()
    assert resumed.step == whole.step
    # Atomic additions round differently from run to run.
    assert loss_of_steps(resumed) == pytest.approx(loss_of_steps(whole), rel=0.05)


def test_recomputing_changes_nothing(make_trainer):
    plain = make_trainer("plain", epochs=1)
    plain.run()
    saving = make_trainer("saving", epochs=1, checkpoint_activations=True)
    saving.run()
    assert losses(plain) == losses(saving)


def test_best_weights_are_those_of_the_best_epoch(make_trainer):
    trainer = make_trainer("run", epochs=1)
    trainer.run()
    row = trainer.folder.rows(trainer.folder.metrics_file)[-1]
    assert not trainer.recorder._is_best(row)  # equal is not better
    assert trainer.recorder._is_best(row | {"ap": row["ap"] + 0.1})
