"""Reading published and own checkpoints, and refusing everything else."""

import argparse
import collections
import copy
import dataclasses
import datetime
import io
import json
import os
import pathlib
import pickle
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

import stnet
from stnet.errors import CheckpointError
from stnet.model.backbone import ResNet
from stnet.model.checkpoint import CONFIG_KEY, main, read_checkpoint
from stnet.model.detector import Detector
from stnet.model.operating_points import OperatingPoints
from stnet.model.pretrained import load_backbone
from stnet.model.weight_files import read_weights


def test_round_trip_keeps_weights_configuration_and_metadata(small_model, tmp_path):
    path = tmp_path / "model.safetensors"
    stnet.save(small_model, path, {"command": "train.py --preset tiny"})
    loaded = stnet.load(path)
    assert loaded.config == small_model.config
    assert not loaded.training
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), small_model.state_dict().values(), strict=True)
    )
    assert read_checkpoint(path).metadata == {"command": "train.py --preset tiny"}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pre-1.6"])
def test_published_file_loads_with_every_key_accounted_for(recorded, tmp_path, zipped):
    published = dict(recorded("refine_128x160").published)
    published["backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(7)
    published["transformer.total_ops"] = torch.zeros(1, dtype=torch.float64)
    published["total_params"] = torch.zeros(1, dtype=torch.float64)
    path = tmp_path / "checkpoint.pth"
    arguments = argparse.Namespace(num_frames=6, with_box_refine=True, lr_backbone_names=["backbone.0"])
    contents = {"model": published, "optimizer": {}, "lr_scheduler": {}, "epoch": 27, "args": arguments}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert sorted(checkpoint.ignored) == [
        "backbone.0.body.bn1.num_batches_tracked",
        "total_params",
        "transformer.total_ops",
    ]
    model = stnet.load(path)
    repeated = sum(key.startswith("transformer.decoder.bbox_embed") for key in published)
    assert len(model.state_dict()) == len(published) - repeated - len(checkpoint.ignored)
    assert torch.equal(model.decoder.query_embed.weight, published["query_embed.weight"])

    converted = tmp_path / "stnet.safetensors"
    assert main([str(path), str(converted)]) == 0
    again = stnet.load(converted).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
    assert main([str(path), str(converted)]) == 2  # exists


def test_published_file_with_wrong_parameters_is_refused_with_their_names(recorded, tmp_path):
    published = dict(recorded("refine_128x160").published)
    del published["transformer.level_embed"]
    published["surprise.weight"] = torch.zeros(3)
    published["class_embed.0.bias"] = torch.zeros(4)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": published}, path)
    with pytest.raises(CheckpointError) as error:
        stnet.load(path)
    for part in ("level_embed", "surprise.weight", r"decoder.class_heads.0.bias [4] instead of [3]", str(path)):
        assert part in str(error.value)


def test_inconsistent_repeated_box_heads_are_refused(recorded, tmp_path):
    published = dict(recorded("refine_128x160").published)
    published["transformer.decoder.bbox_embed.0.layers.0.bias"] = torch.ones(256)
    torch.save({"model": published}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="repeats"):
        stnet.load(tmp_path / "checkpoint.pth")


class _Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickles_that_run_code_are_refused(tmp_path, monkeypatch, suffix, writer):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"evil{suffix}"
    if writer == "torch":
        torch.save({"model": {}, "args": _Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(CheckpointError, match=r"refused|not a readable"):
        stnet.load(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04broken", b"not a checkpoint"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files_are_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        stnet.load(tmp_path / name)


def test_truncated_safetensors_is_refused(small_model, tmp_path):
    path = tmp_path / "model.safetensors"
    stnet.save(small_model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="complete"):
        stnet.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, config: config.update(colour="red"), "unknown keys 'colour'"),
        (lambda state, config: config.update(heads="many"), "heads is 'many'"),
        (lambda state, config: config.update(hidden_dim=33), "hidden_dim 33"),
        (lambda state, config: state.pop("level_embed"), "missing 1: level_embed"),
        (lambda state, config: state["level_embed"].fill_(torch.nan), "not finite in level_embed"),
    ],
)
def test_tampered_safetensors_is_refused(small_model, tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    stnet.save(small_model, path)
    state, config = load_file(path), json.loads(small_model.config.to_json())
    change(state, config)
    save_file(state, path, metadata={CONFIG_KEY: json.dumps(config)})
    with pytest.raises(stnet.errors.StnetError, match=message):
        stnet.load(path)


def test_missing_file_names_the_shipped_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        stnet.load(tmp_path / "nowhere.pth")
    (tmp_path / "foreign.safetensors").write_bytes(b"")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no model configuration"):
        stnet.load(tmp_path / "foreign.safetensors")


def _own_state(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


DTYPES = [getattr(torch, name) for name in sorted(vars(torch)) if isinstance(getattr(torch, name), torch.dtype)]
SAVED = [dtype for dtype in dict.fromkeys(DTYPES) if dtype not in (torch.float32,)]


@pytest.mark.parametrize("dtype", SAVED, ids=str)
def test_weights_of_every_dtype_load_with_their_values_or_are_refused(small_model, tmp_path, dtype):
    state = _own_state(small_model)
    try:
        state["level_embed"] = state["level_embed"].to(dtype)
        save_file(state, tmp_path / "a.safetensors", metadata={CONFIG_KEY: small_model.config.to_json()})
    except Exception:  # no such tensors, or no such files
        pytest.skip("cannot be written")
    if dtype in (torch.float16, torch.bfloat16, torch.float64):
        loaded = stnet.load(tmp_path / "a.safetensors").level_embed
        assert loaded.dtype == torch.float32 and torch.equal(loaded, state["level_embed"].float())
        return
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*level_embed is"):
        stnet.load(tmp_path / "a.safetensors")


def test_values_beyond_float32_and_odd_tensors_are_refused(small_model, tmp_path):
    state = _own_state(small_model)
    big = state | {"level_embed": torch.full_like(state["level_embed"], 1e300, dtype=torch.float64)}
    save_file(big, tmp_path / "big.safetensors", metadata={CONFIG_KEY: small_model.config.to_json()})
    with pytest.raises(CheckpointError, match="not finite in level_embed"):
        stnet.load(tmp_path / "big.safetensors")
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.zeros(2, device="meta"),
        "nan": torch.tensor([torch.nan]),
    }
    if hasattr(torch, "quantize_per_tensor"):
        odd["quantized"] = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for name, tensor in odd.items():
        torch.save({"model": {name: tensor}}, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError, match=rf"{name} is no plain tensor|not finite in {name}"):
            read_checkpoint(tmp_path / "odd.pth")
    resnet = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d).state_dict()
    torch.save({key: value.to(torch.int8) for key, value in resnet.items()}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="is int8"):
        load_backbone(ResNet("resnet18"), tmp_path / "resnet.pth")


@pytest.fixture(scope="module")
def published(recorded):
    return dict(recorded("refine_128x160").published)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pre-1.6"])
def test_harmless_objects_beside_the_weights_load(published, tmp_path, zipped):
    factory = collections.defaultdict(list, a=[1])
    beside = {
        "args": argparse.Namespace(num_frames=np.int64(6), output=Path("runs/x"), lr=np.float32(0.1), flag=np.bool_(1)),
        "names": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath(r"c:\a"), np.str_("text")],
        "meters": factory,
        "nested": collections.OrderedDict(loss=collections.defaultdict(float), n=collections.Counter("aab")),
        "rng": np.random.default_rng(0).integers(0, 9, 5),
        "best": {"ap": np.float64(0.5), "at": datetime.datetime(2024, 1, 2), "took": datetime.timedelta(1)},
        "types": types.SimpleNamespace(kind=int, none=None, sets={1, 2}, frozen=frozenset("a"), big=1 << 80),
        "epoch": np.int64(3),
    }
    torch.save({"model": published, **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert len(read_checkpoint(tmp_path / "a.pth").state) > 100
    contents, _ = read_weights(tmp_path / "a.pth")
    assert contents["args"].num_frames == 6 and str(contents["args"].output) == "runs/x"
    assert contents["meters"] == {"a": [1]} and contents["rng"].tolist() == beside["rng"].tolist()
    assert contents["best"] == beside["best"] and contents["types"].big == 1 << 80


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        ("module.{}", "model"),
        ("_orig_mod.{}", "state_dict"),
        ("module._orig_mod.{}", None),
        ("_orig_mod.module.{}", "model"),
    ],
)
def test_names_of_wrapped_models_are_unwrapped(published, tmp_path, wrap, key):
    wrapped = {wrap.format(name): value for name, value in published.items()}
    torch.save({key: wrapped} if key else wrapped, tmp_path / "a.pth")
    torch.save({"model": published}, tmp_path / "b.pth")
    assert read_checkpoint(tmp_path / "a.pth").state.keys() == read_checkpoint(tmp_path / "b.pth").state.keys()


