"""The launch table, its lookup, and kernel calls as data."""

import itertools
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.compile_report.cases import DTYPES, LAYERS, layers_of
from stnet.choices import ARCHITECTURES
from stnet.errors import ConfigError
from stnet.kernels.triton import device_tables, launch_table
from stnet.kernels.triton.ahead_of_time import calls
from stnet.kernels.triton.launch_table import (
    DEFAULT_TABLE,
    KERNELS,
    TABLE_VARIABLE,
    Candidate,
    Row,
    candidates,
    choose,
    padded_head_dim,
    read_table,
    write_table,
)
from stnet.kernels.triton.layout import alignment, packed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write rows to a file and make it the launch table."""

    def write(*rows: dict) -> Path:
        path = tmp_path / f"table{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"rows": rows}))
        monkeypatch.setenv(TABLE_VARIABLE, str(path))
        return path

    return write


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "sm_103", "cpu"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_shipped_table_has_several_candidates_for_everything(kernel, arch):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for head_dim in (1, 8, 16, 24, 32, 64, 128, 256):
            for queries in (1, 300, 5440):
                found = candidates(kernel, arch, dtype, head_dim, queries)
                assert len(set(found)) == len(found)
                assert len(found) >= 2
                assert choose(kernel, arch, dtype, head_dim, queries) == found[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_shipped_candidates_of_a_key_are_different_kernels(kernel, arch):
    """On the published layers: a tile may be raised, a block cut to a head, an arithmetic replaced."""
    pytest.importorskip("triton")
    for layer, dtype, head_dim in itertools.product(layers_of(kernel), DTYPES, (8, 16, 32, 64, 128, 256)):
        dtype = getattr(torch, dtype)
        found = candidates(kernel, arch, dtype, head_dim, LAYERS[layer].queries)
        compiled = [
            tuple((call.kernel, tuple(call.constants.items()), tuple(call.options.items())) for call in made)
            for made in (calls(kernel, candidate, dtype, head_dim, LAYERS[layer], arch) for candidate in found)
        ]
        assert len(set(compiled)) == len(found), (layer, dtype, head_dim)


def test_shipped_defaults_of_the_forward_keep_four_lanes_on_a_row():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for kernel in ("stda_forward", "msda_forward"):
            default = choose(kernel, "sm_90", dtype, 32, 5440)
            rows = default.block_queries * default.block_heads
            held = rows * default.block_channels // (32 * default.num_warps)  # elements of a lane
            lanes = default.block_channels // (16 // dtype.itemsize)
            assert lanes >= 4
            assert held >= 16 // dtype.itemsize


def test_first_row_that_matches_wins(table):
    table(
        {"kernel": "stda_forward", "architectures": ["sm_80"], "candidates": [{"num_warps": 2}]},
        {"kernel": "stda_forward", "dtypes": ["float16"], "head_dims": [64], "candidates": [{"num_warps": 4}]},
        {"kernel": "stda_forward", "many_queries": True, "candidates": [{"num_warps": 8}, {}]},
        {"kernel": "stda_forward", "candidates": [{"block_queries": 16}]},
    )
    assert choose("stda_forward", "sm_80", torch.float16, 64, 1).num_warps == 2
    assert choose("stda_forward", "sm_90", torch.float16, 40, 9999).num_warps == 4
    assert choose("stda_forward", "sm_90", torch.float32, 64, 9999).num_warps == 8
    assert choose("stda_forward", "sm_90", torch.float32, 64, 300).block_queries == 16
    with pytest.raises(ConfigError, match="no row for msda_forward, sm_90, float32, head width 32"):
        choose("msda_forward", "sm_90", torch.float32, 32, 1)


def test_rows_may_be_for_versions_of_triton(table, monkeypatch):
    table(
        {"kernel": "stda_forward", "tritons": ["3.6", "3.7"], "candidates": [{"num_warps": 2}]},
        {"kernel": "stda_forward", "candidates": [{"num_warps": 4}]},
    )
    for version, warps in (("3.6", 2), ("3.7", 2), ("3.60", 4), ("", 4)):
        monkeypatch.setattr(launch_table, "triton_version", lambda version=version: version)
        assert choose("stda_forward", "sm_90", torch.float16, 32, 300).num_warps == warps


def test_table_survives_writing_and_reading(tmp_path):
    measured = Candidate(block_queries=16, arithmetic="packed", maxnreg=128, milliseconds=0.25)
    rows = (
        Row(
            kernel="stda_forward", architectures=("sm_90",), head_dims=(32,), many_queries=False, candidates=(measured,)
        ),
        *read_table(DEFAULT_TABLE),
    )
    write_table(tmp_path / "t.json", rows)
    assert read_table(tmp_path / "t.json") == rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kernel": "conv", "candidates": [{}]}, "conv.*stda_forward"),
        ({"kernel": "stda_forward", "candidates": []}, "no candidates"),
        ({"kernel": "stda_forward"}, "candidates"),
        ({"kernel": "stda_forward", "candidates": [{"num_warps": 3}]}, "num_warps is 3"),
        ({"kernel": "stda_forward", "candidates": [{"block_queries": "32"}]}, "block_queries is '32'"),
        ({"kernel": "stda_forward", "candidates": [{"arithmetic": "int8"}]}, "int8.*packed"),
        ({"kernel": "stda_forward", "candidates": [{"maxnreg": 512}]}, "maxnreg is 512"),
        ({"kernel": "stda_forward", "candidates": [{"unroll": 0}]}, "unroll is 0"),
        ({"kernel": "stda_backward", "candidates": [{"summed_cells": 1024}]}, "summed_cells is 1024"),
        ({"kernel": "stda_forward", "candidates": [{"warps": 4}]}, "warps"),
        ({"kernel": "stda_forward", "speed": 1, "candidates": [{}]}, "speed"),
    ],
    ids=str,
)
def test_bad_tables_are_refused(table, row, message):
    table(row)
    with pytest.raises(ConfigError, match=message):
        choose("stda_forward", "sm_90", torch.float16, 32, 1)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', '{"rows": [7]}', "{"])
def test_files_that_are_no_tables_are_refused(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json: not a launch table.*stnet\.kernels\.tune"):
        read_table(path)
    with pytest.raises(ConfigError, match=r"absent\.json: cannot read"):
        read_table(tmp_path / "absent.json")


def test_options_leave_out_what_amd_does_not_know():
    bounded = Candidate(maxnreg=96, num_warps=2)
    assert bounded.options("sm_90") == {"num_warps": 2, "maxnreg": 96}
    assert bounded.options("gfx942") == {"num_warps": 2}


@pytest.mark.parametrize(("head_dim", "padded"), [(1, 8), (8, 8), (9, 16), (32, 32), (33, 64), (256, 256)])
def test_padded_head_dim(head_dim, padded):
    assert padded_head_dim(head_dim) == padded


def test_alignment_is_that_of_the_worst_slice():
    buffer = torch.zeros(4096, dtype=torch.float16)
    base = buffer.data_ptr() % 16 // 2
    start = buffer[8 - base :] if base else buffer
    assert alignment(start[:64].view(4, 16), (0,)) == 16
    assert alignment(start[4:68].view(4, 16), (0,)) == 8
    assert alignment(start[:80].view(4, 20), (0,)) == 8
    assert alignment(start[:20].view(1, 20), (0,)) == 16
    assert alignment(start[:84].view(4, 21), (0,)) == 2


def test_packed_copies_only_what_it_must():
    projection = torch.zeros(2, 5, 96)
    points = projection[..., 32:64].view(2, 5, 4, 4, 2)
    assert packed(points, 3) is points
    swapped = points.transpose(2, 3)
    assert packed(swapped, 3) is not swapped
    assert packed(swapped, 3).is_contiguous()
    assert packed(swapped, 1) is swapped


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from bench.compile_report.cases import LAYERS
from bench.sass import analyse_kernel
from stnet.kernels.triton.ahead_of_time import ast_sources, calls
from stnet.kernels.triton.launch_table import choose

kernel, arch, name = sys.argv[1:]
dtype, layer = getattr(torch, name), LAYERS["encoder" if kernel.startswith("stda") else "classic"]
candidate = choose(kernel, arch, dtype, 32, layer.queries)
[(source, options)] = ast_sources(kernel, candidate, dtype, 32, layer, arch)
target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)
compiled = triton.compile(source, target=target, options=options)
if arch.startswith("sm"):
    [call] = calls(kernel, candidate, dtype, 32, layer, arch)
    numbers = {key: x for key, x in call.arguments.items() if isinstance(x, int)}
    found = analyse_kernel(compiled, numbers, grid=call.grid)
    samples = layer.samples if kernel.startswith("stda") else layer.levels * layer.points
    samples *= candidate.block_queries * candidate.block_heads
    assert found.loads[16] >= (0.5 if dtype.itemsize == 2 else 1.0) * samples, found.loads
    limit = {"float16": 7.7, "bfloat16": 7.7, "float32": 9.5}[name]
    assert (kernel, arch) != ("stda_forward", "sm_90") or found.executed / samples <= limit, found.executed / samples
"""


