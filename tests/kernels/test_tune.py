"""The tuner, with the interpreter in place of a GPU and a clock of our own."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from stnet.choices import KERNELS
from stnet.errors import ConfigError
from stnet.kernels import published_layers, tune, tune_command
from stnet.kernels.triton.launch_table import Candidate, Row, candidates, read_table, write_table

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
NAMED = [Candidate(), Candidate(block_queries=16), Candidate(block_queries=64)]


@pytest.fixture
def tiny(monkeypatch):
    """Only small problems, and three candidates."""
    layer = tune.layer
    sizes = {"heads": 1, "points": 2}

    def small(kernel, many, head_dim, *, small):
        make = published_layers.classic if kernel.startswith("msda") else published_layers.decoder
        others = {} if kernel.startswith("msda") else {"source_frames": 3, "targets": 1, "other_points": 1}
        queries = layer(kernel, True, 8, small=True).queries if many else 3
        return make(((4, 5), (2, 3)), **sizes, **others, head_dim=8, queries=min(queries, 26))

    monkeypatch.setattr(tune, "layer", small)
    monkeypatch.setattr(tune, "candidates", lambda *key: tuple(NAMED))
    monkeypatch.setattr(tune, "_INPUT_SETS", 1)
    tune._calls.cache_clear()
    yield
    tune._calls.cache_clear()


def key(kernel: str, many: bool = False) -> tune.Key:
    return tune.Key(kernel=kernel, dtype=torch.float32, head_dim=8, many=many, device=DEVICE)


def timed_by(timer):
    """What measures with a clock of our own."""
    return partial(tune.measure, timer=timer)


@pytest.mark.parametrize("kernel", ["stda_forward", "msda_forward"])
def test_candidates_are_checked_timed_and_sorted(tiny, kernel):
    times, lines = iter([3.0, 1.0, 2.0, 0.5]), []

    def timer(calls, seconds):
        for call in calls:
            call()
        return next(times)

    row = tune.tune_key(key(kernel), 0.1, timed_by(timer), lines.append)
    assert [candidate.milliseconds for candidate in row.candidates] == [1.0, 2.0, 3.0]
    assert [candidate.block_queries for candidate in row.candidates] == [16, 64, 32]
    assert (row.kernel, row.dtypes, row.head_dims, row.many_queries) == (kernel, ("float32",), (8,), False)
    assert len(lines) == 4 and "'block_queries': 16} values by heads: 0.5" in lines[-1]


def test_wrong_candidates_are_left_out_and_never_timed(tiny, monkeypatch):
    shares = iter([0.5, 1.5, float("inf"), 0.5])
    monkeypatch.setattr(tune, "largest_error", lambda call, candidate: next(shares))
    lines = []
    row = tune.tune_key(key("stda_forward", True), 0.1, timed_by(lambda *_: 1.0), lines.append)
    assert [candidate.block_queries for candidate in row.candidates] == [32]
    assert sum("WRONG" in line for line in lines) == 2
    monkeypatch.setattr(tune, "largest_error", lambda call, candidate: 2.0)
    with pytest.raises(ConfigError, match="no candidate of stda_forward"):
        tune.tune_key(key("stda_forward", True), 0.1, timed_by(lambda *_: 1.0), lines.append)


def test_a_candidate_that_does_not_compile_costs_only_itself(tiny, monkeypatch):
    outcomes, lines = iter([RuntimeError("ptxas failed"), 0.5, MemoryError(), 0.5]), []

    def largest_error(call, candidate):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(tune, "largest_error", largest_error)
    row = tune.tune_key(key("stda_forward", True), 0.1, timed_by(lambda *_: 1.0), lines.append)
    assert [candidate.block_queries for candidate in row.candidates] == [16]
    assert sum("FAILED" in line for line in lines) == 2 and "ptxas failed" in lines[0]


@pytest.mark.parametrize(("kernel", "many"), [("stda_forward", True), ("stda_forward", False), ("msda_forward", False)])
def test_values_are_stored_as_the_model_passes_them(kernel, many):
    """One cell after the other; the decoder's are slices of the projection for its six layers."""
    problem = tune.layer(kernel, many, 8, small=True)
    cells, heads = (
        tune.Call.of(kernel, problem, torch.float32, DEVICE, 0, by_heads=x).tensors.value for x in (False, True)
    )
    row = problem.heads * problem.head_dim * (1 if many or kernel.startswith("msda") else 6)
    assert cells.stride()[-3:] == (row, problem.head_dim, 1)
    assert heads.stride()[-3:] == (problem.head_dim, problem.positions * problem.head_dim, 1)
    assert torch.equal(cells, heads)


