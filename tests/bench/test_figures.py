"""Reading results, fits, tables, the report, and README figures."""

import json
from functools import partial
from pathlib import Path

import pytest

from bench.report import __main__ as report
from bench.report import (
    conditions,
    experiments,
    figures,
    lesions,
    machine_code,
    processor,
    shipped_model,
    summary,
    tables,
)
from bench.report.results import CPU_FILE, GPU_FILE, Run, load, load_folder
from stnet.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "date": "2026-01-01 00:00 UTC",
    "device": "cpu",
    "cpu": "a processor",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "python": "3.12",
    "versions": {"torch": "2.11"},
    "commit": "abc",
    "limits": {"copy": 10e9, "matmul_float32": 100e9},
    "missing": {"mmcv": "mmcv: ModuleNotFoundError"},
}
GPU = {"name": "H100", "memory_gib": 80.0, "multiprocessors": 132, "capability": "9.0", "cuda": "13.0"}


def _entry(seconds: float, **info) -> dict:
    stats = {"min": seconds, "q1": seconds, "median": seconds, "q3": seconds, "max": seconds, "rounds": 5}
    return {"name": "a", "group": "g", "extra_info": info, "stats": stats}


def _operator(implementation: str, seconds: float, **info) -> dict:
    case = {"suite": "operators", "operator": "stda", "layer": "encoder", "positions": "near", "dtype": "float16"}
    work = {"compulsory": 10**7, "gathered": 10**8, "flops": 10**8}
    case |= {"batch": 1, "direction": "forward", "error": 1e-6, "work": work}
    return _entry(seconds, implementation=implementation, **{**case, **info})


def _growth(axis: str, amount: float, seconds: float) -> dict:
    return _entry(seconds, suite="growth", implementation="stnet", axis=axis, amount=amount, dtype="float32")


def _inference(implementation: str, mode: str, seconds: float, frames: int, **more) -> dict:
    info = {"suite": "inference", "mode": mode, "dtype": "float16", "batch": 1, "frames": frames}
    return _entry(seconds, implementation=implementation, **info, **more)


ENTRIES = [
    _operator("published over grid_sample", 0.010),
    _operator("stnet", 0.002, baseline="published over grid_sample", ratio=[3.0, 4.0, 5.0]),
    _inference("published over grid_sample", "single frame", 1.0, 1),
    _inference("stnet", "single frame", 0.5, 1),
    _inference("stnet", "encoder shuffle", 0.6, 3),
    *(_growth("frames of the video", n, 0.5 + 0.25 * n) for n in (4, 8, 16)),
]


def _write(folder: Path, machine: dict = MACHINE, entries=ENTRIES) -> Path:
    skipped = {"benchmark": "test_stda[x]", "outcome": "failed", "reason": "wrong: relative error | 0.5"}
    content = {"machine_info": machine, "benchmarks": entries, "without_time": [skipped]}
    (folder / CPU_FILE).write_text(json.dumps(content))
    return folder


def _write_gpu(folder: Path, entries=ENTRIES) -> Path:
    machine = {**MACHINE, "device": "cuda", "gpu": GPU, "limits": {**MACHINE["limits"], "l1": 29e12}}
    part = {"machine_info": machine, "benchmarks": entries, "without_time": []}
    done = {"status": "done", "seconds": 1.0}
    stages = {"environment": {**done, "result": machine}, "operators": {**done, "result": part}}
    (folder / GPU_FILE).write_text(json.dumps({"settings": {}, "stages": stages}))
    return folder


@pytest.fixture
def run(tmp_path) -> Run:
    return load(_write(tmp_path) / CPU_FILE)


def test_a_fit_recovers_a_line(run):
    line = tables.fit(run.select(suite="growth"))
    assert line["slope"] == pytest.approx(0.25)
    assert line["intercept"] == pytest.approx(0.5)
    assert line["r2"] == pytest.approx(1.0)
    assert max(map(abs, line["residuals"])) < 1e-9


def test_a_fit_through_sizes_timed_in_turn_does_not_see_a_slow_spell(tmp_path):
    points = [_growth("frames of the video", n, 0.1 * n) for n in (1, 2, 3)]
    for point, ratio in zip(points[1:], (1 / 2, 1 / 3), strict=True):
        point["stats"]["median"] *= 9  # the machine was busy
        point["extra_info"]["ratio"] = [ratio, ratio, ratio]
    line = tables.fit(load(_write(tmp_path, entries=points) / CPU_FILE).select(suite="growth"))
    assert line["slope"] == pytest.approx(0.1)
    assert max(map(abs, line["residuals"])) < 1e-9


