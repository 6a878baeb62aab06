"""Reading files of weights without running anything that they hold: what a file is, and what is in it.

The contents decide what a file is, not its name: a renamed file loads, and a file that holds no weights (a pointer of
git-lfs, a page of a failed download, an ONNX model) is named for what it is. Of a pickle only tensors, containers,
numbers, paths and `argparse.Namespace` are built, with stand-ins for the classes that could reach beyond.
"""

import argparse
import datetime
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from stnet.console import printable
from stnet.contents import HEAD_BYTES, describe
from stnet.errors import CheckpointError

BEST, EXPORTED, TRAINING_STATE = "best.safetensors", "model.safetensors", "state.pt"
"""Names that tell a folder: of a training run, of an export, and of the state that a run resumes from."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header that safetensors allows."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module"})
"""Parts that DataParallel, torch.compile and FSDP add to the names of parameters."""


COUNTER = "num_batches_tracked"
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int64", "int32", "int16")
"""The one integer buffer of a model, and the dtypes that weights may come in."""

LISTED = 6
"""Names listed of each kind of problem."""


def weights_in(folder: Path) -> Path:
    """Return the file with the weights of a folder: the best ones of a training run, or an exported model.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / TRAINING_STATE).is_file():
        raise CheckpointError(
            f"{folder}: the state that `train.py --resume` continues from; the weights to use are {_usable(folder)}"
        )
    for name in (BEST, EXPORTED):
        if (folder / name).is_file():
            return folder / name
    others = sorted(printable(path.name) for path in folder.glob("*.safetensors"))
    hint = f"; name a file of it, such as {others[0]}" if others else ""
    raise CheckpointError(f"{folder}: a folder without {BEST} (of a training run) or {EXPORTED} (of an export){hint}")


def _usable(state: Path) -> Path:
    """Return the best weights of the run of a state; before its first evaluation the average, if it keeps one."""
    best, average = state.parent.parent / BEST, state / "average.safetensors"
    return average if average.is_file() and not best.is_file() else best