def _life(order: str) -> int:
    if order == "die":
        os._exit(3)
    if order == "fail":
        raise ValueError("an illegal address")
    return os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork, which is quick")
def test_an_error_ends_the_process_that_measures_and_nothing_else():
    isolated = tune.Isolated(_life, start="fork")
    first = isolated("")
    assert first == isolated("") != os.getpid()
    with pytest.raises(ValueError, match="an illegal address"):
        isolated("fail")
    second = isolated("")
    with pytest.raises(RuntimeError, match="has died"):
        isolated("die")
    assert len({first, second, isolated("")}) == 3
    isolated.close()


def compiled_but_one(key, candidate, seconds, by_heads, timer):
    (Path(os.environ["STNET_TEST_FOLDER"]) / f"{key.kernel}-{candidate.block_queries}").touch()
    if candidate.block_queries == 16:
        raise RuntimeError("a compiler failed")


def test_candidates_are_compiled_ahead_and_a_failure_costs_only_itself(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("STNET_TEST_FOLDER", str(tmp_path))
    wanted = [key("stda_forward"), key("msda_backward")]
    assert tune.compile_ahead(wanted, 2, 60.0, compiled_but_one, start="fork") == 4
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{kernel}-{queries}" for kernel in ("stda_forward", "msda_backward") for queries in (16, 32, 64)
    }


def test_errors_are_seen(tiny, monkeypatch):
    kernel = "stda_forward"
    call = tune.Call.of(kernel, tune.layer(kernel, False, 8, small=True), torch.float32, DEVICE, 0)
    assert tune.largest_error(call) <= 1
    right = tune.run
    monkeypatch.setattr(tune, "run", lambda *a: tuple(x * 1.001 for x in right(*a)))
    assert tune.largest_error(call) > 100
    monkeypatch.setattr(tune, "run", lambda *a: tuple(x * torch.nan for x in right(*a)))
    assert tune.largest_error(call) == float("inf")


@pytest.mark.parametrize("kernel", ["stda_backward", "msda_backward"])
def test_gradients_are_compared_too(tiny, kernel):
    call = tune.Call.of(kernel, tune.layer(kernel, False, 8, small=True), torch.float32, DEVICE, 0)
    assert tune.largest_error(call, Candidate(block_queries=16)) <= 1


def test_the_most_used_keys_come_first_and_all_come():
    found = tune.keys(["msda_forward", "stda_forward", "stda_backward"], ["float32", "float16"], [32, 64])
    assert len(set(found)) == len(found) == 24
    assert found[:2] == [("stda_forward", "float16", 32, True), ("stda_forward", "float16", 64, True)]


