"""Exported ONNX models in ONNX Runtime, in OpenVINO, and in a program of onnxruntime and numpy alone."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import stnet
from stnet.data.clips.transforms import prepare_frames
from stnet.export_command import main
from stnet.model.postprocess import select_detections
from stnet.normalization import IMAGENET_STD
from tests.test_export import write_small_model

pytestmark = pytest.mark.integration
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("checkpoint") / "small.safetensors")


@pytest.fixture(scope="module")
def onnx_model(checkpoint, tmp_path_factory):
    """An ONNX model of clips of any number and size, and what exporting it printed."""
    folder = tmp_path_factory.mktemp("onnx")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(checkpoint), "--output", str(folder), "--formats", "onnx"]) == 0
    return folder / "model.onnx", printed.getvalue()


def test_onnx_equals_the_model_at_any_size(checkpoint, onnx_model, capsys):
    path, printed = onnx_model
    differences = [json.loads(found) for found in re.findall(r"\{.*\}", printed)]
    assert len(differences) == 2 and max(max(found.values()) for found in differences) < 1e-4
    assert b"GridSample" not in path.read_bytes() and b"Sequence" not in path.read_bytes()  # TensorRT has no sequences
    session = onnxruntime.InferenceSession(path)
    assert [x.name for x in (*session.get_inputs(), *session.get_outputs())] == ["clips", "logits", "boxes"]
    assert session.get_inputs()[0].shape == ["batch", 3, 3, "height", "width"]
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"] == ["benign", "malignant"] and facts["targets"] == 3 and facts["image_size"] == 72
    assert facts["std"] == list(IMAGENET_STD) and facts["stnet_operating_points"]["slopes"] == [0.9, 1.1]
    assert main([str(checkpoint), "--output", str(path.parent), "--formats", "onnx"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_example_finds_what_the_model_finds(checkpoint, onnx_model, tmp_path):
    model = stnet.load(checkpoint).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, 72, 88, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", frames)
    example = Path(__file__).parents[2] / "examples" / "onnx_runtime.py"
    blocked = "import runpy, sys; sys.modules['torch'] = sys.modules['stnet'] = None; del sys.argv[0]; "
    command = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0])", str(example)]
    done = subprocess.run([*command, str(onnx_model[0]), str(tmp_path / "clip.npy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = sorted((int(line[0]), line[1], *map(float, line[2:])) for line in map(str.split, done.stdout.splitlines()))
    points, names = model.operating_points, model.config.class_names
    with torch.no_grad():
        output = model(prepare_frames(frames, 72, 1333)[None])
    frames_of = select_detections(output.logits[0], output.boxes[0], 72, 88, duplicate_iou=0.5, points=points)
    wanted = sorted(
        (number, names[label - 1], score.item(), *box.tolist())
        for number, frame in enumerate(frames_of)
        for box, score, label in zip(frame.boxes, frame.scores, frame.labels, strict=True)
        if score >= points.balanced
    )
    assert len(found) == len(wanted) > 3
    for one, other in zip(found, wanted, strict=True):
        assert one[:2] == other[:2] and one[2:] == pytest.approx(other[2:], abs=0.02)


def test_the_difference_of_16_bits_is_printed(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), "--output", str(tmp_path), "--formats", "onnx-float16"]) == 0
    found = [json.loads(line) for line in re.findall(r"\{.*\}", capsys.readouterr().out)]
    assert len(found) == 2
    assert all(0 < difference["logits"] < 0.2 and difference["boxes"] < 0.05 for difference in found)


def test_openvino_equals_the_model_at_any_size(checkpoint, onnx_model):
    openvino = pytest.importorskip("openvino")
    model = stnet.load(checkpoint).eval()
    compiled = openvino.Core().compile_model(onnx_model[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 3, 3, 72, 90), (2, 3, 3, 101, 66)):
        clips = torch.randn(shape)
        found = compiled({"clips": clips.numpy()})
        with torch.no_grad():
            wanted = model(clips)
        np.testing.assert_allclose(found["logits"], wanted.logits, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["boxes"], wanted.boxes, rtol=0, atol=1e-4)
