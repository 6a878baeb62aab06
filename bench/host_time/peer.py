"""The public operator of deformops 3.0.1 (PyPI, MIT) on tensors of the CPU, its Triton kernels under our driver.

It asks for Python 3.12. Under an older one (`pip install --no-deps --ignore-requires-python --target FOLDER
deformops==3.0.1`) the type parameters of its class statements and `typing.override`, which do nothing at run time, are
taken out as it is imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import re
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

PACKAGE = "deformops"
_TYPE_PARAMETERS = re.compile(r"^class (\w+)\[(?:[^\[\]]|\[(?:[^\[\]]|\[[^\]]*\])*\])*\](?=[(:])", re.MULTILINE)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        source = _TYPE_PARAMETERS.sub(r"class \1", Path(self.path).read_text(encoding="utf-8"))
        return self.source_to_code(source.replace("OpCallable", "object"), self.path)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, folder: str):
        self.folder = folder

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path or [self.folder], target)
        if spec is not None and (spec.origin or "").endswith(".py") and sys.version_info < (3, 12):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


@contextmanager
def operator(folder: str) -> Iterator[Callable]:
    """Its `msda` (value, spatial_shapes, level_start_index, sampling_locations, attention_weights) from a folder.

    That its tensors are not on a GPU is kept from it where it asks; its own choice of a backend, its checks and its
    launch run as they do on an H100.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typing, "override", lambda function: function, raising=False)
        patch.setattr(sys, "meta_path", [_Finder(folder), *sys.meta_path])
        patch.setattr(torch.cuda, "is_available", lambda: True)
        registry = importlib.import_module(f"{PACKAGE}.registry")
        registry.msda._ensure_backends_loaded()
        importlib.import_module(f"{PACKAGE}.backends.triton.msda_query_tiled")  # it would be at the first call
        patch.undo()
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(registry.msda, "_select", lambda context: [(registry.Backend.TRITON, {"fp32acc": False})])
        patch.setattr(registry.msda, "_supports", {})
        yield registry.msda
