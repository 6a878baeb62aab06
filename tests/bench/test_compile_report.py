"""The compile report: its comparison, its cache-line model, its command, and what it says of the default tiles."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.compile_report.__main__ import COMMITTED, main, read_report, to_json
from bench.compile_report.cases import LAYERS, TARGETS, cases, describe
from bench.compile_report.compare import compare, differences, key_of, merge, notes, unsound
from bench.compile_report.locality import gather_lines
from bench.compile_report.measure import lanes_per_row
from stnet.errors import ConfigError
from stnet.kernels.triton.launch_table import Candidate

pytestmark = pytest.mark.timeout(600)  # a busy machine compiles slowly
ROOT = Path(__file__).resolve().parents[2]


def row(**changes) -> dict:
    return {
        "kernel": "stda_forward",
        "layer": "encoder",
        "dtype": "float16",
        "head_dim": 32,
        "candidate": "q32-w1-packed",
        "default": True,
        "target": "sm_90",
        "registers": 128,
        "shared_bytes": 256,
        "stack_bytes": 0,
        "spill_instructions": 0,
        "instructions": 7.0,
        "gathers": {"16": 0.5},
        "reductions": {"F32x4": 1.0},
        "gathered_rows": 4.0,
        "reduced_rows": 4.0,
    } | changes


def report(*rows: dict, triton: str = "3.8.0") -> dict:
    return {"triton": triton, "rows": list(rows), "peers": [{"package": "deformops", "missing": True}]}


def test_equal_and_better_reports_pass():
    old = report(row(), row(candidate="q16-w1-packed", default=False))
    assert compare(copy.deepcopy(old), old) == []
    better = row(instructions=6.0, registers=200, gathers={"32": 0.25}, reductions={"F32x8": 0.5})
    assert compare(report(better, old["rows"][1]), old) == []
    assert compare(report(row(instructions=7.13), old["rows"][1]), old) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instructions": 7.15}, "warp instructions per sample 7.0 -> 7.15"),
        ({"spill_instructions": 3, "registers": 168}, "spill instructions 0 -> 3 (128 -> 168 registers)"),
        ({"stack_bytes": 24}, "bytes of stack 0 -> 24"),
        ({"shared_bytes": 512}, "shared memory 256 -> 512"),
        ({"gathers": {"8": 1.0}}, "narrower gathers"),
        ({"gathers": {"16": 0.4, "4": 0.4}}, "narrower gathers"),
        ({"reductions": {"F32": 4.0}}, "narrower reductions"),
        ({"error": "CompilationError: no"}, "no longer compiles"),
        ({"candidate": "q64-w1-packed"}, "not in the committed report"),
    ],
)
def test_regressions_are_named(change, words):
    found = compare(report(row(**change)), report(row()))
    assert any(words in line for line in found)
    assert all("stda_forward encoder float16 D=32" in line for line in found)


def test_every_difference_is_told_where_reports_must_be_equal():
    old = report(row(), row(target="sm_80"))
    assert differences(copy.deepcopy(old), old) == []
    better = report(row(instructions=6.998, registers=126), row(target="sm_80"), row(target="sm_89"))
    assert differences(better, old) == [f"{key_of(row())}: registers 128 -> 126, instructions 7.0 -> 6.998"]
    assert differences(report(row(error="no")), old) == [f"{key_of(row())}: error None -> no"]


def test_a_removed_candidate_makes_the_committed_report_stale():
    slow = row(candidate="q16-w1-packed", default=False)
    elsewhere = row(target="sm_80", candidate="q8-w1-packed", default=False)
    full = report(row(), slow, elsewhere)
    other = row(candidate="q8-w1-float32", default=False)
    found = compare(report(row(), other), report(row(), slow, elsewhere, other))
    assert found == [f"{key_of(slow)}: no longer a candidate, renew the committed report"]
    assert compare(report(row()), full) == []


def test_static_widths_are_compared_where_there_is_no_count():
    amd = {key: value for key, value in row(target="gfx942").items() if key not in ("instructions", "gathers")}
    old = report(amd | {"static_loads": {"16": 64}, "static_reductions": {}})
    new = report(amd | {"static_loads": {"8": 128}, "static_reductions": {}})
    assert compare(old, old) == []
    assert len(compare(new, old)) == 1


def test_counts_that_miss_the_corners_are_unsound():
    assert unsound(report(row())) == []
    assert len(unsound(report(row(gathered_rows=2.0)))) == 1
    assert len(unsound(report(row(reduced_rows=8.0)))) == 1


def test_a_partial_run_renews_the_rows_it_covers():
    gone = row(candidate="q16-w1-packed", default=False)
    elsewhere = row(target="sm_80")
    old = report(row(), gone, elsewhere)
    old["peers"] = [{"package": "deformops", "version": "3.0.1", "instructions": 28.1}]
    better = row(instructions=6.0)
    everything = report(better, row(candidate="q64-w1-packed", default=False))
    assert {key_of(one) for one in merge(everything, old)["rows"]} == {
        key_of(one) for one in (*everything["rows"], elsewhere)
    }
    defaults_only = merge(report(better), old)
    assert better in defaults_only["rows"]
    assert gone in defaults_only["rows"]
    assert len(defaults_only["rows"]) == 3
    assert defaults_only["peers"] == old["peers"]
    with pytest.raises(ConfigError, match="renew it whole"):
        merge(report(row(), triton="3.9.0"), old)


def test_versions_are_noted():
    assert notes(report(), report()) == []
    assert "3.6.0" in notes(report(triton="3.6.0"), report())[0]


def test_reports_survive_writing(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(to_json(report(row(), row(target="sm_80"))), encoding="utf-8")
    assert read_report(path) == report(row(), row(target="sm_80"))


def test_candidates_are_told_apart():
    assert describe(Candidate()) == "q32-w1-float32"
    assert describe(Candidate(block_queries=16, num_warps=2, arithmetic="packed", maxnreg=96)).startswith(
        "q16-w2-packed-maxnreg96"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_row_is_identified_by_its_key(target):
    found = cases(targets=[target])
    keys = [(case.kernel, case.layer, case.dtype, describe(case.candidate)) for case in found]
    assert len(set(keys)) == len(keys)
    assert {case.kernel for case in found} == {"stda_forward", "stda_backward", "msda_forward", "msda_backward"}
    defaults = cases(targets=[target], defaults_only=True)
    assert all(case.default for case in defaults)
    assert len(defaults) == 18


def test_gathers_cannot_touch_more_lines_than_rows_nor_fewer_than_one():
    for lanes, row_bytes in ((4, 64), (8, 128), (2, 64), (1, 16)):
        for uniform in (False, True):
            lines = gather_lines(
                LAYERS["encoder"], block_queries=32, lanes_per_row=lanes, row_bytes=row_bytes, uniform=uniform
            )
            assert 1 <= lines.per_gather <= 32 // lanes
            assert 0 < lines.per_sample <= 4


def test_a_warp_that_reads_one_row_touches_its_lines():
    for row_bytes, expected in ((64, 1), (128, 1), (256, 2), (512, 4)):
        lines = gather_lines(LAYERS["encoder"], block_queries=32, lanes_per_row=32, row_bytes=row_bytes)
        assert lines.per_gather == expected


def test_tiles_and_nearness_save_lines():
    def per_sample(**how) -> float:
        return gather_lines(LAYERS["encoder"], block_queries=32, lanes_per_row=4, row_bytes=64, **how).per_sample

    assert per_sample() < per_sample(ordered=False) < per_sample(uniform=True)


def test_lanes_follow_from_the_layout_of_the_gathers():
    text = """
