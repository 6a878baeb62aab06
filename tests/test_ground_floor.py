"""Files, console, ends of commands, devices, settings from JSON."""

import dataclasses
import errno
import io
import json
import os

import pytest
import torch
from rich.console import Console

from stnet import command_line, environment
from stnet.console import Reporter, printable
from stnet.devices import is_out_of_memory, resolve_device
from stnet.errors import ConfigError, DataError
from stnet.files import GrowingFile, replacing, write_json
from stnet.json_settings import settings_from_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_temporary_file_keeps_the_ending(tmp_path):
    with replacing(tmp_path / "curves.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")
    assert (tmp_path / "curves.png").read_bytes() == b"x"


def test_a_growing_file_keeps_what_it_had_when_broken_off(tmp_path):
    path = tmp_path / "frames.csv"
    with pytest.raises(RuntimeError), GrowingFile(path) as file:
        file.write("1\n")
        raise RuntimeError
    assert not path.exists()
    assert (tmp_path / "frames.csv.partial").read_text() == "1\n"
    with GrowingFile(path) as file:
        file.write("2\n")
    assert os.listdir(tmp_path) == ["frames.csv"]


def test_a_growing_file_may_be_revised_when_its_end_is_known(tmp_path):
    file = GrowingFile(tmp_path / "rows.csv", newline="")
    file.write("a\r\nb\r\n")
    with pytest.raises(RuntimeError):
        file.close(revised=_broken)
    assert os.listdir(tmp_path) == ["rows.csv.partial"]
    file = GrowingFile(tmp_path / "rows.csv", newline="")
    file.write("a\r\nb\r\n")
    file.close(revised=lambda lines: (f"{number} {line}" for number, line in enumerate(lines)))
    assert os.listdir(tmp_path) == ["rows.csv"] and (tmp_path / "rows.csv").read_bytes() == b"0 a\r\n1 b\r\n"


def _broken(lines):
    yield next(iter(lines))
    raise RuntimeError


def test_names_cannot_command_a_terminal():
    assert printable("a\x1b[31mb\udcff\né") == "a\\x1b[31mb\\udcff\\né"


@pytest.mark.parametrize("terminal", [True, False])
def test_messages_and_tables_show_names_as_they_are(terminal):
    out = io.StringIO()
    reporter = Reporter(console=Console(file=out, force_terminal=terminal, width=80, color_system=None))
    with reporter:
        reporter.start("clip [red].mp4", total=2)
        reporter.advance(detail="3 frames/s")
        reporter.message("clip [red]\x1b]0;title\x07.mp4")
        reporter.stop()
        reporter.table("all", ("name", "n"), [("clip [red].mp4", "1")])
    assert "clip [red]\\x1b]0;title\\x07.mp4" in out.getvalue()
    assert "\x1b]0;" not in out.getvalue()


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (DataError("a.json: no boxes"), "error: a.json: no boxes", 2),
        (OSError(errno.ENOSPC, "No space left on device", "out.csv"), "error: out.csv: No space left on device", 2),
        (MemoryError(), "error: out of memory", 2),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error: text in an unexpected encoding", 2),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_commands_end_with_one_line(error, line, status, capsys):
    def command():
        raise error

    assert command_line.run(command) == status
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_a_fault_of_the_program_stays_a_traceback():
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line.run(command)
    assert command_line.run(lambda: None) == 0


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99", "cuda:-1"])
def test_unusable_devices_are_named(name):
    with pytest.raises(ConfigError, match=name):
        resolve_device(name)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_lack_of_memory_is_known_whoever_tells_it(error, memory):
    assert is_out_of_memory(error) == memory


def test_a_device_of_cuda_has_its_index(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cuda", local_rank=3) == torch.device("cuda", 3)
    assert resolve_device("cuda:2", local_rank=3) == torch.device("cuda", 2)


def test_a_stated_commit_goes_before_the_history_beside_the_code(monkeypatch):
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "abc123")
    assert environment.commit() == "abc123"
    monkeypatch.delenv(environment.COMMIT_VARIABLE)
    assert environment.commit() != "abc123"


def test_an_environment_names_versions_and_commit():
    about = environment.describe()
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert about["commit"]
    assert json.loads(json.dumps(about)) == about


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inner:
    sizes: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outer:
    rate: float = 0.5
    name: str | None = None
    inner: _Inner = _Inner()


def test_settings_pass_through_json():
    settings = _Outer(rate=1.5, name="a", inner=_Inner(sizes=(3, 4)))
    assert settings_from_json(_Outer, json.dumps(dataclasses.asdict(settings)), "x") == settings
    assert settings_from_json(_Outer, '{"rate": 2, "name": null}', "x") == _Outer(rate=2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"rat": 1}', "unknown keys 'rat'"),
        ('{"rate": true}', "rate is True"),
        ('{"inner": {"sizes": [1, "2"]}}', "inner: sizes is '2'"),
        ('{"inner": 3}', "inner: expected a JSON object"),
    ],
)
def test_settings_from_json_name_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        settings_from_json(_Outer, text, "run/config.json")


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    for path in (tmp_path / "absent" / "x.json", tmp_path):
        with pytest.raises(OSError) as caught:
            write_json(path, {})
        assert command_line.explain(caught.value).startswith(f"{path}: ")
