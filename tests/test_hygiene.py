"""Rules about the source itself: safe loading, no code from files, no network, imports that stay light."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for folder in ("stnet", "bench") for p in (ROOT / folder).rglob("*.py")) + sorted(ROOT.glob("*.py"))

FORBIDDEN = {
    "unsafe torch.load": r"torch\.load\((?![^)]*weights_only=True)",
    "pickle": r"pickle\.(load|loads|Unpickler)\b",
    "yaml.load": r"yaml\.(load|unsafe_load)\(",
    "eval or exec": r"(?<![\w.])(eval|exec)\(",
    "bare except": r"except\s*:",
    "archive extraction": r"\.extractall\(",
    "network": r"^\s*(import|from) (requests|urllib\.request|http\.client|socket)\b",
}


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_sources_avoid(rule):
    pattern = re.compile(FORBIDDEN[rule], re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}" for path in SOURCES for match in pattern.finditer(path.read_text())
    ]
    assert found == []


def test_sources_know_no_other_machine():
    pattern = re.compile(r"(?<![\w.])/(work|root|home)/\w")
    assert [str(path) for path in SOURCES if pattern.search(path.read_text())] == []


@pytest.mark.parametrize(
    ("absent", "statement"),
    [
        ("triton", "from stnet.kernels import spatial_temporal_deform_attn, ms_deform_attn"),
        ("numba", "from stnet.kernels import spatial_temporal_deform_attn, ms_deform_attn"),
        ("triton", "import stnet; stnet.VideoDetector; stnet.load"),
        ("pydicom", "import stnet.inference.cli, stnet.training.cli"),
        ("av", "import stnet; from stnet.model.detector import Detector"),
    ],
)
def test_imports_without_an_optional_package(absent, statement):
    code = f"import sys; sys.modules[{absent!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layer", ["kernels", "data", "video", "model", "evaluation", "inference", "training"])
def test_imports_flow_one_way(layer):
    allowed = {
        "kernels": {"kernels", "errors"},
        "data": {"data", "video", "errors"},
        "video": {"video", "errors"},
        "model": {"model", "kernels", "errors"},
        "evaluation": {"evaluation", "model", "data", "errors"},
        "inference": {"inference", "evaluation", "model", "data", "video", "errors", "kernels"},
        "training": {"training", "evaluation", "model", "data", "video", "errors", "kernels"},
    }[layer]
    used = set()
    for path in (ROOT / "stnet" / layer).rglob("*.py"):
        used |= set(re.findall(r"^\s*(?:from|import) stnet\.(\w+)", path.read_text(), re.MULTILINE))
    assert used <= allowed
