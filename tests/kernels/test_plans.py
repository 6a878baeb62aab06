"""What is decided once for calls that lie alike: when it holds, when it does not, and what it may keep."""

import gc
import os
import subprocess
import weakref
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from stnet.errors import KernelError
from stnet.kernels import operators
from stnet.kernels.backends import BACKENDS
from stnet.kernels.plans import Memory, layout_of
from stnet.kernels.registration import MSDA, STDA
from stnet.kernels.triton.architecture import assumed

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)


def test_memory_is_bounded_and_lets_the_oldest_go():
    memory = Memory(limit=3)
    for number in range(5):
        assert memory.keep(number, str(number)) == str(number)
    assert len(memory) == 3
    assert [memory.get(number) for number in range(5)] == [None, None, "2", "3", "4"]
    memory.keep(4, "anew")
    assert (len(memory), memory.get(2), memory.get(4)) == (3, "2", "anew")


def test_threads_share_a_memory():
    memory = Memory(limit=16)

    def work(seed: int) -> bool:
        return all(memory.keep(k, k) == k and memory.get(k) in (k, None) for k in range(seed, seed + 500))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(memory) == 16


def test_a_layout_tells_what_launches_depend_on():
    x = torch.zeros(64, dtype=torch.float32)
    same = [x[:8].view(2, 4), x[16:24].view(2, 4)]
    assert layout_of(same[:1]) == layout_of(same[1:])
    others = {
        "shape": x[:8].view(4, 2),
        "strides": x[:8].view(4, 2).t(),
        "alignment": x[1:9].view(2, 4),
        "dtype": x[:8].view(2, 4).view(torch.int32),
        "device": torch.zeros(2, 4, device="meta"),
    }
    layouts = [layout_of([y]) for y in (same[0], *others.values())]
    assert len(set(layouts)) == len(layouts), "one stands for another"
    assert layout_of([same[0], None]) != layout_of([same[0], same[0]])


@needs_triton
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_one_plan_serves_other_tensors_that_lie_alike(stda_case, memory, backend, error):
    """First with one tensor as both reference points, then with two: a plan may not mix them up."""
    sizes = {"clips": 1, "targets": 1, "heads": 1, "queries": 3, "shapes": ((3, 4),)}
    cases = [stda_case(**sizes, seed=seed).to(dtype=torch.float32) for seed in (0, 1)]
    shared = cases[0].tensors["reference_points"]
    for case in (cases[0].replaced(other_reference_points=shared), *cases):
        expected, wanted = case.to(dtype=torch.float64).gradients("reference")
        output, gradients = case.gradients(backend)
        assert error(output, expected) <= 5e-6
        assert max(error(gradients[name], wanted[name]) for name in wanted) <= 5e-5
    assert len(BACKENDS[backend].plans) == 2, "one forward, one backward"


@needs_triton
def test_a_plan_keeps_no_tensor_of_its_caller(stda_case, memory):
    case = stda_case(clips=1, targets=1, heads=1, queries=3, shapes=((3, 4),)).to(dtype=torch.float32)
    output, gradients = case.gradients("triton")
    storages = [weakref.ref(x.untyped_storage()) for x in (output, *gradients.values(), *case.tensors.values())]
    tensors = [weakref.ref(x) for x in (output, *gradients.values(), *case.tensors.values())]
    assert len(memory) == 2 and storages
    del case, output, gradients
    gc.collect()
    assert not [x for x in (reference() for reference in tensors) if x is not None]


@needs_triton
def test_copies_that_a_layout_needs_are_made_at_every_call(msda_case, memory, error):
    for seed in (0, 1):
        case = msda_case(batch=1, heads=2, queries=3, seed=seed).to(dtype=torch.float32)
        weights = case.tensors["attention_weights"]
        strided = case.replaced(attention_weights=weights.transpose(-1, -2).contiguous().transpose(-1, -2))
        assert error(strided.run("triton"), case.run("reference")) <= 5e-6
    assert len(memory) == 1


@needs_triton
def test_the_launch_table_is_part_of_a_plan(msda_case, memory, monkeypatch, tmp_path):
    from stnet.kernels.triton.launch_table import DEFAULT_TABLE, TABLE_VARIABLE

    case = msda_case(batch=1, heads=1, queries=3).to(dtype=torch.float32)
    case.run("triton")
    (tmp_path / "table.json").write_text(DEFAULT_TABLE.read_text())
    monkeypatch.setenv(TABLE_VARIABLE, str(tmp_path / "table.json"))
    case.run("triton")
    assert len(memory) == 2


def test_the_gpu_that_is_assumed_is_part_of_a_plan():
    """In one process, kernels compiled ahead for one GPU say nothing of those for another."""
    settings = [BACKENDS["triton"].settings()]
    for arch in ("sm_80", "sm_90"):
        with assumed(arch):
            settings.append(BACKENDS["triton"].settings())
    assert len(set(settings)) == 3