def test_a_fit_shows_what_is_not_linear(tmp_path):
    points = [_growth("frames of the video", n, n * n) for n in (1, 2, 3, 4)]
    line = tables.fit(load(_write(tmp_path, entries=points) / CPU_FILE).select(suite="growth"))
    assert max(map(abs, line["residuals"])) > 0.1
    assert line["r2"] < 0.99


def test_ratios_taken_in_turn_are_preferred_to_those_of_medians(run):
    own, baseline = run.find(implementation="stnet", suite="operators"), run.find(suite="operators")
    assert tables.speedup(own, baseline) == 4.0
    assert tables.speedup(baseline, baseline) == 1.0


def test_device_time_is_preferred_to_wall_time(tmp_path):
    entries = [_operator("stnet", 0.01, device_cold=0.002), _operator("published over grid_sample", 0.006)]
    run = load(_write(tmp_path, entries=entries) / CPU_FILE)
    assert run.measurements[0].seconds == 0.002
    assert tables.speedup(*run.measurements) == pytest.approx(3.0)


def test_gains_of_modes_come_from_their_common_baseline(tmp_path):
    turns = {"baseline": "published over grid_sample, single frame"}
    entries = [
        _inference("published over grid_sample", "single frame", 9.0, 1),
        _inference("stnet", "single frame", 0.5, 1, ratio=[1.0, 2.0, 3.0], **turns),
        _inference("stnet", "encoder shuffle", 0.4, 3, ratio=[1.0, 1.8, 3.0], **turns),
    ]
    published, single, shuffled = load(_write(tmp_path, entries=entries) / CPU_FILE).measurements
    assert tables.rate_gain(single, published) == pytest.approx(2.0)
    assert tables.rate_gain(shuffled, published) == pytest.approx(5.4)
    assert tables.rate_gain(shuffled, single) == pytest.approx(2.7)


def test_fractions_of_limits(run):
    reached = tables.fractions(run, run.find(implementation="stnet", suite="operators"))
    assert reached == {"copy": pytest.approx(0.5), "arithmetic": pytest.approx(0.5)}


def test_report_of_a_cpu_says_what_is_unconfirmed_and_missing(tmp_path):
    assert report.main(["--results", str(_write(tmp_path))]) == 0
    text = (tmp_path / report.REPORT_FILE).read_text()
    assert text.count("unconfirmed on a GPU") == len(summary.TARGETS) + 1
    assert "mmcv: ModuleNotFoundError" in text
    assert "wrong: relative error / 0.5" in text
    assert "| 4x |" in text
    assert "commit abc" in text
    assert (tmp_path / "cpu_growth.png").stat().st_size > 1000


@pytest.mark.parametrize("classic", ["Deformable DETR CUDA", "torch-ms-deform-attn"])
def test_report_of_a_gpu_compares_with_the_targets(tmp_path, classic):
    entries = [*ENTRIES, _operator(f"published over {classic}", 0.012)]
    run = load(_write_gpu(tmp_path, entries) / GPU_FILE)
    rows = summary.targets_table([run]).splitlines()
    assert "| 2 ms, missed |" in rows[2]
    assert "| 6x, met |" in rows[3]
    assert "unconfirmed" in rows[4]
    shuffle = next(row for row in rows if "encoder shuffle" in row)
    assert "| 2.5x, met |" in shuffle


def test_every_gpu_has_its_column(tmp_path):
    folder = _write_gpu(tmp_path)
    other = json.loads((folder / GPU_FILE).read_text())
    other["stages"]["environment"]["result"]["gpu"]["name"] = "Other GPU"
    (folder / "gpu_suite_other.json").write_text(json.dumps(other))
    runs = load_folder(folder)
    first = runs[0].machine["gpu"]["name"]
    assert summary.targets_table(runs).startswith(f"| target, one H100 | {first} | Other GPU |")


def test_a_gpu_run_whose_own_training_step_failed_still_has_its_table(tmp_path):
    published = _entry(
        1.0, suite="training", implementation="published over grid_sample", dtype="bfloat16", peak_bytes=9
    )
    run = load(_write_gpu(tmp_path, [*ENTRIES, published]) / GPU_FILE)
    row = next(row for row in summary.targets_table([run]).splitlines() if "training step" in row)
    assert "unconfirmed" in row