def test_wrapped_and_renamed_own_files_load(small_model, tmp_path):
    state = {f"_orig_mod.{key}": value for key, value in _own_state(small_model).items()}
    save_file(state, tmp_path / "renamed.pth", metadata={CONFIG_KEY: small_model.config.to_json()})
    assert torch.equal(stnet.load(tmp_path / "renamed.pth").level_embed, small_model.level_embed)
    twice = state | {"level_embed": torch.zeros_like(small_model.level_embed)}
    save_file(twice, tmp_path / "twice.safetensors", metadata={CONFIG_KEY: small_model.config.to_json()})
    with pytest.raises(CheckpointError, match="level_embed twice"):
        stnet.load(tmp_path / "twice.safetensors")
    torch.save({"model": {}}, tmp_path / "zip.safetensors")
    with pytest.raises(CheckpointError, match="holds nothing"):
        stnet.load(tmp_path / "zip.safetensors")


class _Foreign:
    pass


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pre-1.6"])
def test_refused_objects_are_named(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save({"model": {}, "extra": _Foreign()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="_Foreign") as error:
        stnet.load(path)
    for unwanted in ("weights_only", "\x1b", "safe_globals", "Unpickl"):
        assert unwanted not in str(error.value)


@pytest.mark.parametrize("forged", [np.dtype("O"), np.dtype([("a", "O")]), np.array([None]), np.datetime64("2024")])
def test_arrays_of_objects_are_refused(tmp_path, forged):
    torch.save({"model": {}, "extra": forged}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"numpy|damaged"):
        stnet.load(tmp_path / "a.pth")


def _archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx", ""])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>quota exceeded</html>", "HTML"),
        (b"<html>", "HTML"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX"),
        (b"\x08\x07\x3a\x90\x01", "ONNX"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "unpack"),
        (_archive("model/constants.pkl", "model/data.pkl"), "TorchScript"),
        (_archive("m/archive_format"), "torch.export"),
        (_archive("a.txt"), "archive"),
    ],
)
def test_files_without_weights_are_named_for_what_they_are(tmp_path, content, said, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as error:
        stnet.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_run_folder_loads_its_best_weights(small_model, tmp_path):
    with pytest.raises(CheckpointError, match=r"without best\.safetensors"):
        stnet.load(tmp_path)
    other = Detector(small_model.config)
    stnet.save(other, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"such as last\.safetensors"):
        stnet.load(tmp_path)
    stnet.save(small_model, tmp_path / "best.safetensors")
    assert torch.equal(stnet.load(tmp_path).level_embed, small_model.level_embed)
    state = tmp_path / "checkpoints" / "step-1"
    state.mkdir(parents=True)
    (state / "state.pt").touch()
    with pytest.raises(CheckpointError, match=r"--resume.*best\.safetensors"):
        stnet.load(state)
    (tmp_path / "best.safetensors").unlink()  # not evaluated yet
    stnet.save(small_model, state / "average.safetensors")
    with pytest.raises(CheckpointError, match=r"--resume.*step-1.average\.safetensors"):
        stnet.load(state)


def test_loading_does_not_depend_on_the_default_dtype(small_model, tmp_path):
    stnet.save(small_model, tmp_path / "a.safetensors")
    try:
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            assert stnet.load(tmp_path / "a.safetensors").level_embed.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to a device that is always full")
def test_conversion_ends_with_one_line(small_model, tmp_path, capsys):
    stnet.save(small_model, tmp_path / "a.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for source, destination in (
        ("a.safetensors", "missing/b.safetensors"),
        ("a.safetensors", "folder.safetensors"),
        ("none.pth", "b.safetensors"),
    ):
        assert main([str(tmp_path / source), str(tmp_path / destination), "--overwrite"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob(".*tmp*"))


def test_weights_of_two_trainings_are_averaged(small_model, tmp_path, capsys):
    one, other = copy.deepcopy(small_model), copy.deepcopy(small_model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    one.operating_points = OperatingPoints(
        class_names=one.config.class_names, slopes=(1.0, 1.0), offsets=(0.0, 0.0),
        sensitive=0.1, balanced=0.2, specific=0.3, chosen_on="stills",
    )  # fmt: skip
    stnet.save(one, tmp_path / "a.safetensors", {"metrics": "{}", "training": "{}"})
    stnet.save(other, tmp_path / "b.safetensors")
    stnet.save(Detector(dataclasses.replace(one.config, queries=7)), tmp_path / "c.safetensors")
    both = [str(tmp_path / "a.safetensors"), str(tmp_path / "mean.safetensors"), "--average-with"]
    assert main([*both, str(tmp_path / "b.safetensors")]) == 2
    assert "--trained-on" in capsys.readouterr().err
    assert main([*both, str(tmp_path / "c.safetensors"), "--trained-on", "stills"]) == 2
    assert "c.safetensors: is another model" in capsys.readouterr().err
    assert main([*both, str(tmp_path / "b.safetensors"), "--trained-on", "stills"]) == 0
    mean = read_checkpoint(tmp_path / "mean.safetensors")
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(mean.state[name], parameter.detach() * 2)
    assert mean.operating_points is None and "metrics" not in mean.metadata and "training" in mean.metadata
    assert mean.metadata["source"] == "a.safetensors, b.safetensors" and mean.provenance.trained_on == "stills"
