"""The tuner, with the interpreter in place of a GPU and a clock of our own."""

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from stnet.errors import ConfigError
from stnet.kernels import tune
from stnet.kernels.launch import Candidate, Row, candidates

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
NAMED = [Candidate(), Candidate(block_queries=16), Candidate(block_queries=64)]


@pytest.fixture
def tiny(monkeypatch):
    """Only small problems, and three candidates."""
    layer = tune.layer

    def small(*, queries, head_dim, small):
        full = layer(queries=queries and 3, head_dim=8, small=True)
        shapes = full.spatial_shapes[1:3]
        positions = sum(height * width for height, width in shapes)
        return replace(
            full,
            heads=1,
            targets=1,
            points=2,
            other_points=1,
            frame_table=full.frame_table[:1],
            spatial_shapes=shapes,
            positions=positions,
            queries=min(full.queries, positions),
        )

    monkeypatch.setattr(tune, "layer", small)
    monkeypatch.setattr(tune, "candidates", lambda *key: tuple(NAMED))
    monkeypatch.setattr(tune, "_INPUT_SETS", 1)


@pytest.mark.parametrize("kernel", ["stda_forward", "msda_forward"])
def test_candidates_are_checked_timed_and_sorted(tiny, kernel):
    times, lines = iter([3.0, 1.0, 2.0]), []

    def timer(calls, seconds):
        for call in calls:
            call()
        return next(times)

    row = tune.tune_key(kernel, torch.float32, 8, False, DEVICE, 0.1, timer, lines.append)
    assert [candidate.milliseconds for candidate in row.candidates] == [1.0, 2.0, 3.0]
    assert [candidate.block_queries for candidate in row.candidates] == [16, 64, 32]
    assert (row.kernel, row.dtypes, row.head_dims, row.many_queries) == (kernel, ("float32",), (8,), False)
    assert len(lines) == 3


def test_wrong_candidates_are_left_out_and_never_timed(tiny, monkeypatch):
    shares = iter([0.5, 1.5, float("inf")])
    monkeypatch.setattr(tune, "largest_error", lambda kernel, inputs: next(shares))
    lines = []
    row = tune.tune_key("stda_forward", torch.float32, 8, True, DEVICE, 0.1, lambda calls, seconds: 1.0, lines.append)
    assert [candidate.block_queries for candidate in row.candidates] == [32]
    assert sum("WRONG" in line for line in lines) == 2
    monkeypatch.setattr(tune, "largest_error", lambda kernel, inputs: 2.0)
    with pytest.raises(ConfigError, match="no candidate of stda_forward"):
        tune.tune_key("stda_forward", torch.float32, 8, True, DEVICE, 0.1, lambda *_: 1.0, lines.append)


def test_a_candidate_that_does_not_compile_costs_only_itself(tiny, monkeypatch):
    outcomes, lines = iter([RuntimeError("ptxas failed"), 0.5, MemoryError()]), []

    def largest_error(kernel, inputs):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(tune, "largest_error", largest_error)
    row = tune.tune_key("stda_forward", torch.float32, 8, True, DEVICE, 0.1, lambda *_: 1.0, lines.append)
    assert [candidate.block_queries for candidate in row.candidates] == [16]
    assert sum("FAILED" in line for line in lines) == 2 and "ptxas failed" in lines[0]


def test_errors_are_seen(tiny, monkeypatch):
    inputs = tune.make_inputs(tune.layer(queries=3, head_dim=8, small=True), torch.float32, DEVICE, 0)
    assert tune.largest_error("stda_forward", inputs) <= 1
    right = tune.operation
    monkeypatch.setattr(tune, "operation", lambda *a: lambda: tuple(x * 1.001 for x in right(*a)()))
    assert tune.largest_error("stda_forward", inputs) > 100
    monkeypatch.setattr(tune, "operation", lambda *a: lambda: tuple(x * torch.nan for x in right(*a)()))
    assert tune.largest_error("stda_forward", inputs) == float("inf")


def test_measured_rows_stand_first_and_replace_older_ones():
    def row(milliseconds, **keys):
        return Row(kernel="stda_forward", candidates=(Candidate(milliseconds=milliseconds),), **keys)

    old = [row(5.0, architectures=("sm_90",)), row(6.0, architectures=("sm_80",)), row(None)]
    new = [row(1.0, architectures=("sm_90",))]
    assert tune.merge(new, old) == [new[0], old[1], old[2]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path, capsys):
    assert tune.main(["--out", str(tmp_path / "table.json")]) == 2
    assert "error: the tuner measures on a GPU" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


@pytest.mark.gpu
def test_the_command_writes_a_table_that_can_be_used(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    options = ["--kernels", "stda_forward", "--dtypes", "float16", "--seconds", "0.05"]
    assert tune.main(["--out", str(path), *options]) == 0
    monkeypatch.setenv("STNET_LAUNCH_TABLE", str(path))
    arch = tune.architecture(torch.device("cuda", torch.cuda.current_device()))
    found = candidates("stda_forward", arch, torch.float16, 32, 10_000)
    assert all(candidate.milliseconds > 0 for candidate in found)
