"""Read a cubin: its kernel, parameter layout, resources and disassembled instructions.

Uses the `nvdisasm` and `cuobjdump` that the Triton wheel ships, so no CUDA toolkit and no GPU is needed.
"""

import importlib.util
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*$")
_SCHEDULE = re.compile(r"(?:\s+[&?][^\s&?]+)+$")  # `&req={1,0} &wr=0x5 ?trans5`, as nvdisasm of CUDA 12.8 adds
_LABEL = re.compile(r"^([.$\w]+):\s*$")
_GUARD = re.compile(r"^@(!?U?P(?:\d|T))\s+")
_TARGET = re.compile(r"`\(([.$\w]+)\)")
_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")

_EIATTR_PARAM_CBANK = 0x0A
_EIATTR_KPARAM_INFO = 0x17
_EIATTR_HAS_PAYLOAD = 0x04


class CubinError(ValueError):
    """The bytes are no cubin that can be analysed."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One SASS instruction. `opcode` keeps its modifiers (`LDG.E.128`), `target` is a branch's address."""

    address: int
    opcode: str
    guard: str | None
    operands: tuple[str, ...]
    target: int | None

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The opcode and its modifiers."""
        return tuple(self.opcode.split("."))

    @property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.parts[0]

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{self.address:#06x} {guard}{self.opcode} {', '.join(self.operands)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A kernel parameter's place in constant bank 0, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Cubin:
    """A kernel as compiled. `stack` and `local` bytes per thread are nonzero where registers were spilled."""

    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    local: int
    parameters: tuple[Parameter, ...]
    instructions: tuple[Instruction, ...]


def triton_tool(name: str) -> Path:
    """Return the path of a binary tool (`nvdisasm`, `cuobjdump`) inside the installed Triton wheel.

    Raises:
        FileNotFoundError: Triton, or the tool in it, is missing.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("triton is not installed: pip install triton (Linux only)")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise FileNotFoundError(f"triton ships no {name} at {path}")
    return path


@lru_cache(maxsize=32)
def read_cubin(data: bytes, *, kernel: str | None = None) -> Cubin:
    """Disassemble a cubin of one kernel (of several: the one called `kernel`).

    Raises:
        CubinError: the bytes are no cubin, or the kernel cannot be told.
    """
    sections = _sections(data)
    entries = [name.removeprefix(".nv.info.") for name in sections if name.startswith(".nv.info.")]
    if kernel is None:
        if len(entries) != 1:
            raise CubinError(f"expected one kernel, found {entries}: pass kernel=")
        kernel = entries[0]
    if kernel not in entries:
        raise CubinError(f"no kernel {kernel!r} in this cubin, only {entries}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(data)
        text = _call("nvdisasm", "-c", "-ndf", str(path))
        resources = _call("cuobjdump", "--dump-resource-usage", str(path))
    usage = {name: tuple(map(int, rest)) for name, *rest in _RESOURCES.findall(resources)}
    if kernel not in usage:
        raise CubinError(f"cuobjdump names no resources of {kernel!r}")
    registers, stack, shared, local = usage[kernel]
    arch = re.search(r"\bsm_(\d+)|EF_CUDA_SM(\d+)", text)
    if arch is None:
        raise CubinError("nvdisasm names no architecture")
    return Cubin(
        kernel=kernel,
        arch=int(arch[1] or arch[2]),
        registers=registers,
        stack=stack,
        shared=shared,
        local=local,
        parameters=_parameters(sections[f".nv.info.{kernel}"]),
        instructions=_instructions(text, kernel),
    )


def _call(tool: str, *arguments: str) -> str:
    done = subprocess.run([triton_tool(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CubinError(f"{tool} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _sections(data: bytes) -> dict[str, bytes]:
    """Contents of the ELF sections that have any, by name."""
    if data[:5] != b"\x7fELF\x02":
        raise CubinError("not a cubin: no 64-bit ELF header")
    try:
        (table,) = struct.unpack_from("<Q", data, 40)
        entry_size, count, names_index = struct.unpack_from("<HHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQ", data, table + i * entry_size) for i in range(count)]
        names_start, names_size = headers[names_index][4:6]
    except (struct.error, IndexError, OverflowError) as error:
        raise CubinError(f"not a cubin: broken section table ({error})") from error
    names = data[names_start : names_start + names_size]
    no_bits = 8
    return {
        names[name:].split(b"\0", 1)[0].decode(): data[start : start + size]
        for name, kind, _, _, start, size in headers
        if kind != no_bits
    }


def _parameters(info: bytes) -> tuple[Parameter, ...]:
    """Parameter layout from a `.nv.info.<kernel>` section: records of (format, attribute, size, payload)."""
    base, found, at = 0, {}, 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != _EIATTR_HAS_PAYLOAD:
            continue
        if attribute == _EIATTR_PARAM_CBANK:
            (base,) = struct.unpack_from("<H", info, at + 4)
        elif attribute == _EIATTR_KPARAM_INFO:
            ordinal, offset, flags = struct.unpack_from("<HHI", info, at + 4)
            found[ordinal] = (offset, flags >> 18)
        at += size
    return tuple(Parameter(offset=base + found[i][0], size=found[i][1]) for i in sorted(found))


def _instructions(text: str, kernel: str) -> tuple[Instruction, ...]:
    raw: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    pending: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("//-----"):
            inside = f".text.{kernel} " in line
        if not inside:
            continue
        if label := _LABEL.match(line):
            pending.append(label[1])
        elif code := _LINE.match(line):
            address = int(code[1], 16)
            labels.update(dict.fromkeys(pending, address))
            pending.clear()
            raw.append((address, _SCHEDULE.sub("", code[2])))
    if not raw:
        raise CubinError(f"nvdisasm prints no code of {kernel!r}")
    return tuple(_parse(address, body, labels) for address, body in raw)


def _parse(address: int, body: str, labels: dict[str, int]) -> Instruction:
    guard = _GUARD.match(body)
    if guard:
        body = body[guard.end() :]
    opcode, _, rest = body.partition(" ")
    target = _TARGET.search(rest)
    return Instruction(
        address=address,
        opcode=opcode,
        guard=guard[1] if guard else None,
        operands=tuple(part.strip() for part in _split(rest)) if rest.strip() else (),
        target=labels.get(target[1]) if target else None,
    )


def _split(operands: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, current = [], 0, ""
    for character in operands:
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
            continue
        depth += (character in "[(") - (character in "])")
        current += character
    return [*parts, current]