#blocked = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [8, 4], warpsPerCTA = [1, 1], order = [1, 0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1], threadsPerWarp = [32], warpsPerCTA = [1], order = [0]}>
    %3 = tt.load %1 : tensor<32x!tt.ptr<f32>, #blocked1> loc(#loc5)
    %4 = tt.load %2, %mask, %other : tensor<32x32x!tt.ptr<f16>, #blocked> loc(#loc6)
"""
    assert lanes_per_row(text, "float16", 32) == 4
    assert lanes_per_row(text, "float32", 32) is None
    assert lanes_per_row(text, "float16", 64) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target", "sm_70"],
        ["--kernel", "softmax"],
        ["--head-dim", "31"],
        ["--no-such-option"],
    ],
)
def test_wrong_options_are_explained(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: python -m bench.compile_report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--check", "absent.json"], "absent.json: cannot read the report"),
        (["--check", "broken.json"], "broken.json: not a compile report"),
        (["--peers", "absent"], "no deformops in absent"),
        (["--kernel", "msda_forward", "--layer", "decoder"], "no kernel serves these layers"),
    ],
)
def test_wrong_input_is_explained(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"rows": [{}]}')
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert words in printed.err


def run(folder: Path, *arguments: str) -> tuple[dict, int]:
    """The command in a process that does not interpret: its report and its exit status."""
    path = folder / "report.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.compile_report", *arguments, "--json", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert path.is_file(), done.stderr
    assert json.loads(done.stdout) == json.loads(path.read_text())
    return read_report(path), done.returncode


@pytest.fixture(scope="module")
def defaults(tmp_path_factory) -> dict:
    """Default tiles in float16 on the encoder's shapes, for the two targets every change is checked on."""
    arguments = ["--defaults", "--dtype", "float16", "--layer", "encoder", "classic"]
    report, status = run(tmp_path_factory.mktemp("defaults"), *arguments, "--target", "sm_90", "gfx942")
    assert status == 0
    return report


