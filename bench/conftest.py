"""Options of the timing suites, and what their result file holds beside pytest-benchmark's statistics."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bench.timing import baselines, limits
from bench.timing.counts import Work
from bench.timing.inputs import POSITIONS
from bench.timing.shapes import DTYPES, SIZES, Sizes
from bench.timing.stopwatch import Action, WrongResultError, time_action
from stnet import environment

STARTED = pytest.StashKey[float]()
LONGEST_REASON = 300  # characters
WITHOUT_TIME = pytest.StashKey[list]()
LESS_WORTH = ("bench_growth", "bench_layers")  # what they measure is in the other suites' figures too


def pytest_addoption(parser):
    group = parser.getgroup("stnet benchmarks")
    gpu = torch.cuda.is_available()
    group.addoption("--bench-device", default="cuda" if gpu else "cpu", help="cuda or cpu (default: %(default)s)")
    group.addoption(
        "--bench-size", choices=SIZES, help="sizes; default: paper on a GPU, small on a CPU (smoke: the flow alone)"
    )
    group.addoption("--bench-dtypes", help="comma-separated; default: float16,float32 on a GPU, float32 on a CPU")
    group.addoption("--bench-budget", type=float, help="seconds of rounds per benchmark; default: 0.2, on a CPU 0.6")
    group.addoption(
        "--bench-compiled",
        action="store_true",
        default=gpu,
        help="measure torch.compile of the reference on a CPU too, where compiling takes minutes for each case",
    )
    group.addoption("--bench-peers", metavar="FOLDER", help="where deformops is, for the host time of its calls")
    group.addoption("--bench-seconds", type=float, help="after this time the remaining benchmarks are skipped")


def pytest_configure(config):
    config.stash[STARTED], config.stash[WITHOUT_TIME] = time.monotonic(), []
    # PyTorch convolves float32 in TensorFloat-32 unless told otherwise; what is called float32 here is float32.
    torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks for."""

    device: torch.device
    size: str
    budget: float

    @property
    def sizes(self) -> Sizes:
        """The sizes that `size` names."""
        return SIZES[self.size]


def settings_of(config: pytest.Config) -> Settings:
    """Return the settings, with their defaults for the device."""
    device = torch.device(config.getoption("bench_device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--bench-device cuda: no CUDA device here; use cpu")
    gpu = device.type == "cuda"
    return Settings(
        device=device,
        size=config.getoption("bench_size") or ("paper" if gpu else "small"),
        budget=config.getoption("bench_budget") or (0.2 if gpu else 0.6),
    )


def _dtypes(config: pytest.Config, device: torch.device) -> list[str]:
    default = "float16,float32" if device.type == "cuda" else "float32"
    names = (config.getoption("bench_dtypes") or default).split(",")
    for name in names:
        if name not in DTYPES:
            raise pytest.UsageError(f"--bench-dtypes: {name!r} is none of {', '.join(DTYPES)}")
    return names


def pytest_generate_tests(metafunc):
    """Parametrize the timing suites by what depends on the options."""
    settings = settings_of(metafunc.config)
    sizes, dtypes = settings.sizes, _dtypes(metafunc.config, settings.device)
    values = {
        "device": [pytest.param(settings.device.type, id=f"{settings.device.type}-{settings.size}")],
        "dtype": dtypes,
        "precision": ["bfloat16" if name == "float16" else name for name in dtypes],  # training avoids float16
        "batch": sizes.batches,
        "video_frames": sizes.growth_frames,
        "image_side": sizes.growth_images,
        "clips": sizes.growth_batches,
        "queries": sizes.growth_queries,
    }
    for name, choices in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices)


