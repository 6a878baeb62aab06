"""What is special to the Numba kernels: vector widths, determinism, threads, processes, the disk cache, speed."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("numba")

import numpy as np
from numba import njit
from numba.core import caching

from stnet.kernels.cpu import jobs, lanes, simd, team
from stnet.kernels.cpu.samples import BLOCK, EIGHT

ENCODER_LEVELS = ((32, 40), (16, 20), (8, 10), (4, 5))


@pytest.fixture
def threads():
    """Set the number of PyTorch's threads; it is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dim", [1, 7, 16, 40, 64, 256])
def test_every_head_width(stda_case, error, dim):
    case = stda_case(dim=dim, clips=1, queries=3, components=4)
    expected, expected_grads = case.gradients("reference")
    output, grads = case.to(dtype=torch.float32).gradients("cpu")
    assert error(output, expected) <= 5e-6
    for name, grad in grads.items():
        assert error(grad, expected_grads[name]) <= 5e-5, name


@pytest.mark.parametrize("width", [40, 160])
def test_accuracy_at_realistic_sizes(stda_case, error, width):
    shapes = tuple((max(1, width // (2 << n)), width >> n) for n in range(4))
    case = stda_case(shapes=shapes, clips=1, frames=4, dim=32, heads=2, queries=100, points=4, other_points=2)
    expected, expected_grads = case.gradients("reference")
    output, grads = case.to(dtype=torch.float32).gradients("cpu")
    limit = 5e-6 * max(1, width / 64)
    assert error(output, expected) <= limit
    for name, grad in grads.items():
        assert error(grad, expected_grads[name]) <= 10 * limit, name


def test_exponential_is_accurate_and_handles_special_numbers():
    @njit
    def evaluate(address, count):
        for k in range(0, count, BLOCK):
            simd.store(address + 4 * k, lanes.exp(simd.load(EIGHT, address + 4 * k)))

    special = np.array([-np.inf, -200.0, np.nan, 0.0], np.float32)
    numbers = np.concatenate([np.linspace(-86.9, 0, 10002), [-0.0, -1e-20], special]).astype(np.float32)
    powers = numbers.copy()
    evaluate(powers.ctypes.data, len(powers))
    expected = np.exp(numbers[:-4].astype(np.float64))
    assert np.max(np.abs(powers[:-4] - expected) / expected) < 2.5e-7
    np.testing.assert_array_equal(powers[-4:], [0.0, 0.0, np.nan, 1.0])


def bits(case, **options):
    output, grads = case.gradients("cpu", **options)
    return [output, *grads.values()]


def test_same_bits_for_any_number_of_threads(stda_case, threads):
    case = stda_case(shapes=((9, 7), (4, 3)), queries=200, points=4, dim=32, components=4).to(dtype=torch.float32)
    threads(1)
    expected = bits(case)
    for count in (1, 2, 2, 2, 3, 5):
        threads(count)
        for computed, once in zip(bits(case), expected, strict=True):
            assert torch.equal(computed, once)


def test_calls_from_several_threads(stda_case, threads):
    threads(2)
    cases = [stda_case(queries=100, seed=seed).to(dtype=torch.float32) for seed in range(4)]
    expected = [bits(case) for case in cases]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(5):
            for computed, alone in zip(callers.map(bits, cases), expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(computed, alone, strict=True))


class _Outputs(Dataset):
    """Attention computed where the data is loaded."""

    def __init__(self, case):
        self.case = case

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)
        return self.case.run("cpu")


def test_works_in_forked_workers(stda_case, threads):
    threads(2)
    case = stda_case(queries=100).to(dtype=torch.float32)
    expected = case.run("cpu")  # the parent's pool exists, the child has none of its threads
    loader = DataLoader(_Outputs(case), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for output in loader:
        assert torch.equal(output, expected)


@simd.kernel
def _count(me, numbers, done, failing):
    job = jobs.next_job(numbers, me)
    while job >= 0:
        simd.fetch_and_add(done + 8 * job)
        if job == failing:
            raise MemoryError
        job = jobs.next_job(numbers, me)


@simd.kernel
def _count_on_team(parallel, number, threads, *arguments):
    return team.on_team(parallel, number, threads, _count, arguments)


@pytest.mark.parametrize("own_threads", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_jobs_run_once_each_and_failures_are_raised(threads, monkeypatch, own_threads, count):
    if own_threads:  # what macOS and forked processes have
        monkeypatch.setattr(jobs, "pytorch_team", lambda: None)
    done = np.zeros(count + 1, np.int64)
    for number in (1, 2, 3, 7):
        threads(number)
        jobs.run_jobs(_count, _count_on_team, (done.ctypes.data, -1), count)
        assert done.tolist() == [1] * count + [0]
        done[:] = 0
        if count:
            with pytest.raises(MemoryError):
                jobs.run_jobs(_count, _count_on_team, (done.ctypes.data, count - 1), count)
            assert done.max() == 1
            done[:] = 0


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    def double(x):
        return 2 * x

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert simd.kernel(double)(21) == 42


def published_formulation(case):
    """One clip the way the original computes it: a loop over frames, neighbours copied, a grid_sample per level."""
    tensors, shapes = case.tensors, case.others["spatial_shapes"]
    value = tensors["value"][0]
    frames = len(value)
    outputs = []
    for t in range(frames):
        others = torch.cat([value[:t], value[t + 1 :]])
        logits = torch.cat([tensors["logits"][0, t].flatten(2), tensors["other_logits"][0, t].flatten(2)], -1)
        weights = logits.softmax(-1)
        own, rest = weights.split([tensors["logits"].shape[4:].numel(), tensors["other_logits"].shape[4:].numel()], -1)
        total = classic(
            value[t : t + 1], shapes, tensors["reference_points"][0, t], tensors["offsets"][0, t][None], own
        )
        moved = tensors["other_offsets"][0, t].movedim(2, 0)
        shared = rest.unflatten(2, (frames - 1, -1)).movedim(2, 0)
        sums = classic(others, shapes, tensors["other_reference_points"][0, t], moved, shared)
        outputs.append(total.sum(0) + sums.sum(0))
    return torch.stack(outputs)[None]


def classic(value, shapes, reference, offsets, weights):
    frames, _, heads, dim = value.shape
    queries, points = offsets.shape[1], offsets.shape[-2]
    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)
    locations = reference[:, None, :, None] + offsets / size[:, None]
    grids = 2 * locations - 1
    samples, start = [], 0
    for level, (height, width) in enumerate(shapes):
        maps = value[:, start : start + height * width].flatten(2).transpose(1, 2)
        maps = maps.reshape(frames * heads, dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, align_corners=False))
        start += height * width
    weights = weights.reshape(-1, queries, heads, len(shapes) * points).transpose(1, 2)
    stacked = torch.stack(samples, -2).flatten(-2)
    output = (stacked * weights.reshape(-1, 1, queries, len(shapes) * points)).sum(-1)
    return output.view(frames, heads * dim, queries).transpose(1, 2)


def best_of(repeats, function):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.slow
def test_speed_on_the_encoder_shape(stda_case, error, threads):
    threads(2)
    case = stda_case(
        shapes=ENCODER_LEVELS, clips=1, frames=6, targets=6, heads=8, dim=32, queries=1700, points=4, other_points=2
    ).to(dtype=torch.float32)
    assert error(published_formulation(case), case.run("cpu")) < 1e-5
    forward = best_of(5, lambda: case.run("cpu"))
    both = best_of(3, lambda: case.gradients("cpu"))
    reference = best_of(2, lambda: case.run("reference"))
    published = best_of(2, lambda: published_formulation(case))
    reference_both = best_of(1, lambda: case.gradients("reference"))
    print(
        f"forward {1e3 * forward:.0f} ms: {reference / forward:.1f} x reference, "
        f"{published / forward:.1f} x published; "
        f"forward and backward {1e3 * both:.0f} ms: {reference_both / both:.1f} x reference"
    )
    assert reference / forward >= 2
    assert published / forward >= 4
    assert reference_both / both >= 1.7
