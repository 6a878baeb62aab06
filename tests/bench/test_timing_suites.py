"""The timing suites: what is wrong or missing gets no time, what is right gets a complete record."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.conftest import pytest_benchmark_generate_machine_info, pytest_collection_modifyitems
from bench.timing import limits
from bench.timing.stopwatch import WrongResultError, quantiles, relative_error, require_correct

ROOT = Path(__file__).resolve().parents[2]
# Turns the reference implementation (not what results are checked against) into one that is off by a tenth.
WRONG = """
from bench.timing import baselines
right = baselines._stnet_stda
baselines._stnet_stda = lambda backend, *a: right(backend, *a) * (1.1 if backend == "reference" else 1.0)
"""


@pytest.mark.parametrize(
    "output",
    [torch.full((4,), 1.1), torch.tensor([1.0, 1.0, 1.0, torch.nan]), torch.ones(3)],
    ids=["off", "nan", "shape"],
)
def test_wrong_results_are_refused(output):
    with pytest.raises(WrongResultError):
        require_correct(output, torch.ones(4), 0.01)


def test_the_error_is_relative_to_the_reference():
    reference = torch.randn(1000)
    assert relative_error(1.001 * reference, reference) == pytest.approx(1e-3, rel=0.01)
    assert require_correct(1.001 * reference, reference, 0.01) == pytest.approx(1e-3, rel=0.01)


def test_quantiles_of_a_known_sample():
    assert quantiles([float(i) for i in range(11)]) == pytest.approx([2.0, 5.0, 8.0])


def test_what_says_most_is_measured_first():
    """Of both operators what is near the queries, before what is spread and before large batches."""
    options = {"bench_device": "cpu", "bench_dtypes": "float16,float32", "bench_compiled": True}
    config = SimpleNamespace(getoption=options.get)
    cases = itertools.product(
        ("stda", "msda"), (1, 8), ("float32", "float16"), ("uniform", "near"), ("stnet", "compiled")
    )
    items = [
        SimpleNamespace(
            name=operator,
            path=Path("bench_operators.py"),
            callspec=SimpleNamespace(
                params={"batch": batch, "dtype": dtype, "positions": positions, "implementation": implementation}
            ),
        )
        for operator, batch, dtype, positions, implementation in cases
    ]
    pytest_collection_modifyitems(config, items)
    first = [(item.name, *item.callspec.params.values()) for item in items[:5]]
    assert first == [
        ("stda", 1, "float16", "near", "stnet"),
        ("msda", 1, "float16", "near", "stnet"),
        ("stda", 1, "float16", "uniform", "stnet"),
        ("msda", 1, "float16", "uniform", "stnet"),
        ("stda", 8, "float16", "near", "stnet"),
    ]


def test_times_outlive_a_gpu_that_became_unusable(monkeypatch):
    """The machine is described when all is measured; an error there would leave no result file."""

    def fail(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(limits, "measure_limits", fail)
    config = SimpleNamespace(getoption={"bench_device": "cpu"}.get)
    described = pytest_benchmark_generate_machine_info(config)
    assert described["limits"] == {} and described["cores"] >= 1


def test_a_wrong_implementation_gets_no_time(tmp_path):
    (tmp_path / "wrong_reference.py").write_text(WRONG)
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "bench/timing/bench_operators.py", "-p", "wrong_reference"]
    command += ["-k", "test_stda and decoder and forward and near and not transformers", "--bench-device=cpu"]
    command += ["--bench-size=smoke", "--bench-budget=0.01", f"--benchmark-json={out}", "-p", "no:cacheprovider"]
    # Under the variables of a distributed test run, pytest-benchmark would time nothing.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    results = json.loads(out.read_text())
    timed = {entry["extra_info"]["implementation"]: entry["extra_info"] for entry in results["benchmarks"]}
    assert "reference" not in timed
    assert {"stnet", "published over grid_sample"} <= set(timed)
    assert timed["stnet"]["error"] < 1e-4
    assert len(timed["stnet"]["ratio"]) == 3
    failed = [entry for entry in results["without_time"] if entry["outcome"] == "failed"]
    assert [entry["implementation"] for entry in failed] == ["reference"]
    assert "relative error 0.1 against" in failed[0]["reason"]
    machine = results["machine_info"]
    assert machine["limits"]["copy"] > 0
    assert "node" not in machine


def test_results_serve_the_tools_of_pytest_benchmark(tmp_path):
    """`pytest bench -k small`, saving, `--benchmark-compare`, histograms, and `pytest-benchmark compare`."""
    pytest.importorskip("pygal")
    storage = f"--benchmark-storage=file://{tmp_path}"
    command = [sys.executable, "-m", "pytest", "bench/timing/bench_operators.py", "--bench-size=smoke", storage]
    command += ["-k", "smoke and test_stda and decoder and forward and near and published", "--bench-device=cpu"]
    command += ["--bench-budget=0.01", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ROOT)

    def run(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=tmp_path.parent, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command[3] = str(ROOT / command[3])
    run(*command, "--benchmark-autosave")
    compared = run(*command, "--benchmark-compare", f"--benchmark-histogram={tmp_path / 'times'}")
    assert "published" in compared
    assert list(tmp_path.glob("times*.svg"))
    assert "published" in run(sys.executable, "-m", "pytest_benchmark", storage.replace("benchmark-", ""), "compare")