def test_keys_are_measured_while_there_is_time_and_written_after_each(tmp_path, monkeypatch):
    now, lines, path = [0.0], [], tmp_path / "table.json"
    monkeypatch.setattr(tune.time, "monotonic", lambda: now[0])

    def tune_key(key, seconds, measured_by, report):
        now[0] += 50
        if key.many:
            raise RuntimeError("a compiler failed")
        candidates = (Candidate(milliseconds=1),)
        return Row(kernel=key.kernel, architectures=("sm_90",), many_queries=key.many, candidates=candidates)

    monkeypatch.setattr(tune, "tune_key", tune_key)
    options = ["--output", str(path), "--minutes", "2", "--kernels", "stda_forward", "--dtypes", "float16", "float32"]
    options += ["--processes", "1"]
    assert tune.tune(tune_command._parser("tune").parse_args(options), torch.device("cpu"), lines.append) == 2
    assert lines[0].startswith("error: stda_forward float16") and lines[-1].startswith("measured 1 of 4 keys")
    assert read_table(path)[0].candidates[0].milliseconds == 1


def test_measured_rows_stand_first_and_replace_older_ones():
    def row(milliseconds, **keys):
        return Row(kernel="stda_forward", candidates=(Candidate(milliseconds=milliseconds),), **keys)

    old = [row(5.0, architectures=("sm_90",)), row(6.0, architectures=("sm_80",)), row(None)]
    new = [row(1.0, architectures=("sm_90",))]
    assert tune.merge(new, old) == [new[0], old[1], old[2]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path, capsys):
    assert tune_command.main(["--output", str(tmp_path / "table.json")]) == 2
    assert "error: the tuner measures on a GPU" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


FOUND = """
import torch
from triton.compiler import ASTSource
from stnet.kernels import tune
from stnet.kernels.triton.architecture import assumed
from stnet.kernels.triton.without_device import compiling_for

def compiled(self, *arguments, **options):
    raise SystemExit(f"{self.fn.fn.__name__} is not in the cache")

ASTSource.make_ir = compiled
with compiling_for("sm_90"):
    for kernel in ("msda_forward", "msda_backward"):
        key = tune.Key(kernel=kernel, dtype=torch.float16, head_dim=32, many=False, device=torch.device("cpu"))
        for candidate in key.candidates():
            for small in (True, False):
                problem = tune.layer(kernel, False, 32, small=small)
                tune.run(tune.Call.of(kernel, problem, key.dtype, key.device, seed=3), candidate)
"""


@pytest.mark.slow
def test_candidates_compiled_elsewhere_are_found(tmp_path):
    pytest.importorskip("triton")
    rows = [Row(kernel=kernel, candidates=(Candidate(), Candidate(block_queries=16))) for kernel in KERNELS]
    write_table(tmp_path / "few.json", rows)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "STNET_LAUNCH_TABLE": str(tmp_path / "few.json")}

    def python(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    options = ["--kernels", "msda_forward", "msda_backward", "--dtypes", "float16", "--processes", "2"]
    done = python("-m", "stnet.kernels.tune", "--compile-for", "sm_90", *options)
    assert (done.returncode, done.stdout) == (0, "compiled 8 of 8 candidates for sm_90\n"), done.stderr[-2000:]
    done = python("-c", FOUND)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_interpreter_compiles_nothing(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert tune_command.main(["--compile-for", "sm_90"]) == 2
    assert "error: TRITON_INTERPRET is set" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_command_writes_a_table_that_can_be_used(tmp_path, monkeypatch):
    few = Row(kernel="stda_forward", candidates=(Candidate(), Candidate(block_queries=16)))
    write_table(tmp_path / "few.json", [few])  # each of the shipped candidates would take seconds to compile
    monkeypatch.setenv("STNET_LAUNCH_TABLE", str(tmp_path / "few.json"))
    path = tmp_path / "table.json"
    options = ["--kernels", "stda_forward", "--dtypes", "float16", "--seconds", "0.05"]
    assert tune_command.main(["--output", str(path), *options]) == 0
    monkeypatch.setenv("STNET_LAUNCH_TABLE", str(path))
    arch = tune.architecture(torch.device("cuda", torch.cuda.current_device()))
    found = candidates("stda_forward", arch, torch.float16, 32, 10_000)
    assert all(candidate.milliseconds > 0 for candidate in found)
