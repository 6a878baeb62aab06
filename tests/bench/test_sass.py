"""The instruction counter on small kernels whose counts are known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from bench.sass import CubinError, WalkError, analyse, ordered_arguments, read_cubin
from bench.sass.__main__ import main
from bench.sass.cubin import Cubin, Instruction
from bench.sass.state import Launch
from bench.sass.walk import walk

ROOT = Path(__file__).resolve().parents[2]
ARCHS = (80, 90, 120)
X, Y = 1 << 40, 2 << 40


@pytest.fixture(scope="session")
def cubins(tmp_path_factory) -> Path:
    """A folder of `<kernel>.<arch>.cubin`, compiled in a process that does not interpret."""
    folder = tmp_path_factory.mktemp("cubins")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("tiny_kernels.py")), str(folder), *map(str, ARCHS)]
    subprocess.run(command, check=True, env=environment, timeout=120)
    return folder


def load(cubins: Path, kernel: str, arch: int) -> bytes:
    return (cubins / f"{kernel}.{arch}.cubin").read_bytes()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("trips", [0, 1, 2, 7, 64, 65])
def test_loads_follow_the_trip_count_whatever_the_unrolling(cubins, arch, trips):
    analysis = analyse(load(cubins, "counted_loop", arch), [X, Y, trips], num_warps=2)
    assert analysis.loads.get(16, 0) == 2 * trips
    assert set(analysis.loads) <= {16}
    assert analysis.stores == {16: 2}
    assert analysis.gathers == {}
    assert analysis.assumptions == ()
    assert analysis.executed == sum(analysis.executed_per_warp) == sum(analysis.classes.values())
    assert len(analysis.executed_per_warp) == 2


@pytest.mark.parametrize("arch", ARCHS)
def test_instructions_grow_linearly_with_the_trips(cubins, arch):
    cubin = load(cubins, "counted_loop", arch)
    executed = {n: analyse(cubin, [X, Y, n], num_warps=2).executed for n in (64, 128, 192)}
    assert executed[192] - executed[128] == executed[128] - executed[64] >= 2 * 64 * 3


@pytest.mark.parametrize("arch", ARCHS)
@settings(max_examples=8, deadline=None)
@given(a=st.integers(1, 10**6), b=st.integers(0, 10**6), c=st.integers(1, 2000), program=st.integers(0, 1000))
def test_trip_counts_computed_from_arguments(cubins, arch, a, b, c, program):
    trips = (a * 7 + b // c + program) % 13 + min(b % c, 5)
    if a > b:
        trips ^= 3
    analysis = analyse(load(cubins, "computed_trips", arch), [X, Y, a, b, c], program=(program, 0, 0))
    assert analysis.loads.get(16, 0) == trips
    assert analysis.assumptions == ()


@pytest.mark.parametrize("arch", ARCHS)
def test_trip_counts_read_from_given_memory(cubins, arch):
    counts = np.array([2, 0, 9], np.int32)
    analysis = analyse(load(cubins, "loaded_trips", arch), [X, Y, counts])
    assert analysis.loads == {16: 11, 4: 3}
    assert analysis.assumptions == ()


@pytest.mark.parametrize("arch", ARCHS)
def test_an_undecidable_loop_is_refused_until_told(cubins, arch):
    cubin = load(cubins, "loaded_trips", arch)
    with pytest.raises(WalkError, match="give its trip count"):
        analyse(cubin, [X, Y, None])
    few, many = (analyse(cubin, [X, Y, None], trips=[n] * 12) for n in (1, 5))
    assert many.loads[16] > few.loads[16] >= 3
    assert any("as told" in text for text in many.assumptions)


@pytest.mark.parametrize("arch", ARCHS)
def test_gathers_and_reductions(cubins, arch):
    analysis = analyse(load(cubins, "scatter", arch), [X, Y, 3 << 40, 5])
    assert analysis.gathers == {16: 5} if arch >= 90 else analysis.gathers[16] >= 5
    assert analysis.loads[4] == 5
    assert analysis.reductions == ({"F32x4": 5} if arch >= 90 else {"F32": 20})
    assert analysis.atomics == {}


@pytest.mark.parametrize("arch", ARCHS)
def test_a_rare_repair_is_left_out_and_said(cubins, arch):
    analysis = analyse(load(cubins, "repaired", arch), [X, Y])
    assert analysis.loads == {16: 1}
    assert len(analysis.assumptions) == 1
    assert "undecidable" in analysis.assumptions[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_packed_half_arithmetic(cubins, arch):
    analysis = analyse(load(cubins, "packed_half", arch), [X, Y, 11])
    assert analysis.classes["half"] == 11 * 256 // 32 // 2


@pytest.mark.parametrize("arch", ARCHS)
def test_tuple_parameters(cubins, arch):
    signature = {"x": "*fp32", "y": "*fp32", "sizes": ("i32", "i32"), "TILE": "constexpr"}
    arguments = ordered_arguments(signature, {"sizes": (3, 5)})
    assert arguments[2:] == [3, 5]
    assert arguments[0] % 16 == 0
    assert analyse(load(cubins, "tuples", arch), arguments).loads == {16: 15}


def test_arguments_must_fit_the_signature():
    signature = {"x": "*fp32", "sizes": ("i32", "i32"), "n": "i32"}
    with pytest.raises(ValueError, match=r"\['m'\]"):
        ordered_arguments(signature, {"m": 1})
    with pytest.raises(ValueError, match="2 elements was given 3"):
        ordered_arguments(signature, {"sizes": (1, 2, 3)})
    assert ordered_arguments(signature, {"n": 4})[1:] == [None, None, 4]


def test_arguments_must_fit_the_parameters(cubins):
    cubin = load(cubins, "computed_trips", 90)
    with pytest.raises(ValueError, match="parameters"):
        analyse(cubin, [X, Y] + [1] * 20)
    with pytest.raises(ValueError, match="argument 2 is 4294967296"):
        analyse(cubin, [X, Y, 1 << 32])


def test_resources_and_instructions_of_a_cubin(cubins):
    image = read_cubin(load(cubins, "scatter", 90))
    assert (image.kernel, image.arch) == ("scatter", 90)
    assert 8 <= image.registers <= 255
    assert image.stack == image.local == 0
    assert [parameter.size for parameter in image.parameters[:4]] == [8, 8, 8, 4]
    assert image.instructions[0].address == 0
    assert all(ins.target is not None for ins in image.instructions if ins.opcode == "BRA")


def test_numbers_survive_64_bit_minima_and_the_register_of_the_return_address():
    """Both since sm_120: a loop of min(9, 3) iterations whose counter is put aside in each."""
    lines = (
        "MOV.64 R4, 0x9",
        "MOV.64 R6, 0x3",
        "IMNMX.S64 PT, PT, R4, R4, R6, PT, !PT",
        "RPCMOV.32 Rpc.LO, R4",
        "FMNMX R4, R1, R2, !PT",
        "RPCMOV.32 R4, Rpc.LO",
        "IADD R4, R4, -0x1",
        "ISETP.GT.S32.AND P0, PT, R4, RZ, PT",
        "BRA 0x30",
        "EXIT",
    )
    code = []
    for index, line in enumerate(lines):
        opcode, _, operands = line.partition(" ")
        loop = {"guard": "P0", "operands": (), "target": 0x30} if opcode == "BRA" else {}
        parts = {"guard": None, "operands": tuple(operands.split(", ")) if operands else (), "target": None} | loop
        code.append(Instruction(address=16 * index, opcode=opcode, **parts))
    sizes = dict.fromkeys(("registers", "stack", "shared", "local"), 0)
    image = Cubin(kernel="loop", arch=120, parameters=(), instructions=tuple(code), **sizes)
    assert walk(image, Launch(constants={})).counts == (1, 1, 1, 3, 3, 3, 3, 3, 3, 1)


@pytest.mark.parametrize("data", [b"", b"no cubin at all", b"\x7fELF\x02" + b"\xff" * 200])
def test_other_bytes_are_refused(data):
    with pytest.raises(CubinError):
        analyse(data)


def test_a_kernel_of_another_name_is_refused(cubins):
    with pytest.raises(CubinError, match="'absent'"):
        analyse(load(cubins, "scatter", 90), kernel="absent")


def test_command_line(cubins, tmp_path, capsys):
    path = str(cubins / "counted_loop.90.cubin")
    arguments = [path, "--arguments", hex(X), hex(Y), "6", "--num-warps", "2"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["loads"] == {"16": 12}
    assert main([*arguments, "--samples", "12"]) == 0
    text = capsys.readouterr().out
    assert f"{printed['executed']} warp instructions" in text
    assert f"{printed['executed'] / 12:.2f} per sample" in text

    broken = tmp_path / "broken.cubin"
    broken.write_bytes(b"nothing")
    assert main([str(broken)]) == 2
    assert main([str(tmp_path / "absent.cubin")]) == 2
    assert main([str(cubins / "loaded_trips.90.cubin"), "--arguments", hex(X), hex(Y), "_"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("error: ") for line in errors)
