"""Kernels that are compiled ahead are found by a model on the GPU that was named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stnet
from stnet.model.detector import Detector
from stnet.warm import main
from tests.inference.conftest import SMALL

ROOT = Path(__file__).parents[1]

RUN = """
import sys
import torch
from triton.compiler import ASTSource
import stnet
from stnet.execution.engine import EngineOptions, rewritten
from stnet.kernels.triton.without_device import compiling_for
from stnet.model.detector import Detector

def compiled(self, *arguments, **options):
    raise SystemExit(f"{self.fn.fn.__name__} is not in the cache")

checkpoint, arch, dtype, training = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), sys.argv[4] == "training"
config = stnet.load(checkpoint).config
ASTSource.make_ir = compiled
with compiling_for(arch):
    if training:
        model = Detector(config, backend="triton").train()
        with torch.autocast("cpu", dtype):
            output = model(torch.randn(2, config.frames, 3, 96, 128), targets=2)
        sum(x.logits.sum() + x.boxes.sum() for x in (output, *output.layers)).backward()
    else:
        model = rewritten(Detector(config, backend="triton"), EngineOptions(), torch.device("cpu"), dtype)
        with torch.inference_mode():
            model(torch.randn(2, config.frames, 3, 96, 128, dtype=dtype), targets=2)
"""


def python(cache: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    torch.manual_seed(0)
    stnet.save(Detector(SMALL), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "extra"), [("sm_90", ()), ("sm_90", ("--training",)), ("gfx942", ())])
def test_a_later_run_compiles_nothing(checkpoint, tmp_path, gpu, extra):
    pytest.importorskip("triton")
    asked = ("--gpu", gpu, "--model", checkpoint, "--size", "96", "128", "--clips", "2", "--targets", "2", *extra)
    done = python(tmp_path, "-m", "stnet.warm", str(tmp_path), *asked)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"kernels compiled for {gpu}, 0 were there" in done.stdout
    assert int(done.stdout.split(": ")[1].split()[0]) >= 2
    way = "training" if extra else "inference"
    done = python(tmp_path, "-c", RUN, checkpoint, gpu, "float16", way)
    assert done.returncode == 0, done.stderr[-2000:]
    other = python(tmp_path, "-c", RUN, checkpoint, gpu, "bfloat16", way)
    assert other.returncode and "is not in the cache" in other.stderr
    again = python(tmp_path, "-m", "stnet.warm", str(tmp_path), *asked)
    assert ": 0 kernels compiled" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8", "64"], "--size: 8; it must be at least 32"),
        (["--clips", "0"], "--clips: 0; it must be at least 1"),
        ([], "TRITON_INTERPRET is set"),
    ],
)
def test_what_cannot_be_compiled_is_told(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main([str(tmp_path / "cache"), "--gpu", "sm_90", "--model", "tiny", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
