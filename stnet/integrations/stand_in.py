"""Stand-ins for compiled extension modules, found by Python's own import system."""

import dis
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, FunctionType, ModuleType


class StandIn(MetaPathFinder, Loader):
    """A module of functions that answers `import NAME` wherever and whenever it is written.

    It is a finder, not only an entry of `sys.modules`, so that `find_spec` knows it and that a package imported later
    gets it as an attribute, as it would get a compiled extension.
    """

    def __init__(self, name: str, functions: Mapping[str, Callable], missing: Callable[[str], Callable] | None = None):
        """Prepare a module; nothing changes before `install`.

        Args:
            name: What the extension is imported as.
            functions: What it offers.
            missing: Answers every other name, where importing code asks for names that it may never call.
        """
        self.module = ModuleType(name, "A stand-in for a compiled extension, by stnet.")
        self.module.__dict__.update(functions)
        if missing is not None:
            self.module.__dict__["__getattr__"] = missing
        self._replaced: ModuleType | None = None
        self._bound: list[tuple[dict, str]] = []

    @property
    def name(self) -> str:
        """Return the name the extension is imported as."""
        return self.module.__name__

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """Answer the import system."""
        return ModuleSpec(fullname, self, origin=__file__) if fullname == self.name else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the one module, however often it is imported."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the functions are there already."""

    def install(self) -> None:
        """Take the place of the extension, also in code whose import of it failed and was caught."""
        self._replaced = sys.modules.pop(self.name, None)
        sys.meta_path.insert(0, self)
        package = self.name.rpartition(".")[0]
        if not package or package in sys.modules:
            importlib.import_module(self.name)
        for namespace, name in _unresolved(self.module):
            self._bound.append((namespace, name))
            namespace[name] = self.module

    def uninstall(self) -> None:
        """Undo `install` for code imported from now on, and where the import had failed."""
        sys.meta_path.remove(self)
        sys.modules.pop(self.name, None)
        package, _, leaf = self.name.rpartition(".")
        vars(sys.modules.get(package, ModuleType(package))).pop(leaf, None)
        if self._replaced is not None:
            sys.modules[self.name] = self._replaced
            if package in sys.modules:
                setattr(sys.modules[package], leaf, self._replaced)
        for namespace, name in self._bound:
            namespace.pop(name, None)
        self._bound.clear()


def installed(name: str) -> StandIn | None:
    """Return the stand-in that answers `import name`, if there is one."""
    return next((finder for finder in sys.meta_path if isinstance(finder, StandIn) and finder.name == name), None)


def _unresolved(extension: ModuleType) -> Iterator[tuple[dict, str]]:
    """Find global names that loaded code takes deformable attention from, and that mean nothing there.

    Such code wrote `try: import EXTENSION as X ... except ImportError`, and fails with "name 'X' is not defined" (or
    "'NoneType' object has no attribute") when `X.function(...)` is reached.
    """
    wanted = {name for name in vars(extension) if name.startswith("ms_deform_attn")}
    found = set()
    for module in list(sys.modules.values()):
        if not issubclass(type(module), ModuleType):
            continue
        for function in _functions(vars(module)):
            for name in _owners(function.__code__, wanted):
                globals_ = function.__globals__
                if globals_.get(name) is None and (id(globals_), name) not in found:
                    found.add((id(globals_), name))
                    yield globals_, name


def _functions(namespace: Mapping) -> Iterator[FunctionType]:
    """List the functions of a module and of the classes in it, below their decorators.

    `type(x)`, not `isinstance`: proxies that load something when they are looked at are left alone.
    """
    items = list(namespace.values())
    items += [member for item in items if issubclass(type(item), type) for member in list(vars(item).values())]
    for item in items:
        if type(item) in (staticmethod, classmethod):
            item = item.__func__
        while type(item) is FunctionType and "__wrapped__" in vars(item):
            item = item.__wrapped__
        if type(item) is FunctionType:
            yield item


def _owners(code: CodeType, attributes: set[str]) -> Iterator[str]:
    """List the globals X of expressions `X.attribute` in a function's code."""
    if attributes.isdisjoint(code.co_names):
        return
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for owner, attribute in itertools.pairwise(steps):
        if owner.opname == "LOAD_GLOBAL" and attribute.argval in attributes:
            yield owner.argval
