"""One launch of a kernel as data: run on a device, or compiled ahead of time without one."""

import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stnet.errors import KernelError


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One launch of a `triton.jit` function, as data.

    Attributes:
        grid: programs along x, y, z.
        arguments: run-time arguments by name, tensors and ints, in the order of the function's parameters.
        constants: its `tl.constexpr` parameters by name.
        options: `num_warps` and other compile options.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Mapping[str, int]

    @classmethod
    def of(
        cls,
        kernel: Any,
        grid: tuple[int, int, int],
        arguments: Mapping[str, Any],
        constants: Mapping[str, Any],
        options: Mapping[str, int],
    ) -> "KernelCall":
        """The call with its arguments brought into the order of the kernel's parameters."""
        arguments = {name: arguments[name] for name in kernel.arg_names if name in arguments}
        return cls(kernel=kernel, grid=grid, arguments=arguments, constants=constants, options=options)

    def launch(self) -> Any:
        """Launch on the device of the first tensor, whichever device is current; return Triton's compiled kernel.

        Raises:
            KernelError: Triton lacks on this machine what it compiles with.
        """
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        with on_device(device):
            try:
                return self.kernel[self.grid](**self.arguments, **self.constants, **self.options)
            except Exception as error:
                remedy = _remedy(error)
                if remedy is None:
                    raise
                other_ways = 'or compute on the CPU or by backend="reference"'
                raise KernelError(f"Triton cannot compile for {device} ({error}); {remedy}, {other_ways}") from error

    def ast_source(self):
        """`triton.compiler.ASTSource` of this call; a pointer counts as 16-byte aligned, as PyTorch allocates."""
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        signature = {
            name: "constexpr" if name in self.constants else _type_name(self.arguments[name]) for name in names
        }
        constants = {(names.index(name),): value for name, value in self.constants.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
        return ASTSource(self.kernel, signature, constants, aligned)


def _remedy(error: Exception) -> str | None:
    """What a user can do about an error of Triton's compilation, None for errors of another kind."""
    if "libcuda" in str(error) or "ldconfig" in str(error):
        return "have TRITON_LIBCUDA_PATH name the folder of the driver's libcuda.so.1"
    failed = isinstance(error, FileNotFoundError | subprocess.CalledProcessError)  # the command that CC names, or gcc
    if failed or "Failed to find C compiler" in str(error):
        return "install a C compiler and Python's headers (Debian: gcc python3-dev), which Triton needs once"
    if isinstance(error, OSError):
        return "have TRITON_CACHE_DIR name a folder that can be written"
    if "Cannot find ptxas" in str(error):
        return "have TRITON_PTXAS_PATH name CUDA's assembler"
    return None


def on_device(device: torch.device) -> AbstractContextManager:
    """Make a GPU the current one for a while, where it is not."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(device)


_NOTHING = nullcontext()

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def _type_name(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