def pytest_collection_modifyitems(config, items):
    """In order of worth, should time run out, else as they stand.

    Last what torch.compile makes, before it LESS_WORTH and large batches of others; then by dtype, batch and positions:
    those near the queries, as in a trained model, say most.
    """
    names = {name: i for i, name in enumerate(_dtypes(config, settings_of(config).device))}

    def worth(item: pytest.Item) -> tuple:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        implementation, batch = params.get("implementation", "stnet"), params.get("batch", 1)
        last = item.path.stem in LESS_WORTH or (batch > 1 and not implementation.startswith("stnet"))
        far = params.get("positions", POSITIONS[0]) != POSITIONS[0]
        return "compiled" in implementation, last, names.get(params.get("dtype"), 0), batch, far

    items.sort(key=worth)
    if config.getoption("bench_compiled"):
        return
    skip = pytest.mark.skip(reason="torch.compile takes minutes for each case on a CPU; --bench-compiled includes it")
    for item in items:
        if worth(item)[0]:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def settings(pytestconfig) -> Settings:
    return settings_of(pytestconfig)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _within_time(pytestconfig):
    limit = pytestconfig.getoption("bench_seconds")
    if limit is not None and time.monotonic() - pytestconfig.stash[STARTED] > limit:
        pytest.skip("out of time")


@pytest.fixture(autouse=True)
def _free_memory(settings):
    yield
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def available() -> Callable[[Callable[[str], Any], str], Any]:
    """`available(load, name)`: an implementation, or the benchmark is skipped and named as missing."""

    def load_or_skip(load: Callable[[str], Any], name: str) -> Any:
        try:
            return load(name)
        except baselines.MissingError as error:
            pytest.skip(f"missing: {error}")

    return load_or_skip


@pytest.fixture
def measure(benchmark, settings, request) -> Callable[..., None]:
    """Check an action's result, then time it; one that fails either gets no time and is reported as failed.

    `measure(action, sets, group=..., info=..., check=..., baseline=(name, make), work=...)`: `check()` returns the
    relative error (None where there is none to give) or raises WrongResultError; `make()` gives the action to take
    turns with, on a CPU; limits are derived from `work`.
    """

    def run(
        action: Action,
        sets: Sequence[tuple],
        *,
        group: str,
        info: dict[str, Any],
        check: Callable[[], float | None] | None = None,
        baseline: tuple[str, Callable[[], Action]] | None = None,
        work: Work | None = None,
    ) -> None:
        benchmark.group = group
        try:
            error = check() if check is not None else None
        except WrongResultError as wrong:
            pytest.fail(f"wrong: {wrong}", pytrace=False)
        except torch.OutOfMemoryError:
            pytest.fail("out of memory", pytrace=False)
        name, make = baseline or (None, None)
        in_turn = settings.device.type == "cpu" and name not in (None, info["implementation"])
        measured = time_action(benchmark, action, sets, settings.device, settings.budget, make() if in_turn else None)
        benchmark.extra_info.update(info, size=settings.size, device=settings.device.type, **measured)
        if error is not None:
            benchmark.extra_info["error"] = error
        if name is not None:
            benchmark.extra_info["baseline"] = name
        if work is not None:
            benchmark.extra_info["work"] = vars(work)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Note benchmarks that were skipped or failed, with the reason."""
    report = yield
    if report.skipped or report.failed:
        reason = f"{call.excinfo.typename}: {call.excinfo.value}" if report.failed else report.longrepr[2]
        reason = reason.removeprefix("Skipped: ").removeprefix("Failed: ").splitlines()[0][:LONGEST_REASON]
        params = item.callspec.params if hasattr(item, "callspec") else {}
        entry = {"benchmark": item.name, "implementation": params.get("implementation", "stnet")}
        item.config.stash[WITHOUT_TIME].append({**entry, "outcome": report.outcome, "reason": reason})
    return report


def pytest_benchmark_generate_machine_info(config):
    """Describe the machine; asked for at the end, when a benchmark may have left the GPU's context unusable."""
    device = settings_of(config).device
    described = environment.describe(device)
    try:
        reached = limits.measure_limits(device)
    except RuntimeError:  # the times that were measured are worth keeping without the limits
        reached = {}
    return {**described, "limits": reached, "missing": baselines.missing()}


def pytest_benchmark_generate_commit_info(config):
    return {"id": environment.commit()}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Add what has no time, and why."""
    output_json["without_time"] = config.stash[WITHOUT_TIME]