def read_weights(path: Path) -> tuple[Any, dict[str, str] | None]:
    """Read a file of weights.

    Returns:
        Tensors by name and the metadata of a safetensors file; or what a PyTorch file holds, and None.

    Raises:
        CheckpointError: no file of weights, a damaged one, or one that asks for other objects.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if _is_safetensors(head):
        return _read_safetensors(path)
    foreign = _foreign(head, path)
    if foreign is not None:
        raise CheckpointError(f"{path}: {foreign}")
    if path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path}: not a readable safetensors file; is it complete?")
    return safe_torch_load(path), None


def safe_torch_load(path: Path) -> Any:
    """Unpickle tensors, plain containers, numbers, paths and `argparse.Namespace`, and refuse everything else.

    Raises:
        CheckpointError: not a PyTorch file, or one that asks for anything else.
    """
    with torch.serialization.safe_globals(_allowed()):
        try:
            with open(path, "rb") as file:  # PyTorch judges a name by its suffix
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: {_refusal(error, path)}") from error
        except MemoryError as error:
            raise CheckpointError(f"{path}: does not fit into memory; is it damaged?") from error
        except (
            *(RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
            *(OverflowError, RecursionError, AssertionError, zipfile.BadZipFile),
        ) as error:
            # PyTorch's own reason speaks of its insides, and may advise to load the file without care.
            raise CheckpointError(
                f"{path}: not a readable PyTorch checkpoint ({type(error).__name__}); is the file complete?"
            ) from error


def tensors_of(state: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the weights that a PyTorch file holds; arrays become tensors.

    Raises:
        CheckpointError: naming what else it holds.
    """
    expected = "a dictionary with the weights, or with them under 'model'"
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}; expected {expected}")
    state = {key: torch.from_numpy(np.array(v)) if _is_array(v) else v for key, v in state.items()}
    wrong = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong or not state:
        listed = ", ".join(printable(str(key)) for key in wrong[:4]) or "nothing"
        raise CheckpointError(f"{path}: holds {listed} that are no weights; expected {expected}")
    return state


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def unwrapped(state: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return weights under their own names, without what DataParallel, torch.compile and FSDP add.

    Raises:
        CheckpointError: two of them have the same name then.
    """
    result: dict[str, Any] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in result:
            raise CheckpointError(f"{path}: holds {printable(name)} twice, as {printable(key)} too; which is meant?")
        result[name] = value
    return result


def check_values(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Require that weights can become float32 parameters without losing what they say.

    Quantized weights of 8 bits would become zeros, for example, since their scales are kept elsewhere.

    Raises:
        CheckpointError: naming them with their dtypes.
    """
    problems = [problem for name, value in state.items() if (problem := _unsuitable(name, value))]
    if problems:
        more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise CheckpointError(
            f"{path}: {'; '.join(problems[:LISTED])}{more}; expected finite numbers in float32, float16 or bfloat16"
        )


def _unsuitable(name: str, value: Tensor) -> str | None:
    name, given = printable(name), str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return f"{name} is no plain tensor ({given}, {value.layout})"
    if name.endswith(COUNTER):
        return None if given in INTEGERS else f"{name} is {given} instead of int64"
    if given not in FLOATS:
        return f"{name} is {given}"
    return None if value.float().isfinite().all() else f"values that are not finite in {name}"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = printable(str(error).split("\n")[0])
        raise CheckpointError(f"{path}: not a readable safetensors file ({reason}); is it complete?") from error


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def _foreign(head: bytes, path: Path) -> str | None:
    """Return what the file is instead of weights, with the remedy; None where it may hold weights."""
    if (
        head[:1] == b"\x08"
        and head[1:2] < b"\x20"
        and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x32", b"\x3a", b"\x42")
    ):
        return "an ONNX model, from which weights are not read; use the .safetensors or .pth file it was made from"
    if head.startswith(b"PK"):
        return _foreign_archive(path)
    found = describe(head)
    return found and f"{found[0]}, not a checkpoint; {found[1] or 'name the file with the weights'}"


def _foreign_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged archive; is the file complete?"
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in last:
        return (
            "a TorchScript program, from which weights are not read; use the .pth or .safetensors file it was made from"
        )
    if "archive_format" in last or "serialized_exported_program.json" in last:
        return "a program of torch.export; use the model.safetensors that was written beside it"
    if "data.pkl" not in last:
        return "an archive (zip) without weights of PyTorch; if it holds a checkpoint, unpack it first"
    return None


def _refusal(error: Exception, path: Path) -> str:
    names = _unsafe(path) or re.findall(r"GLOBAL (\S+) w", str(error))
    remedy = "save its weights alone, torch.save({'model': model.state_dict()}, FILE), where its code is at hand"
    if not names:
        return f"refused, since it is damaged or a pickle of another kind; {remedy}"
    listed = ", ".join(printable(name) for name in sorted(names)[:4]) + (" ..." if len(names) > 4 else "")
    return f"refused, since it holds objects other than weights: {listed}; {remedy}"


def _unsafe(path: Path) -> list[str]:
    """Return the names of what the file asks for beyond what is allowed, as far as can be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file made to be refused may fail in any way here, where only the message is at stake
        return []


class _PickledDtype:
    """Stands in for `numpy.dtype`, whose state can be forged to read memory as objects: plain numbers and text only."""

    def __init__(self, name: str, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[biufcSU]\d{1,5}", name):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({name!r}) was not allowed")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("GLOBAL numpy.dtype was not allowed with parts")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray(np.ndarray):
    """Stands in for `numpy.ndarray`, with numbers and text only."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("GLOBAL numpy.ndarray was not allowed with objects")
        super().__setstate__((version, shape, dtype.dtype, fortran, data))


def _empty_array(*_: object) -> _PickledArray:
    return np.ndarray.__new__(_PickledArray, (0,), np.uint8)


def _scalar(dtype: _PickledDtype, data: bytes) -> np.generic:
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("GLOBAL numpy.scalar was not allowed with objects")
    return np.frombuffer(data, dtype.dtype)[0]


def _plain_dict(*_: object) -> dict:
    """Return what stands in for a `defaultdict`: what it would make of missing keys does not matter here."""
    return {}


def _allowed() -> list[Callable | tuple[Callable, str]]:
    numpy = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (("scalar", _scalar), ("_reconstruct", _empty_array))
    ]
    paths = [
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")  # Python 3.13 moved them
        for name, pure in (
            *((name, pathlib.PurePosixPath) for name in ("PosixPath", "PurePosixPath")),
            *((name, pathlib.PureWindowsPath) for name in ("WindowsPath", "PureWindowsPath")),
        )
    ]
    plain = [int, float, bool, str, list, dict, tuple, frozenset, slice]
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    return [
        *(argparse.Namespace, types.SimpleNamespace, *plain, *times),
        *numpy,
        *paths,
        (_PickledDtype, "numpy.dtype"),
        (_PickledArray, "numpy.ndarray"),
        (_plain_dict, "collections.defaultdict"),
    ]