@pytest.mark.parametrize(
    "case",
    ["stda_forward sm_90 float16", "stda_forward gfx942 float32"]
    + [
        pytest.param(f"{kernel} {arch} {dtype}", marks=pytest.mark.slow)
        for kernel in ("stda_forward", "msda_forward")
        for arch in ("sm_80", "sm_90", "gfx942")
        for dtype in ("bfloat16", "float32")
    ],
)
def test_default_compiles_ahead_of_time(case):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, *case.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


WARM_UP = """
import sys, torch, triton
from types import SimpleNamespace
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from bench.compile_report.cases import LAYERS
from stnet.kernels.triton.ahead_of_time import calls
from stnet.kernels.triton.launch_table import choose

kernel = sys.argv[1]
target, layer = GPUTarget("cuda", 90, 32), LAYERS["encoder" if kernel.startswith("stda") else "classic"]
driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target,
))
candidate = choose(kernel, "sm_90", torch.float16, 32, layer.queries)
[call] = calls(kernel, candidate, torch.float16, 32, layer, "sm_90")
warm = lambda: call.kernel.warmup(grid=call.grid, **call.arguments, **call.constants, **call.options)
ahead = triton.compile(call.ast_source(), target=target, options=dict(call.options))
first = warm()
assert first.asm["cubin"] == ahead.asm["cubin"], "not the code that the compile report counts"
for name in ("queries", "offsets_q", "weights_q"):  # other sizes run the same kernel
    if name in call.arguments:
        call.arguments[name] = call.arguments[name] + 1
assert warm() is first, "compiled anew for another number of queries"
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_launches_run_what_is_compiled_ahead_of_time(kernel, tmp_path):
    """Triton's launcher, with a driver that knows no device: as far as a machine without a GPU goes."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what another checkout compiled names its files
    command = [sys.executable, "-c", WARM_UP, kernel]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


