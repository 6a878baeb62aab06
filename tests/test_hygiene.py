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
    "encoding of the locale": r"(?m)\.read_text\(\)|(?<!files)\.write_text\((?!.*encoding=)"
    r"|\.open\((?=newline=|\"[rwa]\")(?!.*encoding=)",
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


def test_the_map_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = {
        *ROOT.glob("*"),
        *(path for top in ("stnet", "bench", "tests", "docs") for path in (ROOT / top).rglob("*.*")),
    }
    places = {f"/{path.relative_to(ROOT).as_posix()}" for path in files}
    named = {name for name in re.findall(r"`([\w./]+\.(?:py|json|md))`", text) if "NAME" not in name}
    exceptions = {"utils.py"}  # which there is not
    assert {name for name in named - exceptions if not any(place.endswith(f"/{name}") for place in places)} == set()
    folders = {path.parent for path in SOURCES} - {ROOT, ROOT / "stnet", ROOT / "bench"}
    told = {folder.relative_to(ROOT).as_posix().removeprefix("stnet/") + "/" for folder in folders}
    assert {folder for folder in told if folder not in text} == set()


GROUND = {
    "errors",
    "choices",
    "lazy",
    "files",
    "figures",
    "console",
    "contents",
    "command_line",
    "environment",
    "devices",
    "boxes",
    "json_settings",
    "normalization",
}
"""Modules that any layer may use; they use only one another."""

LAYERS = {
    "kernels": set(),
    "video": set(),
    "model": {"kernels"},
    "data": {"video"},
    "execution": {"model", "data", "kernels"},
    "lesions": {"model", "data", "video"},
    "evaluation": {"execution", "model", "data"},
    "inference": {"evaluation", "lesions", "execution", "model", "data", "video", "kernels"},
    "training": {"evaluation", "execution", "model", "data", "video", "kernels"},
    "integrations": {"kernels"},
}
"""What each folder of the package may import, besides itself and the ground floor."""


def _imports(path: Path) -> set[str]:
    return set(re.findall(r"^\s*(?:from|import) stnet\.(\w+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_flow_one_way(layer):
    used = set().union(*(_imports(path) for path in (ROOT / "stnet" / layer).rglob("*.py")))
    assert used <= LAYERS[layer] | GROUND | {layer}


def test_the_ground_floor_stands_on_itself():
    assert set().union(*(_imports(ROOT / "stnet" / f"{name}.py") for name in GROUND)) <= GROUND
