"""Hostile files, forbidden network, data that must not change, and names of every kind, through the command itself."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stnet.training.cli import main
from stnet.training.state import MANIFEST, _fingerprint

ROOT = Path(__file__).resolve().parents[2]
MODEL = [
    *("--model", "backbone_width=8", "hidden_dim=64", "heads=2", "feedforward_dim=32", "encoder_layers=1"),
    *("decoder_layers=1", "queries=5", "image_size=48"),
]
SMALL = ["--preset", "tiny", "--clips-per-epoch", "4", "--epochs", "1", "--workers", "0", "--device", "cpu", *MODEL]
# Audit events are raised by the interpreter itself: nothing in the process reaches the network past them.
OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise RuntimeError(f"network used: {event} {arguments}")
sys.addaudithook(refuse)
import errno
import json
from stnet.training.cli import main
sys.exit(max(main(arguments) for arguments in json.loads(sys.argv[1])))
"""


class RunsCode:
    """Unpickled without care, it leaves a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (os.system, (f"touch '{self.canary}'",))


@pytest.mark.parametrize("content", ["alone", "among weights"])
@pytest.mark.parametrize("option", ["--start-from", "--evaluate", "--backbone-weights"])
def test_pickles_that_run_code_are_refused(option, content, small_dataset, tmp_path, capsys):
    canary = tmp_path / "canary"
    hostile = RunsCode(canary)
    file = tmp_path / "weights.pth"
    torch.save(hostile if content == "alone" else {"model": {"a": torch.zeros(1)}, "args": hostile}, file)
    arguments = ["--data", str(small_dataset), option, str(file)]
    if option != "--evaluate":
        arguments += ["--output", str(tmp_path / "run"), *SMALL]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "weights.pth" in error and "Traceback" not in error
    assert not canary.exists()


def test_resuming_from_a_pickle_that_runs_code_is_refused(small_dataset, tmp_path, capsys):
    run = tmp_path / "run"
    train = ["--data", str(small_dataset), "--output", str(run)]
    assert main([*train, *SMALL]) == 0
    canary = tmp_path / "canary"
    for checkpoint in (run / "checkpoints").iterdir():
        torch.save({"step": 1, "optimizer": RunsCode(canary)}, checkpoint / "state.pt")
        manifest = checkpoint / MANIFEST  # brought up to date: checksums alone would give the exchange away
        entries = json.loads(manifest.read_text()) | {"state.pt": _fingerprint(checkpoint / "state.pt")}
        manifest.write_text(json.dumps(entries))
    assert main([*train, "--resume"]) == 2
    captured = capsys.readouterr()
    assert "no readable checkpoint" in captured.err and "objects other than" in captured.out
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"{}", bytes(range(256)) * 16])
def test_files_that_are_no_checkpoints_are_refused(content, small_dataset, tmp_path, capsys):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert main(["--data", str(small_dataset), "--evaluate", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture
def oddly_named(small_dataset, tmp_path):
    """The small data set in folders whose names have spaces, accents, quotes and other scripts."""
    root = tmp_path / "Größe 乳腺 'it' & co"
    (root / "rawframes").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((small_dataset / f"{split}.json").read_text())
        for video in content["videos"]:
            old, video["name"] = video["name"], f"-Läsion {video['id']} 病变 [{split}]"
            (root / "rawframes" / video["name"]).mkdir()
            for frame in (small_dataset / "rawframes" / old).iterdir():
                (root / "rawframes" / video["name"] / frame.name).write_bytes(frame.read_bytes())
            for image in content["images"]:
                image["file_name"] = image["file_name"].replace(f"{old}/", f"{video['name']}/")
        (root / f"{split}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return root


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def run_offline(commands: list[list[str]]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(commands)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=280,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_trains_and_evaluates_offline_leaving_odd_names_and_the_data_alone(oddly_named, tmp_path):
    before = contents(oddly_named)
    for folder in (oddly_named, *(path for path in oddly_named.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    run = tmp_path / "a rün 1"
    train = ["--data", str(oddly_named), "--output", str(run), *SMALL]
    evaluate = ["--evaluate", str(run / "last.safetensors"), "--data", str(oddly_named), "--device", "cpu"]
    try:
        run_offline([train, [*evaluate, "--output", str(run / "évaluation")]])
    finally:
        for folder in (oddly_named, *(path for path in oddly_named.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
    assert contents(oddly_named) == before
    table = (run / "évaluation" / "videos.csv").read_text(encoding="utf-8")
    assert table == (run / "videos.csv").read_text(encoding="utf-8") and "-Läsion 1 病变 [val]" in table


@pytest.mark.parametrize("name", ["steps", "metrics"])
def test_a_disk_that_fills_up_ends_the_training_with_one_line(name, small_dataset, tmp_path, capsys, monkeypatch):
    real = Path.open

    def full(self, mode="r", *rest, **more):
        if name in self.name and mode[0] in "wa":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    status = main(["--data", str(small_dataset), "--output", str(tmp_path / "run"), *SMALL])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and "No space left on device" in error and error.count("\n") == 1
