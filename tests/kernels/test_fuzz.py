"""A share of the random calls of tests.fuzz.operators."""

from importlib.util import find_spec

import pytest

from tests.fuzz.operators import trial

CALLS = {"reference": 40, "cpu": 60, "triton": 10}


@pytest.mark.parametrize("backend", CALLS)
def test_random_calls_agree_with_float64(backend):
    needed = {"cpu": "numba", "triton": "triton"}.get(backend)
    if needed and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    failures = [wrong for number in range(CALLS[backend]) if (wrong := trial(11, number, backend))]
    assert failures == []
