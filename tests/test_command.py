"""The command `stnet`: its subcommands, and how little it takes until arguments are understood."""

import subprocess
import sys
from pathlib import Path

import pytest

import stnet
from stnet import command
from stnet.command import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "triton", "numba", "scipy", "matplotlib", "pycocotools", "pydicom", "safetensors"}

LOOK = f"""
import sys
from stnet.command import main
try:
    status = main(sys.argv[1:])
except SystemExit as exit:
    status = exit.code
print("status", status, "heavy", sorted({HEAVY} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("infer --help", 0, "usage: stnet infer"),
        ("infer missing.mp4", 2, "error: missing.mp4: no such file or folder"),
        ("infer . --checkpoint missing.pth", 2, "error: missing.pth: no such file; shipped checkpoints are"),
        ("infer clip.mp4 --batch 0", 2, "argument --batch: 0 must be at least 1"),
        ("train --help", 0, "usage: stnet train"),
        ("train --data missing --output x", 2, "error: missing: no such folder; give the folder"),
        ("evaluate --help", 0, "usage: stnet evaluate"),
        ("evaluate missing.pth --data .", 2, "error: missing.pth: no such file"),
        ("--help", 0, "usage: stnet COMMAND"),
        ("--version", 0, f"stnet {stnet.__version__}"),
        ("bogus", 2, "'bogus' is no command; choose from infer, train"),
    ],
)
def test_nothing_heavy_is_imported_before_arguments_are_understood(tmp_path, arguments, status, said):
    (tmp_path / "clip.mp4").touch()
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith(f"status {status} heavy []\n"), done.stdout + done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("infer", "train", "evaluate")])
def test_each_command_tells_of_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and f"usage: stnet {name}" in capsys.readouterr().out


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
