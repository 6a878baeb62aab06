"""The GPU suite's bookkeeping: results on disk after every stage, budgets, resumption; and its flow on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from bench.gpu_suite import __main__ as gpu_suite
from bench.gpu_suite.processes import Ended, run_logged
from bench.gpu_suite.stages import (
    SETTLING_SECONDS,
    STAGES,
    Context,
    Stage,
    StageError,
    add_pictures,
    benchmarks,
    gpu_tests,
    outcomes_in,
    seconds_of,
    training,
    tuning,
)
from bench.report.results import GPU_FILE
from stnet.kernels import tune_command

ROOT = Path(__file__).resolve().parents[2]


def _suite(monkeypatch, out: Path, stages: list[Stage], *arguments: str) -> tuple[int, dict]:
    monkeypatch.setattr(gpu_suite, "STAGES", tuple(stages))
    status = gpu_suite.main(["--output", str(out), "--device", "cpu", *arguments])
    return status, json.loads((out / GPU_FILE).read_text())["stages"]


def _stage(name: str, run=lambda context, seconds: {"note": "ran"}, **settings) -> Stage:
    return Stage(name=name, **{"share": 1, "least": 0, "run": run, **settings})


def test_a_stage_that_fails_keeps_its_result_and_lets_others_run(monkeypatch, tmp_path):
    def fails(context, seconds):
        raise StageError("two tests failed", {"counts": {"FAILED": 2}})

    def breaks(context, seconds):
        raise KeyError("no such rate")

    status, stages = _suite(monkeypatch, tmp_path, [_stage("a", fails), _stage("b", breaks), _stage("c")])
    assert status == 1
    assert stages["a"]["status"] == "failed"
    assert stages["a"]["reason"] == "two tests failed"
    assert stages["a"]["result"] == {"counts": {"FAILED": 2}}
    assert stages["b"]["reason"] == "KeyError: 'no such rate'"
    assert stages["c"]["status"] == "done"


def test_stages_share_the_time_that_is_left(monkeypatch, tmp_path):
    given = {}

    def note(name):
        return lambda context, seconds: given.setdefault(name, seconds) and {}

    stages = [_stage("a", note("a"), share=1), _stage("b", note("b"), share=3)]
    status, _ = _suite(monkeypatch, tmp_path, stages, "--minutes", "2")
    left = 120 - gpu_suite.RESERVED_SECONDS
    assert status == 0
    assert given["a"] == pytest.approx(left / 4, abs=2)
    assert given["b"] == pytest.approx(left, abs=2)  # what the first did not use is the second's


def test_spare_stages_get_what_the_others_do_not_need():
    first, second, spare = _stage("a", share=60), _stage("b", share=30), _stage("c", share=30, spare=True)
    assert seconds_of(first, [second, spare], 45) == 30  # too little: in proportion, and nothing is spared
    assert seconds_of(first, [second, spare], 100) == 60
    assert seconds_of(second, [spare], 40) == 30
    assert seconds_of(spare, [], 10) == 10
    assert seconds_of(first, [second, spare], 240) == 120  # ample: in proportion


def test_the_stages_that_count_fit_into_seven_and_a_half_minutes():
    left = 7.5 * 60 - gpu_suite.RESERVED_SECONDS
    for number, stage in enumerate(STAGES):
        if not stage.spare:
            seconds = seconds_of(stage, STAGES[number + 1 :], left)
            assert seconds >= 0.95 * stage.share
            left -= seconds


def test_a_stage_without_time_is_skipped_and_says_so(monkeypatch, tmp_path):
    status, stages = _suite(monkeypatch, tmp_path, [_stage("a", least=100), _stage("b")], "--minutes", "1")
    assert status == 1
    assert stages["a"]["status"] == "skipped"
    assert "s left" in stages["a"]["reason"]
    assert stages["b"]["status"] == "done"


def test_resume_runs_what_is_not_done(monkeypatch, tmp_path):
    ran = []
    broken = [True]

    def flaky(context, seconds):
        ran.append("b")
        if broken[0]:
            raise StageError("not yet")
        return {"note": "ran"}

    stages = [_stage("a", lambda c, s: ran.append("a") or {}), _stage("b", flaky)]
    assert _suite(monkeypatch, tmp_path, stages)[0] == 1
    broken[0] = False
    status, results = _suite(monkeypatch, tmp_path, stages, "--resume")
    assert status == 0
    assert ran == ["a", "b", "b"]
    assert {stage["status"] for stage in results.values()} == {"done"}


def test_what_is_expected_is_written_before_anything_is_measured(monkeypatch, tmp_path):
    expected = gpu_suite.experiments.predictions()
    at_first = _suite_file(monkeypatch, tmp_path, "a")
    assert at_first["predictions"] == expected and len(expected) >= 5
    monkeypatch.setattr(gpu_suite.experiments, "predictions", list)
    assert _suite_file(monkeypatch, tmp_path, "b", "--resume")["predictions"] == expected


def _suite_file(monkeypatch, out: Path, name: str, *arguments: str) -> dict:
    """The result file as the stage of a name, run alone, leaves it."""
    _suite(monkeypatch, out, [_stage("a"), _stage("b")], "--stages", name, *arguments)
    return json.loads((out / GPU_FILE).read_text())


def test_named_stages_run_again(monkeypatch, tmp_path):
    ran = []
    stages = [_stage(name, lambda c, s, name=name: ran.append(name) or {}) for name in "abc"]
    _suite(monkeypatch, tmp_path, stages)
    _suite(monkeypatch, tmp_path, stages, "--resume", "--stages", "c,b")
    assert ran == ["a", "b", "c", "b", "c"]


def _start(monkeypatch, block: Path, out: Path, *arguments: str) -> BaseProcess:
    """The suite in a process of its own; its second stage waits for as long as the file `block` is there."""

    def wait(context, seconds):
        while block.exists():
            time.sleep(0.02)
        return {"note": "over"}

    stages = (
        _stage("environment", lambda context, seconds: {"device": "cpu", "drawn": time.time()}),
        _stage("waiting", wait),
        _stage("last"),
    )
    monkeypatch.setattr(gpu_suite, "STAGES", stages)
    command = ["--output", str(out), "--device", "cpu", *arguments]
    process = get_context("fork").Process(target=lambda: sys.exit(gpu_suite.main(command)))
    process.start()
    return process


def _status(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


def _wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked-to-stop"])
def test_stopped_in_a_stage_and_resumed_gives_the_same_report(monkeypatch, tmp_path, number):
    block, out, undisturbed = tmp_path / "block", tmp_path / "out", tmp_path / "undisturbed"
    block.touch()
    process = _start(monkeypatch, block, out)
    _wait_for((out / GPU_FILE).exists)
    os.kill(process.pid, number)
    assert _status(process) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    before = json.loads((out / GPU_FILE).read_text())["stages"]
    assert list(before) == ["environment"] + (["waiting"] if number == signal.SIGTERM else [])
    assert before.get("waiting", {}).get("reason", "interrupted") == "interrupted"

    block.unlink()
    assert _status(_start(monkeypatch, block, out, "--resume")) == 0
    resumed = json.loads((out / GPU_FILE).read_text())["stages"]
    assert resumed["environment"] == before["environment"]
    assert _status(_start(monkeypatch, block, undisturbed)) == 0
    whole = json.loads((undisturbed / GPU_FILE).read_text())["stages"]
    assert list(resumed) == list(whole)
    assert all(resumed[name]["status"] == whole[name]["status"] == "done" for name in whole)
    assert sorted(path.name for path in out.iterdir()) == [GPU_FILE, gpu_suite.LOG_FILE]


def test_told_to_stop_the_stage_under_way_keeps_what_it_has(monkeypatch, tmp_path):
    """As `timeout` stops it: two signals at once."""
    program = """
