"""What one warp holds: registers, predicates, constants, memory; how instructions read and write them.

Everything that cannot be evaluated (floating point, values loaded from memory whose contents were not given) is
*unknown*: absent from its bank, None where a value is handed on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bench.sass.cubin import Cubin, Instruction

WARP = 32
_REGISTER = re.compile(r"^(U?R)(\d+|Z)$")
_CONSTANT = re.compile(r"^c\[0x0\]\[(0x[0-9a-f]+)\]$")
_ZERO_SOURCES = {"RZ", "URZ", "SRZ"}
# (threads per block, blocks in the grid) in constant bank 0, before and since sm_100
_LAUNCH_OFFSETS = {False: (0x0, 0xC), True: (0x360, 0x370)}

Value = np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a walk needs to know of a launch.

    `constants` maps kernel parameter index to its bytes (missing: unknown), `memory` base address to contents.
    """

    constants: Mapping[int, bytes]
    memory: Mapping[int, bytes] = field(default_factory=dict)
    program: tuple[int, int, int] = (0, 0, 0)
    grid: tuple[int, int, int] | None = None
    num_warps: int = 1


class WarpState:
    """Registers, predicates and constants of one warp; what is missing in a bank is unknown."""

    def __init__(self, cubin: Cubin, launch: Launch, warp: int):
        self.memory = launch.memory
        self.registers: dict[str, np.ndarray] = {}
        self.predicates: dict[str, np.ndarray] = {}
        self.local: dict[tuple[str, int], Value] = {}
        self.constants = _constant_bank(cubin, launch)
        self.special = _special_registers(launch, warp)

    # -- operands ------------------------------------------------------------------------------------------------

    def guard(self, ins: Instruction) -> Value:
        """Return the lanes that execute an instruction."""
        return np.ones(WARP, bool) if ins.guard is None else self.predicate(ins.guard)

    def predicate(self, name: str) -> Value:
        """Return the lanes in which a predicate holds, `!` heeded."""
        invert, name = name.startswith("!"), name.lstrip("!")
        if name in ("PT", "UPT"):
            return np.full(WARP, not invert)
        value = self.predicates.get(name)
        return value if value is None or not invert else ~value

    def word(self, operand: str, offset: int = 0) -> Value:
        """Return a 32-bit source (`offset` 1: the upper word of a pair) as uint32 lanes, ignoring its sign prefix."""
        name = _plain(operand)
        if name in _ZERO_SOURCES:
            return np.zeros(WARP, np.uint32)
        if register := _REGISTER.match(name):
            return self.registers.get(f"{register[1]}{int(register[2]) + offset}")
        if constant := _CONSTANT.match(name):
            return self.constant(int(constant[1], 16) + 4 * offset)
        number = _immediate(name)
        if number is None:
            return None
        return np.full(WARP, (number >> (32 * offset)) & 0xFFFFFFFF, np.uint32)

    def constant(self, offset: int) -> Value:
        """Return 4 bytes of constant bank 0 in all lanes."""
        data = [self.constants.get(offset + i) for i in range(4)]
        if None in data:
            return None
        return np.full(WARP, int.from_bytes(bytes(data), "little"), np.uint32)

    def integer(self, operand: str, *, signed: bool = False, wide: bool = False) -> Value:
        """Return a source as int64 lanes, its prefix `-`, `~` or `|x|` applied; a 64-bit one wraps."""
        value = self.pair(operand) if wide else self.word(operand)
        if value is None:
            return None
        value = value.astype(np.int64) if wide else _extend(value, signed)
        if "|" in operand:
            value = np.abs(_extend(value.astype(np.uint32), True))
        if operand.startswith("-") and not _is_number(operand):
            return -value if signed or wide else (1 << 32) - value
        if operand.startswith("~"):
            return ~value if signed or wide else value ^ 0xFFFFFFFF
        return value

    def pair(self, operand: str) -> Value:
        """Return a 64-bit source as uint64 lanes."""
        low, high = self.word(operand), self.word(operand, 1)
        if low is None or high is None:
            return None
        return low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))

    # -- results -------------------------------------------------------------------------------------------------

    def write(self, ins: Instruction, register: str, value: Value, words: int = 1) -> None:
        """Store lanes (integers, wrapped to `words` words; None: unknown) under the instruction's guard."""
        match = _REGISTER.match(_plain(register))
        if match is None or match[2] == "Z":
            return
        lanes = self.guard(ins)
        for offset in range(words):
            name = f"{match[1]}{int(match[2]) + offset}"
            new = None if value is None else ((value >> (32 * offset)) & 0xFFFFFFFF).astype(np.uint32)
            self.store(self.registers, name, new, lanes)

    def write_predicate(self, ins: Instruction, name: str, value: Value) -> None:
        """Store a predicate under the instruction's guard."""
        if name not in ("PT", "UPT"):
            self.store(self.predicates, name, value, self.guard(ins))

    @staticmethod
    def store(bank: dict[str, np.ndarray], name: str, new: Value, lanes: Value) -> None:
        """Put new lanes into a bank; what becomes unknown leaves it."""
        if lanes is not None and not lanes.any():
            return
        if new is not None and lanes is not None and not lanes.all():
            old = bank.get(name)
            new = None if old is None else np.where(lanes, new, old)
        if new is None or lanes is None:
            bank.pop(name, None)
        else:
            bank[name] = new


def _constant_bank(cubin: Cubin, launch: Launch) -> dict[int, int]:
    bank: dict[int, int] = {}
    block, grid = _LAUNCH_OFFSETS[cubin.arch >= 100]
    dimensions = [(block, (WARP * launch.num_warps, 1, 1))]
    if launch.grid is not None:
        dimensions.append((grid, launch.grid))
    for start, sizes in dimensions:
        for axis, size in enumerate(sizes):
            bank.update(enumerate(size.to_bytes(4, "little"), start + 4 * axis))
    for position, data in launch.constants.items():
        bank.update(enumerate(data, cubin.parameters[position].offset))
    return bank


def _special_registers(launch: Launch, warp: int) -> dict[str, np.ndarray]:
    lane = np.arange(WARP, dtype=np.uint32)
    zero = np.zeros(WARP, np.uint32)
    x, y, z = (zero + np.uint32(number) for number in launch.program)
    return {
        "SR_TID.X": lane + np.uint32(WARP * warp),
        "SR_TID.Y": zero,
        "SR_TID.Z": zero,
        "SR_TID": lane + np.uint32(WARP * warp),
        "SR_LANEID": lane,
        "SR_CTAID.X": x,
        "SR_CTAID.Y": y,
        "SR_CTAID.Z": z,
        "SR_CgaCtaId": zero,
        "SRZ": zero,
    }


def _extend(value: np.ndarray, signed: bool) -> np.ndarray:
    return value.view(np.int32).astype(np.int64) if signed else value.astype(np.int64)


@cache
def _plain(operand: str) -> str:
    """Without sign prefix and reuse flag; the number itself where it is one."""
    name = operand.removesuffix(".reuse")
    if _is_number(name):
        return name
    return name.strip("-~|").removesuffix(".64").removesuffix(".reuse")


@cache
def _is_number(operand: str) -> bool:
    return re.match(r"^-?(0x[0-9a-f]+|\d)", operand) is not None


@cache
def _immediate(name: str) -> int | None:
    try:
        return int(name, 0)
    except ValueError:
        return None
