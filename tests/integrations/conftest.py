"""Packages written for a test, forgotten after it."""

import sys

import pytest


@pytest.fixture
def write_package(tmp_path, monkeypatch):
    """Write files of packages that can be imported during the test."""
    monkeypatch.syspath_prepend(tmp_path)
    written = set()

    def write(files):
        for name, text in files.items():
            written.add(name.split("/")[0])
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in [path.parent, *path.parent.parents]:
                if folder == tmp_path:
                    break
                (folder / "__init__.py").touch()
            path.write_text(text)

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] in written]:
        del sys.modules[name]