@pytest.mark.parametrize("operator", [STDA, MSDA], ids=lambda operator: operator.name)
def test_the_shortcut_is_what_the_dispatcher_does(operator, stda_case, msda_case):
    case = (stda_case if operator is STDA else msda_case)().to(dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        case.run("cpu")
    assert [event.name for event in profile.events()].count(f"stnet::{operator.name}_forward") == 1


def test_what_passed_the_checks_is_remembered_by_sizes_alone(stda_case, monkeypatch):
    monkeypatch.setattr(operators, "_PASSED", Memory())
    case = stda_case().to(dtype=torch.float32)
    for _ in range(2):
        case.run("cpu")
    assert len(operators._PASSED) == 1
    offsets = case.tensors["offsets"]
    for wrong in (offsets[:, :, :1], offsets.to_sparse(), offsets.to(torch.int64), offsets.to("meta")):
        with pytest.raises((ValueError, TypeError), match=r"offsets|reference_points has shape"):
            case.replaced(offsets=wrong).run("cpu")
    assert len(operators._PASSED) == 1


@pytest.fixture
def compiled(monkeypatch):
    """A launch of a kernel that has machine code, and what it was given; Triton's own way and the direct one."""
    launch = pytest.importorskip("stnet.kernels.triton.launch")
    from stnet.kernels.triton.kernel_call import KernelCall

    monkeypatch.setattr(
        launch, "driver", SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda device: "stream"))
    )

    class Code:
        function, packed_metadata = "function", "metadata"

        def __init__(self, launches):
            self.run = lambda *given: launches.append(given)

    class Kernel:
        arg_names = ("a", "b", "table", "size", "BLOCK")

        def __init__(self):
            self.pre_run_hooks, self.by_triton, self.direct, self.compiled = [], [], [], []

        def __getitem__(self, grid):
            def run(**arguments):
                self.by_triton.append(tuple(arguments[name] for name in self.arg_names))
                code = Code(self.direct)
                self.compiled.append(weakref.ref(code))
                return code

            return run

    kernel, table = Kernel(), torch.zeros(1)
    examples = torch.zeros(2), torch.zeros(2)
    arguments = {"a": examples[0], "b": examples[1], "table": table, "size": 7}
    call = KernelCall(kernel=kernel, grid=(1, 2, 3), arguments=arguments, constants={"BLOCK": 16}, options={})
    return launch.Launch(call, examples), kernel, table


def test_a_launch_goes_through_triton_once(compiled):
    launch, kernel, table = compiled
    (x, y), (v, w) = torch.rand(2, 2), torch.rand(2, 2)
    launch(x, y)
    launch(v, w)
    assert len(kernel.by_triton) == len(kernel.direct) == 1
    a, b, kept, size, block = kernel.by_triton[0]
    assert a is x and b is y and kept is table and (size, block) == (7, 16)
    *head, a, b, kept, size, block = kernel.direct[0]
    assert head == [1, 2, 3, "stream", "function", "metadata", None, None, None]
    assert a is v and b is w and kept is table and (size, block) == (7, 16)


def test_a_launch_keeps_the_machine_code_that_it_runs(compiled):
    """Triton unloads a compiled kernel that nobody holds: one of two that threads compiled at the same time."""
    launch, kernel, _ = compiled
    launch(*torch.rand(2, 2))
    (code,) = kernel.compiled
    gc.collect()
    assert code() is not None, "unloaded, and launched by its address"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(13, "Permission denied", "/root/.triton/cache/X"), "TRITON_CACHE_DIR"),
        (OSError(28, "No space left on device", "/root/.triton/cache/X"), "TRITON_CACHE_DIR"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable"), "python3-dev"),
        (subprocess.CalledProcessError(1, ["gcc"]), "python3-dev"),
        (FileNotFoundError(2, "No such file or directory", "icc"), "python3-dev"),
        (RuntimeError("Cannot find ptxas"), "TRITON_PTXAS_PATH"),
        (AssertionError("libcuda.so cannot found!"), "TRITON_LIBCUDA_PATH"),
        (FileNotFoundError(2, "No such file or directory", "/sbin/ldconfig"), "TRITON_LIBCUDA_PATH"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), None),
    ],
    ids=str,
)
def test_what_triton_lacks_is_told_with_a_remedy(error, remedy):
    pytest.importorskip("triton")
    from stnet.kernels.triton.kernel_call import KernelCall

    class Kernel:
        def __getitem__(self, grid):
            def run(**arguments):
                raise error

            return run

    call = KernelCall(kernel=Kernel(), grid=(1, 1, 1), arguments={"x": torch.zeros(1)}, constants={}, options={})
    with pytest.raises(KernelError if remedy else type(error)) as raised:
        call.launch()
    assert str(error) in str(raised.value) and (remedy or "") in str(raised.value)


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook", "pre_run_hooks"])
def test_with_hooks_every_launch_goes_through_triton(compiled, monkeypatch, name):
    from triton import knobs

    launch, kernel, _ = compiled
    launch(*torch.rand(2, 2))
    if name == "pre_run_hooks":
        kernel.pre_run_hooks.append(print)
    else:
        monkeypatch.setattr(knobs.runtime, name, SimpleNamespace(calls=[print]))
    launch(*torch.rand(2, 2))
    assert (len(kernel.by_triton), len(kernel.direct)) == (2, 0)
    monkeypatch.undo()
    kernel.pre_run_hooks.clear()