import time
print("began", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("saved", flush=True)
"""

    def work(context, seconds):
        ended = context.run("-c", program, seconds=seconds)
        if ended.out_of_time:
            raise StageError("time ran out", {"lines": ended.output.split()})
        return {}

    monkeypatch.setattr(gpu_suite, "STAGES", (_stage("working", work), _stage("last")))
    command = ["--output", str(tmp_path), "--device", "cpu"]
    process = get_context("fork").Process(target=lambda: sys.exit(gpu_suite.main(command)))
    process.start()
    log = tmp_path / gpu_suite.LOG_FILE
    _wait_for(lambda: log.exists() and "began" in log.read_text().splitlines())
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    assert _status(process) == 130
    stages = json.loads((tmp_path / GPU_FILE).read_text())["stages"]
    assert list(stages) == ["working"]
    assert (stages["working"]["status"], stages["working"]["reason"]) == ("failed", "interrupted (time ran out)")
    assert stages["working"]["result"] == {"lines": ["began", "saved"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "tuning,nonsense"], "'nonsense' is none of environment"),
        (["--device", "cuda"], "finds no GPU"),
    ],
)
def test_wrong_use_is_explained(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_suite.main(["--output", str(tmp_path / "out"), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"settings": {"device": "cpu", "size": "smoke"}, "stages": {}}, [], "add --resume"),
        ({"settings": {"device": "cuda", "size": "paper"}, "stages": {}}, ["--resume"], "made with device cuda"),
        ({"stages": 3}, ["--resume"], "no result file"),
    ],
)
def test_earlier_results_are_not_overwritten(tmp_path, capsys, content, arguments, message):
    (tmp_path / GPU_FILE).write_text(json.dumps(content))
    assert gpu_suite.main(["--output", str(tmp_path), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert json.loads((tmp_path / GPU_FILE).read_text()) == content


def test_pictures_of_an_earlier_stage_stay_in_the_archive(tmp_path):
    archive, picture = tmp_path / "pictures.zip", tmp_path / "p.png"
    for name, content in (("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3")):
        picture.write_bytes(content)
        add_pictures(archive, {name: picture})
    with zipfile.ZipFile(archive) as stored:
        assert {name: stored.read(name) for name in stored.namelist()} == {"a.png": b"3", "b.png": b"2"}


def test_a_command_out_of_time_may_still_write_what_it_has(tmp_path):
    program = """
import time
print("began", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("results written", flush=True)
"""
    with (tmp_path / "log").open("ab") as log:
        ended = run_logged([sys.executable, "-c", program], log, 3.0, folder=tmp_path)
    assert ended.out_of_time
    assert ended.output.split("\n")[:2] == ["began", "results written"]


PLAIN = """tests/a.py::test_one PASSED                 [ 33%]
tests/a.py::test_two[x-1 y] FAILED           [ 66%]
tests/b.py::test_three SKIPPED (needs two GPUs) [100%]
"""
PARALLEL = """tests/a.py::test_one
tests/a.py::test_two[x-1 y]
[gw1] [ 33%] PASSED tests/a.py::test_one
[gw0] [ 66%] FAILED tests/a.py::test_two[x-1 y]
tests/b.py::test_three
[gw0] [100%] SKIPPED tests/b.py::test_three
""".replace("\n", " \n")  # with a space at the ends, as pytest writes it


@pytest.mark.parametrize("output", [PLAIN, PARALLEL], ids=["one-process", "several"])
def test_outcomes_are_read_from_what_pytest_prints(output):
    assert outcomes_in(output) == {
        "tests/a.py::test_one": "PASSED",
        "tests/a.py::test_two[x-1 y]": "FAILED",
        "tests/b.py::test_three": "SKIPPED",
    }


def _context(monkeypatch, tmp_path, ended: Ended) -> tuple[Context, list[float]]:
    """A context whose commands end at once as `ended` says, and the seconds they were given."""
    given = []

    def run(self, *command, seconds, threads=None):
        given.append(seconds)
        for option in command:
            if option.startswith("--benchmark-json="):
                Path(option.partition("=")[2]).write_text(json.dumps({"benchmarks": [{}, {}], "without_time": []}))
        return ended

    monkeypatch.setattr(Context, "run", run)
    paths = {"scratch": tmp_path, "pictures": tmp_path / "pictures.zip"}
    return Context(device="cpu", size="smoke", dtypes="", data=None, training="", log=None, **paths), given


def _recorded(monkeypatch) -> list[str]:
    """The arguments of the commands that a context runs from now on."""
    run, command = Context.run, []
    monkeypatch.setattr(
        Context, "run", lambda self, *given, **limits: command.extend(given) or run(self, *given, **limits)
    )
    return command


SLOWEST = "12.50s call     tests/a.py::test_two[x-1 y]"


def test_failed_gpu_tests_are_named(monkeypatch, tmp_path):
    output = f"{PARALLEL}===== slowest 20 durations =====\n{SLOWEST}\n"
    context, _ = _context(monkeypatch, tmp_path, Ended(status=1, out_of_time=False, output=output))
    with pytest.raises(StageError, match="1 tests failed") as failed:
        gpu_tests("", decisive=False)(replace(context, device="cuda"), 60.0)
    assert failed.value.result["failed"] == ["tests/a.py::test_two[x-1 y]"]
    assert failed.value.result["counts"] == {"FAILED": 1, "PASSED": 1, "SKIPPED": 1}
    assert failed.value.result["slowest"] == [SLOWEST]


def test_processes_import_the_files_with_gpu_tests_alone(monkeypatch, tmp_path):
    context, _ = _context(
        monkeypatch, tmp_path, Ended(status=0, out_of_time=False, output=PLAIN.replace("FAIL", "PASS"))
    )
    command = _recorded(monkeypatch)
    gpu_tests("", decisive=True)(context, 60.0)
    named = {argument for argument in command if argument.startswith("tests")}
    marked = {path for path in (ROOT / "tests").rglob("*.py") if "mark.gpu" in path.read_text(encoding="utf-8")}
    assert named == {str(path.relative_to(ROOT)) for path in marked if path != Path(__file__)}
    assert "tests/kernels/test_gpu.py" in named


def test_the_tuner_compiles_on_most_of_the_cores(monkeypatch, tmp_path):
    """Half of its time is for compiling, and what is compiled by then is measured: nothing else runs meanwhile."""
    context, _ = _context(monkeypatch, tmp_path, Ended(status=0, out_of_time=False, output=""))
    command = _recorded(monkeypatch)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    tuning(replace(context, device="cuda"), 75.0)
    assert tune_command._parser("tune").parse_args(command[2:]).processes == 12


def test_only_decisive_tests_have_to_end_in_time(monkeypatch, tmp_path):
    output = PARALLEL.replace("FAILED", "PASSED")
    context, _ = _context(monkeypatch, tmp_path, Ended(status=2, out_of_time=True, output=output))
    context = replace(context, device="cuda")
    assert gpu_tests("", decisive=False)(context, 60.0)["note"].startswith("stopped when its time was over, after 3")
    with pytest.raises(StageError, match="time ran out after 3 tests"):
        gpu_tests("", decisive=True)(context, 60.0)
    context, _ = _context(monkeypatch, tmp_path, Ended(status=2, out_of_time=True, output=PARALLEL))
    with pytest.raises(StageError, match="time ran out after 3 tests"):
        gpu_tests("", decisive=False)(replace(context, device="cuda"), 60.0)


def test_benchmarks_cut_short_keep_their_times(monkeypatch, tmp_path):
    context, _ = _context(monkeypatch, tmp_path, Ended(status=2, out_of_time=True, output=""))
    with pytest.raises(StageError, match="time ran out after 2 benchmarks") as stopped:
        benchmarks("bench_operators")(context, 60.0)
    assert len(stopped.value.result["benchmarks"]) == 2


def test_making_phantoms_counts_as_training_time(monkeypatch, tmp_path):
    context, given = _context(monkeypatch, tmp_path, Ended(status=0, out_of_time=False, output=""))
    monkeypatch.setattr("bench.gpu_suite.stages._phantoms", lambda context, seconds: time.sleep(0.3))
    training(context, 60.0)
    assert given[0] <= 60.0 - SETTLING_SECONDS - 0.3


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_flow_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "bench.gpu_suite", "--output", str(tmp_path), "--device", "cpu", "--minutes", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    results = json.loads((tmp_path / GPU_FILE).read_text())["stages"]
    assert {name: stage["status"] for name, stage in results.items()} == {s.name: "done" for s in STAGES}, done.stdout
    assert done.returncode == 0
    assert "target, one H100" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [GPU_FILE, "pictures.zip", "suite.log"]
    assert results["training"]["result"]["steps"] >= 1
