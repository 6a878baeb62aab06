"""The command `stnet`: its subcommands, and how little it takes until arguments are understood."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import stnet
from stnet import command
from stnet.choices import ANNOTATION_FORMATS
from stnet.command import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
COMPUTING = {"torch", "torchvision", "triton", "numba", "scipy", "matplotlib", "pycocotools", "pydicom", "safetensors"}
OPENING = {"numpy", "av", "PIL"}

ASK = """
import contextlib, io, json, sys
from stnet.command import main
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(line.split())
        except SystemExit as exit:
            status = exit.code
    print(json.dumps([status, said.getvalue(), [name for name in sys.modules if "." not in name]]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What one process answers to calls of the command, one after the other, and which packages it has by then."""

    def ask(*calls: str) -> list[tuple[int, str, set[str]]]:
        folder = tmp_path_factory.mktemp("calls")
        (folder / "clip.mp4").touch()
        (folder / "there").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            input="\n".join(calls),
            cwd=folder,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return [(status, said, set(names)) for status, said, names in map(json.loads, done.stdout.splitlines())]

    return ask


def test_help_and_mistaken_options_import_nothing_heavy(answers):
    helped, mistaken = [f"{name} --help" for name in COMMANDS], [f"{name} --bogus" for name in COMMANDS]
    calls = ["--help", "--version", "bogus", *helped, *mistaken]
    for call, (status, said, packages) in zip(calls, answers(*calls), strict=True):
        assert not packages & (COMPUTING | OPENING), call
        assert status == (2 if "bogus" in call else 0) and "Traceback" not in said, call
        if call in helped:
            assert said.startswith(f"usage: stnet {call.split()[0]} "), call
        elif call in mistaken:
            assert f"usage: stnet {call.split()[0]} " in said and " error: " in said, call


MISTAKES = {
    "infer clip.mp4 --batch 0": "argument --batch: 0 must be at least 1",
    "train --data missing --output x": "error: missing: no such folder; give the folder",
    "evaluate missing.pth --data there": "error: missing.pth: no such file; shipped checkpoints are",
    "check missing": "error: missing: no such folder; give the folder that holds the annotation files",
    "convert missing there out --split train": "error: missing: no such file or folder; check the path",
    "convert clip.mp4 missing out --split train": "error: missing: no such file or folder; check the path",
    "convert clip.mp4 there out --split train --video-from (": "error: --video-from '(': no regular expression",
    "phantoms out --height 7": "error: height 7: give 48 to 1024 pixels",
    "stills out --sets missing": "error: missing: no such file or folder; check the path",
    "stills out --train missing.json": "error: missing.json: no such file or folder; check the path",
    "export missing.pth": "error: missing.pth: no such file; shipped checkpoints are",
    "export lite0 --height 7": "error: --height is 7; it must be at least 32",
    "tune --kernels bogus": "argument --kernels: invalid choice: 'bogus'",
    "demo --checkpoint missing.pth": "error: missing.pth: no such file; shipped checkpoints are",
    "demo --frames 0": "error: --frames is 0; it must be at least 1",
}

MISTAKES_IN_INPUTS = {
    "infer missing.mp4": "error: missing.mp4: no such file or folder",
    "infer there clip.mp4 --checkpoint missing.pth": "error: missing.pth: no such file; shipped checkpoints are",
}


def test_mistaken_names_and_values_are_told_before_anything_that_computes_is_imported(answers):
    asked = MISTAKES | MISTAKES_IN_INPUTS
    for (call, expected), (status, said, packages) in zip(asked.items(), answers(*asked), strict=True):
        assert status == 2 and expected in said and "Traceback" not in said, (call, said)
        assert not packages & (COMPUTING if call in MISTAKES_IN_INPUTS else COMPUTING | OPENING), call


def test_names_of_options_are_those_of_what_reads_them():
    from stnet.data.formats.reading import FORMATS

    assert sorted((*FORMATS, "yolo")) == sorted(ANNOTATION_FORMATS)


def test_interruption_while_modules_are_imported(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.importlib, "import_module", interrupted)
    assert main(["infer", "clip.mp4"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_package_lists_what_it_offers():
    assert {"load", "save", "VideoDetector", "Detector", "ModelConfig"} <= set(dir(stnet)) == set(stnet.__all__)
    with pytest.raises(AttributeError, match="module 'stnet' has no attribute 'bogus'"):
        stnet.bogus  # noqa: B018