def test_experiments_are_compared_with_what_was_predicted_before(tmp_path):
    entries = [*ENTRIES, _operator("stnet, values by heads", 0.0022)]
    path = _write_gpu(tmp_path, entries) / GPU_FILE
    content = json.loads(path.read_text())
    tuned = [
        {"block_queries": 16, "heads_first": True, "milliseconds": 2.7},
        {"block_queries": 16, "milliseconds": 3.0},
        {"block_queries": 8, "milliseconds": 3.1},
    ]
    key = {"kernel": "stda_backward", "dtypes": ["bfloat16"], "head_dims": [32], "many_queries": True}
    table = {"rows": [{**key, "candidates": tuned}]}
    content["stages"]["tuning"] = {"status": "done", "seconds": 1.0, "result": {"lines": [], "table": table}}
    content["predictions"] = [*experiments.predictions(), {"change": "forgotten", "predicted": [1, 2]}]
    content["predictions"][0]["predicted"] = [0.75, 0.8]  # as the run was begun with, whatever is expected by now
    path.write_text(json.dumps(content))
    rows = [line.split(" | ")[1:] for line in experiments.experiments_table(load(path)).splitlines()[2:]]
    assert rows[0] == ["0.75 to 0.8", "1.10 |"]
    assert rows[-1] == ["1 to 2", "not measured |"]
    assert [row for row in rows[1:] if row[1] != "not measured |"] == [["0.85 to 1", "0.90 |"]]
    assert report.main(["--results", str(tmp_path)]) == 0
    assert "### Experiments" in (tmp_path / report.REPORT_FILE).read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmarks": 3}', '{"stages": 5}'])
def test_a_damaged_result_file_is_named(tmp_path, content):
    (tmp_path / CPU_FILE).write_text(content)
    with pytest.raises(DataError, match=CPU_FILE):
        load(tmp_path / CPU_FILE)


def test_report_without_results_is_an_error(tmp_path, capsys):
    assert report.main(["--results", str(tmp_path)]) == 2
    assert "holds neither" in capsys.readouterr().err


README = "# Title\n\n<!-- figures:{} -->\nold\n<!-- /figures -->\n\ntext\n"


@pytest.mark.parametrize("name", [*figures.BLOCKS, figures.TARGETS])
def test_filled_figures_agree_until_results_change(tmp_path, name):
    runs = load_folder(_write(tmp_path))
    old = README.format(name)
    assert figures.disagreements(old, runs, tmp_path) == [name]
    text = figures.fill(old, runs, tmp_path)
    assert figures.disagreements(text, runs, tmp_path) == []
    assert text.startswith("# Title\n\n")
    assert text.endswith("<!-- /figures -->\n\ntext\n")
    assert figures.fill(text, runs, tmp_path) == text
    assert "nconfirmed on a GPU" in text


def test_figures_of_a_gpu_come_first_and_are_confirmed(tmp_path):
    runs = load_folder(_write_gpu(_write(tmp_path)))
    text = figures.fill(README.format("machine"), runs, tmp_path)
    assert text.index("H100") < text.index("Measured on CPU")
    assert "nconfirmed" not in text


ROW = {"steps": 7, "ap": 0.1, "ap50": 0.25, "agnostic_ap50": 0.5, "agnostic_ap50_with_duplicates": 0.2}
ROW["recall_at_half"] = None
COMPARISON = {"data": "stills", "minutes": 50, "preset": "tiny", "seed": 0, "jobs": 4, "machine": MACHINE}


def test_recipes_are_compared_in_a_table_with_the_best_in_bold(tmp_path):
    runs = load_folder(_write(tmp_path))
    variants = {"published": ROW, "improved": {**ROW, "ap50": 0.5}}
    (tmp_path / "ablation_a.json").write_text(json.dumps({**COMPARISON, "variants": variants}))
    text = figures.fill(README.format("recipes"), runs, tmp_path)
    assert "50 minutes each, 4 trainings side by side" in text and "2 cores of a processor" in text
    assert "| published | 7 | **10.0** | 25.0 | **50.0** | **20.0** | - |" in text
    assert "| improved | 7 | **10.0** | **50.0** | **50.0** | **20.0** | - |" in text
    assert figures.disagreements(text, runs, tmp_path) == []
    assert "Recipes of training" in report.render(runs, tmp_path, [])
    (tmp_path / "ablation_b.json").write_text("{}")
    with pytest.raises(DataError, match=r"ablation_b\.json"):
        figures.fill(text, runs, tmp_path)


COMPILED = {"kernel": "stda_forward", "layer": "encoder", "dtype": "float16", "head_dim": 32, "target": "sm_90"}
COMPILED |= {"default": True, "instructions": 5.448, "registers": 190, "stack_bytes": 0}