@pytest.fixture(scope="module")
def forward(tmp_path_factory) -> dict:
    """All forward candidates on the encoder's shapes, for sm_90."""
    arguments = ["--kernel", "stda_forward", "--layer", "encoder", "--dtype", "float16", "float32"]
    report, status = run(tmp_path_factory.mktemp("forward"), *arguments, "--target", "sm_90")
    assert status == 0
    return report


def committed_by(triton: str) -> dict:
    """The committed report, where this version of Triton compiled it: others allocate registers differently."""
    committed = read_report(COMMITTED)
    if committed["triton"] != triton:
        pytest.skip(f"the committed report was compiled by Triton {committed['triton']}")
    return committed


def test_default_tiles_compile_without_spills(defaults):
    committed_by(defaults["triton"])
    assert len(defaults["rows"]) == 8
    for compiled in defaults["rows"]:
        assert compiled["spill_instructions"] == compiled["stack_bytes"] == 0, key_of(compiled)


def test_default_tiles_gather_by_16_bytes(defaults):
    for compiled in defaults["rows"]:
        if compiled["target"] == "sm_90":
            assert compiled["gathers"] == {"16": 0.5}, key_of(compiled)
            assert compiled["gathered_rows"] == 4
            assert compiled["lanes_per_row"] >= 4
        else:
            assert "16" in compiled["static_loads"], key_of(compiled)


def test_default_tiles_reduce_four_float32_at_once(defaults):
    backward = [
        compiled
        for compiled in defaults["rows"]
        if compiled["kernel"].endswith("backward") and compiled["target"] == "sm_90"
    ]
    assert len(backward) == 2
    for compiled in backward:
        assert compiled["reductions"]["F32x4"] == pytest.approx(1, rel=0.02), key_of(compiled)


def test_instructions_of_the_backward_kernel(defaults):
    (compiled,) = [one for one in defaults["rows"] if one["kernel"] == "stda_backward" and one["target"] == "sm_90"]
    assert compiled["instructions"] <= 22


@pytest.mark.parametrize(
    ("dtype", "arithmetics", "limit"),
    [
        ("float16", {"float32"}, 12),
        ("float16", {"packed", "matrix"}, 7.5),  # both interpolate in packed half precision
        ("float32", {"float32"}, 9.5),
    ],
)
def test_instructions_of_the_forward_kernel(forward, dtype, arithmetics, limit):
    counts = [
        one["instructions"]
        for one in forward["rows"]
        if one["dtype"] == dtype and one["candidate"].split("-")[2] in arithmetics and one["spill_instructions"] == 0
    ]
    assert counts
    assert min(counts) <= limit


def test_forward_counts_are_sound(forward):
    for compiled in forward["rows"]:
        packed = compiled["candidate"].split("-")[2] in ("packed", "matrix") and compiled["dtype"] == "float16"
        assert compiled["gathered_rows"] == 4, key_of(compiled)
        assert sum(compiled["classes"].values()) == pytest.approx(compiled["instructions"], abs=0.02)
        if packed:
            assert compiled["classes"]["half"] == pytest.approx(2, abs=0.05), key_of(compiled)


def test_no_regression_against_the_committed_report(defaults, forward):
    committed = committed_by(defaults["triton"])
    assert compare(defaults, committed) == []
    assert compare(forward, committed) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_every_candidate_compiles_for_every_target(target, tmp_path):
    report, status = run(tmp_path, "--target", target)
    assert status == 0
    for compiled in report["rows"]:
        assert "error" not in compiled, key_of(compiled)
        if compiled["default"]:
            assert compiled["spill_instructions"] == compiled["stack_bytes"] == 0, key_of(compiled)
        if target in ("sm_90", "sm_100", "sm_120") and compiled["kernel"].endswith("backward"):
            assert "F32x4" in compiled["reductions"], key_of(compiled)
        if target.startswith("sm_"):
            assert set(compiled["gathers"]) == {"16"}, key_of(compiled)
