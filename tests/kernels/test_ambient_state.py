"""No result depends on what a process has set for itself: default dtype and device, NumPy's error state, threads."""

import contextlib

import numpy as np
import pytest
import torch


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "numpy": lambda: np.errstate(all="raise"),
    "one thread": lambda: threads(1),
    "five threads": lambda: threads(5),
}


@pytest.fixture(params=["stda", "msda", "msda-ints"])
def case(request, stda_case, msda_case):
    if request.param == "stda":
        made = stda_case(clips=1, targets=1, queries=3, components=4, dim=5)
    else:
        made = msda_case(ints="ints" in request.param, queries=3, dim=5)
    return made.to(dtype=torch.float32)


@pytest.mark.parametrize("state", STATES)
def test_results_do_not_depend_on(backend, case, state):
    if state == "numpy" and (backend.name, backend.device) == ("triton", "cpu"):
        pytest.skip("Triton's interpreter computes with NumPy")
    weight = torch.linspace(-1.0, 2.0, case.run("reference").numel()).view(case.run("reference").shape)
    expected, expected_grads = backend.gradients(case, weight=weight)
    with STATES[state]():
        output, grads = backend.gradients(case, weight=weight)
    assert output.dtype == torch.float32 and output.device.type == "cpu"
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=0, atol=0)
