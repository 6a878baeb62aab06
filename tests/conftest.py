"""Settings every test shares."""

import os
from pathlib import Path

# Read when PyTorch is imported. Training in bfloat16 now and then gave numbers that are not finite by oneDNN's kernels
# for matrix tiles (AMX; PyTorch 2.14.1, a virtual machine under load), and in no case without them.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Processes that share out tests have a core each. Threads of OpenMP wait busily for one another: where cores are taken,
# small models cost ten times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported. Ahead-of-time compilation excludes it, so it runs in subprocesses.
    os.environ["TRITON_INTERPRET"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded numbers and real data beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared material at {SHARED}")
    return SHARED


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
