"""Reading published and own checkpoints, and refusing everything else."""

import argparse
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import stnet
from stnet.errors import CheckpointError
from stnet.model.checkpoint import CONFIG_KEY, main, read_checkpoint


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