def test_counted_instructions_of_defaults_stand_beside_those_of_others(tmp_path):
    runs = load_folder(_write(tmp_path))
    assert "Machine code" not in report.render(runs, tmp_path, [])
    others = [{"default": False}, {"target": "sm_80"}, {"layer": "decoder"}, {"head_dim": 64}, {"dtype": "float32"}]
    peer = {"package": "deformops", "version": "3", "kernel": "backward", "dtype": "float16", "target": "sm_90"}
    peer |= {"value_gradient": "float32", "instructions": 71.51, "registers": 106}
    rows = [COMPILED, *({**COMPILED, "instructions": 9.0, **other} for other in others)]
    content = {"triton": "3.8.0", "rows": rows, "peers": [peer, {"package": "deformops", "missing": True}]}
    (tmp_path / "compile_report.json").write_text(json.dumps(content))
    text = figures.fill(README.format("machine_code"), runs, tmp_path)
    table = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert table == [
        "| spatial-temporal, forward | float16 | 5.4 | 190 | 0 |",
        "| spatial-temporal, forward | float32 | 9.0 | 190 | 0 |",
        "| classic, backward, float32 value gradient: deformops 3 | float16 | 71.5 | 106 |  |",
    ]
    assert "Machine code" in report.render(runs, tmp_path, [])
    (tmp_path / "compile_report.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match=r"compile_report\.json"):
        figures.fill(text, runs, tmp_path)


def test_unknown_figures_are_refused(tmp_path):
    with pytest.raises(DataError, match="'speed'"):
        figures.fill(README.format("speed"), load_folder(_write(tmp_path)), tmp_path)


def test_an_open_marker_is_refused(tmp_path):
    with pytest.raises(DataError, match="/figures"):
        figures.fill("<!-- figures:machine -->\n", load_folder(_write(tmp_path)), tmp_path)


def test_check_command_tells_agreement_by_its_exit_status(tmp_path):
    results = _write(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(README.format("inference"))
    arguments = ["--results", str(results), "--figures", str(readme)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0
    _write(tmp_path, entries=[*ENTRIES[:-4], _inference("stnet", "encoder shuffle", 0.3, 3)])
    assert report.main([*arguments, "--check"]) == 1


PAGES = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "model.md"]


def test_pages_agree_with_the_committed_results():
    assert all("<!-- figures:" in page.read_text(encoding="utf-8") for page in PAGES)
    arguments = ["--results", str(ROOT / "bench" / "results"), "--figures", *map(str, PAGES), "--check"]
    assert report.main(arguments) == 0


def test_the_headline_is_of_the_gpu_where_there_is_one(tmp_path):
    runs = load_folder(_write(tmp_path))
    text = figures.fill(README.format("headline"), runs, tmp_path)
    assert "on 2 CPU cores" in text
    assert "encoder attention, forward | 2 ms (float16) | 4x" in text
    assert "No GPU has confirmed" in text


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (shipped_model.FILE, shipped_model.section),
        (shipped_model.FILE, shipped_model.headline),
        (machine_code.FILE, machine_code.section),
        (machine_code.FILE, machine_code.headline),
        (conditions.FILE, conditions.section),
        (conditions.UNSEEN_FILE, partial(conditions.comparison, file=conditions.UNSEEN_FILE)),
        (processor.CLASSIC_FILE, processor.section),
        (processor.MODEL_FILES[0], processor.section),
        (lesions.TRACKING_FILE, lesions.tracking),
        (lesions.MALIGNANCY_FILE, lesions.malignancy),
    ],
)
def test_a_damaged_result_file_of_a_study_is_named(tmp_path, file, read):
    assert not read(tmp_path)
    for text in ("{", "{}", "[]", '{"images": 1, "sets": {}, "rows": 1, "models": 1, "results": {}}'):
        (tmp_path / file).write_text(text)
        with pytest.raises(DataError, match=file):
            read(tmp_path)


def test_models_under_conditions_stand_side_by_side(tmp_path):
    found = {"ap50": 0.5, "alarms": 0.25}
    ahead = {
        "unchanged": {"value": 0.101, "interval": [-0.02, 0.2]},
        "small lesions": {"value": None, "interval": None},
    }
    content = {"models": {"plain": {"unchanged": found}, "ours": {"unchanged": found | {"ap50": 0.601}}}}
    file = tmp_path / conditions.UNSEEN_FILE
    file.write_text(json.dumps(content))
    assert "| unchanged | 50.0, 0.25 | 60.1, 0.25 |" in conditions.comparison(tmp_path, conditions.UNSEEN_FILE)
    file.write_text(json.dumps(content | {"ahead_of_the_first": {"ours": ahead}}))
    text = conditions.comparison(tmp_path, conditions.UNSEEN_FILE)
    assert "ahead of plain | ours |" in text
    assert "| unchanged | +10.1 (-2.0 to +20.0) |" in text and "| small lesions | - |" in text
