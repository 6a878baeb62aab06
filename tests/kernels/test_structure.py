"""How the kernels are built, as far as a program can see it."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from stnet.kernels.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "stnet" / "kernels"
COMPILED = {"jit", "kernel", "helper", "reduction", "intrinsic"}  # decorators of device functions
PARAMETERS = 12
ROW = re.compile(r"\boffsets,\s*logits,\s*other_offsets,\s*other_logits\b")


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_compiled(function: ast.FunctionDef) -> bool:
    called = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(getattr(d, "attr", getattr(d, "id", "")) in COMPILED for d in called)


def test_functions_take_few_parameters():
    found = {
        f"{path.relative_to(ROOT)}:{function.name}": count
        for folder in ("stnet", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for function in functions(path)
        if (count := len([*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs])) > PARAMETERS
        and not is_compiled(function)
    }
    assert found == {}


def test_tensors_are_rarely_listed_by_hand():
    sources = {path: re.sub(r"#.*", "", path.read_text()) for path in (ROOT / "stnet").rglob("*.py")}
    found = Counter({str(path): len(ROW.findall(text)) for path, text in sources.items()})
    assert found.total() <= 7, +found  # a kernel cannot do without


def test_imports_go_in_no_circle():
    """A backend's files, which load when they are used, count like any; what a file does as a command does not."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in KERNELS.rglob("*.py")}
    texts = {name: path.read_text().partition('\nif __name__ == "__main__":')[0] for path, name in names.items()}
    edges = {
        name: {
            imported
            for imported in names.values()
            if re.search(rf"^\s*(from|import) {re.escape(imported)}\b(?!\.)", text, re.MULTILINE)
        }
        for name, text in texts.items()
    }
    while removable := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in removable}
    assert edges == {}


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_hold_what_the_table_promises(name):
    if package := {"cpu": "numba", "triton": "triton"}.get(name):
        pytest.importorskip(package)
    backend = BACKENDS[name]
    assert callable(backend.forward.stda_forward) and callable(backend.forward.msda_forward)
    assert callable(backend.backward.stda_backward) and callable(backend.backward.msda_backward)


def test_a_new_file_of_the_cpu_kernels_changes_what_is_cached(tmp_path):
    pytest.importorskip("numba")
    from stnet.kernels.cpu import simd

    assert simd.source_digest(Path(simd.__file__).parent) == simd._DIGEST
    tmp_path.joinpath("forward.py").write_text("x = 1\n")
    first = simd.source_digest(tmp_path)
    tmp_path.joinpath("softmax.py").write_text("y = 2\n")
    second = simd.source_digest(tmp_path)
    tmp_path.joinpath("softmax.py").write_text("y = 3\n")
    assert len({first, second, simd.source_digest(tmp_path)}) == 3


def test_no_list_in_a_kernel_takes_an_attribute_of_a_configuration():
    """Triton 3.6 takes `config.NAME` in a list for no constant, and compiles nothing; a local `tl.constexpr` is one."""
    found = []
    for path in sorted((ROOT / "stnet" / "kernels" / "triton").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.List):
                continue
            parts = [part for element in node.elts for part in ast.walk(element) if isinstance(part, ast.Attribute)]
            names = [part for part in parts if isinstance(part.value, ast.Name) and part.value.id == "config"]
            found += [f"{path.name}:{node.lineno}: config.{part.attr}" for part in names]
    assert found == []
