"""The operators in packages that carry deformable attention as a function of their own.

    from stnet.integrations import functions
    functions.install("ultralytics")

The table says which function of which module has which layout; `replace` does the same for any other module, such as
the original repositories of D-FINE, DEIM and RT-DETRv2. A model that was built before keeps the function where its
layers stored it; it is passed too: `install("libreyolo", model)`.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

from torch import nn

from stnet.integrations import layouts, msda

EXTENSION = "extension"
"""In place of a layout: the attribute is a compiled extension, which gets a stand-in."""

TABLE = (
    ("ultralytics.nn.modules.utils", "multi_scale_deformable_attn_pytorch", layouts.by_level),
    ("rfdetr.models.ops.functions.ms_deform_attn_func", "ms_deform_attn_core_pytorch", layouts.heads_first),
    ("libreyolo.models.rtdetr.utils", "deformable_attention_core_func", layouts.by_level),
    ("libreyolo.models.deformable_detr.ms_deform_attn", "ms_deform_attn_core_pytorch", layouts.by_level),
    ("libreyolo.models.lwdetr.nn", "ms_deform_attn_core_pytorch", layouts.heads_first),
    ("libreyolo.models.rfdetr.transformer", "ms_deform_attn_core_pytorch", layouts.heads_first),
    ("libreyolo.models.rtdetrv2.utils", "deformable_attention_core_func_v2", layouts.by_point),
    ("libreyolo.models.dfine.ms_deform", "deformable_attention_core_func_v2", layouts.by_point),
    ("libreyolo.models.deim.ms_deform", "deformable_attention_core_func_v2", layouts.by_point),
    ("libreyolo.models.ec.utils", "deformable_attention_core_func_v2", layouts.by_point),
    ("libreyolo.models.ec.decoder", "_ms_deform_attn_core_pytorch_pose", layouts.by_level),
    ("libreyolo.models.gtr.utils", "deformable_attention_core_func_v2", layouts.by_point),
    ("libreyolo.models.openvocab.ovdeim.decoder", "deformable_attention_core_func_v2", layouts.by_point),
    ("detrex", "_C", EXTENSION),
    ("detrex.layers.multi_scale_deform_attn", "multi_scale_deformable_attn_pytorch", layouts.by_level),
    ("groundingdino", "_C", EXTENSION),
    ("groundingdino.models.GroundingDINO.ms_deform_attn", "multi_scale_deformable_attn_pytorch", layouts.by_level),
)
"""(module, attribute, layout); what it does not list is replaced by `replace`, or by nobody."""


def install(package: str, *models: nn.Module) -> list[str]:
    """Make a package sample with the operators; calling it again changes nothing.

    Args:
        package: The first part of the names in `TABLE`.
        models: Models of this package that were built already.

    Returns:
        What was replaced, as "module.attribute".

    Raises:
        ModuleNotFoundError: The package is not installed.
        ValueError: The table has no row for the package, or this version of it has none of the functions, or one of
            them takes other arguments.
    """
    rows = [row for row in TABLE if row[0].split(".")[0] == package]
    if not rows:
        packages = sorted({module.split(".")[0] for module, *_ in TABLE})
        raise ValueError(f"no function of {package!r} is known, only of {', '.join(packages)}; see functions.replace")
    extensions = [row for row in rows if row[2] is EXTENSION]
    functions = [row for row in rows if row[2] is not EXTENSION]
    for module, attribute, _ in extensions:
        msda.install(f"{module}.{attribute}")
    try:
        importlib.import_module(package)
        missing = [row for row in functions if _find(*row[:2]) is None]
        if missing == functions:
            raise ValueError(f"this version of {package} has no {_names(missing)}")
    except (ImportError, ValueError):
        uninstall(package)
        raise
    if missing:
        warnings.warn(f"this version of {package} has no {_names(missing)}", stacklevel=2)
    for row in functions:
        if row not in missing:
            replace(*row, *models)
    return [f"{module}.{attribute}" for module, attribute, layout in rows if (module, attribute, layout) not in missing]


def uninstall(package: str, *models: nn.Module) -> None:
    """Give the package, and models of it, their own functions back."""
    for module, attribute, layout in TABLE:
        if module.split(".")[0] == package and layout is EXTENSION:
            msda.uninstall(f"{module}.{attribute}")
        elif module.split(".")[0] == package and module in sys.modules:
            restore(module, attribute, *models)


def replace(module: str, attribute: str, layout: Callable, *models: nn.Module) -> None:
    """Replace one function wherever loaded modules and the given models refer to it.

        replace("src.zoo.dfine.utils", "deformable_attention_core_func_v2", layouts.by_point)

    Args:
        module: Where the function is defined.
        attribute: Its name there.
        layout: The function of `layouts` that takes its tensors.
        models: Models that were built already, whose layers may have stored it.

    Raises:
        ModuleNotFoundError: There is no such module.
        AttributeError: The module has no such function.
        ValueError: The function takes other arguments.
    """
    own = getattr(importlib.import_module(module), attribute)
    if hasattr(own, "__stnet__"):
        replacement, own = own, own.__wrapped__
    else:
        replacement = layouts.in_place_of(own, layout)
        replacement.__stnet__ = True
    _exchange(own, replacement, models)


def restore(module: str, attribute: str, *models: nn.Module) -> None:
    """Undo `replace`."""
    replacement = getattr(sys.modules[module], attribute, None)
    if hasattr(replacement, "__stnet__"):
        _exchange(replacement, replacement.__wrapped__, models)


def _names(rows: list[tuple]) -> str:
    return ", ".join(f"{module}.{attribute}" for module, attribute, _ in rows)


def _find(module: str, attribute: str) -> Callable | None:
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        # Another module that is missing, a dependency, is the user's to install.
        if error.name is not None and module.startswith(error.name):
            return None
        raise


def _exchange(old: Callable, new: Callable, models: tuple[nn.Module, ...]) -> None:
    for module in list(sys.modules.values()):
        if issubclass(type(module), ModuleType):
            _exchange_in(vars(module), old, new)
    for model in models:
        for layer in model.modules():
            _exchange_in(vars(layer), old, new)


def _exchange_in(names: dict, old: Callable, new: Callable) -> None:
    for name, item in list(names.items()):
        if item is old:
            names[name] = new
        elif type(item) is functools.partial and item.func is old:
            names[name] = functools.partial(new, *item.args, **item.keywords)