SPILLS = """
import re, sys, torch, triton
from dataclasses import replace
from triton.backends.compiler import GPUTarget
from bench.compile_report.cases import LAYERS
from bench.sass import read_cubin
from stnet.kernels.triton.ahead_of_time import ast_sources
from stnet.kernels.triton.launch_table import choose

kernel, arch = sys.argv[1:]
target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)
layers = ["classic"] if kernel.startswith("msda") else ["encoder", "decoder"]
layers = {name: LAYERS[name] for name in layers}
if kernel == "stda_backward":  # with fewer queries than positions, gradients of reference points are wanted
    layers["references"] = replace(LAYERS["encoder"], queries=LAYERS["encoder"].queries - 1)

def stack(compiled):
    if arch.startswith("gfx"):
        return int(re.search(r"private_segment_fixed_size:\\s+(\\d+)", compiled.asm["amdgcn"])[1])
    return read_cubin(compiled.asm["cubin"]).stack

for name, layer in layers.items():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for head_dim in (8, 16, 32, 64, 128, 256):
            candidate = choose(kernel, arch, dtype, head_dim, layer.queries)
            [(source, options)] = ast_sources(kernel, candidate, dtype, head_dim, layer, arch)
            print(name, dtype, head_dim, stack(triton.compile(source, target=target, options=options)), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_default_spills(kernel, arch):
    """Every default: dtypes, head widths, few and many queries, with and without gradients of reference points."""
    triton = pytest.importorskip("triton")
    if not triton.__version__.startswith("3.8."):
        pytest.skip("the defaults were chosen for the registers that Triton 3.8 allocates")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SPILLS, kernel, arch]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 18 * {"stda_forward": 2, "stda_backward": 3}.get(kernel, 1)
    assert [row for row in rows if row[-1] != "0"] == []


def test_tables_are_made_on_their_device_in_a_thread_without_a_graph(monkeypatch):
    """The memory of graphs that PyTorch records is that of one thread; a new thread starts on device 0."""
    current, made = threading.local(), []

    @contextmanager
    def device(wanted):
        current.device = wanted
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    written = SimpleNamespace(synchronize=lambda: made.append("written"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda wanted: written if wanted == current.device else None)
    gpu = torch.device("cuda:1")

    def make():
        made.append((threading.get_ident(), current.device))
        return "table"

    assert device_tables.outside_of_graphs(make, gpu) == "table"
    (thread, where), last = made
    assert thread != threading.get_ident() and where == gpu and last == "written"
    assert not hasattr(current, "device"), "the caller's device is as it was"


def test_a_table_that_cannot_be_made_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda wanted: nullcontext())

    def make():
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        device_tables.outside_of_graphs(make, torch.device("cuda:0"))
