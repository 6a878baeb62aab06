"""Walk one warp through a kernel's SASS with concrete arguments, to learn how often each instruction runs.

The machine evaluates the integer, predicate and uniform instructions of all 32 lanes; everything it cannot evaluate
(floating point, values loaded from memory whose contents were not given) is *unknown*, and unknown operands give
unknown results. Loop counters and branch conditions follow from the arguments, so trip counts need not be told and
unrolled loops with remainders are counted as they run. Where a branch depends on something unknown the machine
takes the way that issues fewer instructions, since that is where rare repairs (a division's slow path, a tile repeated
after an overflow) are not run, and records it (`Walk.assumptions`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bench.sass.arithmetic import ARITHMETIC
from bench.sass.cubin import Cubin, Instruction
from bench.sass.operands import forget
from bench.sass.transfers import TRANSFERS, global_address

WARP = 32
_MAX_STEPS = 4_000_000
_REGISTER = re.compile(r"^(U?R)(\d+|Z)$")
_PREDICATE = re.compile(r"^U?P(\d|T)$")
_CONSTANT = re.compile(r"^c\[0x0\]\[(0x[0-9a-f]+)\]$")
_GLOBAL_ACCESSES = {"LDG", "LD", "STG", "ST", "RED", "REDG", "ATOM", "ATOMG"}
_ZERO_SOURCES = {"RZ", "URZ", "SRZ"}
# (threads per block, blocks in the grid) in constant bank 0, before and since sm_100
_LAUNCH_OFFSETS = {False: (0x0, 0xC), True: (0x360, 0x370)}

_SEMANTICS = ARITHMETIC | TRANSFERS

Value = np.ndarray | None


class WalkError(RuntimeError):
    """The walk cannot continue: an undecidable loop, an indirect branch or too many steps."""


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


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How often the instruction at each index was issued by this warp, and what had to be assumed.

    `active`: the part of `counts` whose guard was not false in all lanes; `scattered`: the part of `active` whose
    memory address depends on loaded data. `undecided`: addresses of forward branches and exits on unknown values;
    `taken`: those of them that were taken; `told_loops`: back branches that followed the given trip counts.
    """

    counts: tuple[int, ...]
    active: tuple[int, ...]
    scattered: tuple[int, ...]
    assumptions: tuple[str, ...]
    undecided: tuple[int, ...]
    taken: frozenset[int]
    told_loops: tuple[int, ...]

    @property
    def length(self) -> int:
        return sum(self.counts)


def walk(cubin: Cubin, launch: Launch, *, warp: int = 0, trips: Sequence[int] = ()) -> Walk:
    """Issue the instructions of one warp from the kernel's entry to its exit.

    `trips`: iterations of the loops whose back branch is undecidable, in the order in which the walk meets them (inner
    loops first). The compiler may have split one loop of the source into an unrolled one and a remainder, so memory
    contents that decide the loop are the better help. Each undecidable forward branch or exit goes the shorter way,
    but none jumps over such a loop; where lanes disagree a forward branch falls through, an exit is not taken and a
    backward branch is. All of it is recorded in the assumptions.

    Raises WalkError where a loop is undecidable and `trips` has no number for it.
    """
    best = Machine(cubin, launch, warp, trips, frozenset()).run()
    targets = {ins.address: ins.target for ins in cubin.instructions}
    tried: set[int] = set()
    while fresh := [at for at in best.undecided if at not in tried]:
        at = fresh[0]
        tried.add(at)
        if any(at < loop < (targets[at] or at) for loop in best.told_loops):
            continue
        other = Machine(cubin, launch, warp, trips, best.taken | {at}).run()
        if other.length < best.length:
            best = other
    return best


class Machine:
    """Registers, predicates and constants of one warp; what is missing in a bank is unknown."""

    def __init__(self, cubin: Cubin, launch: Launch, warp: int, trips: Sequence[int], taken: frozenset[int]):
        self.code = cubin.instructions
        self.index = {ins.address: i for i, ins in enumerate(self.code)}
        self.memory = launch.memory
        self.registers: dict[str, np.ndarray] = {}
        self.predicates: dict[str, np.ndarray] = {}
        self.local: dict[tuple[str, int], Value] = {}
        self.constants = _constant_bank(cubin, launch)
        self.special = _special_registers(launch, warp)
        self.counts = [0] * len(self.code)
        self.active = [0] * len(self.code)
        self.scattered = [0] * len(self.code)
        self.assumptions: dict[str, None] = {}
        self.trips = iter(trips)
        self.loop_trips: dict[int, int] = {}
        self.iterations: dict[int, int] = {}
        self.undecided: dict[int, None] = {}
        self.taken = taken
        self.returns: list[int] = []

    def run(self) -> Walk:
        at = 0
        for _ in range(_MAX_STEPS):
            if at is None or at >= len(self.code):
                return self.result()
            self.counts[at] += 1
            at = self.step(at)
        raise WalkError(f"no exit after {_MAX_STEPS} instructions: is a trip count unbounded?")

    def result(self) -> Walk:
        return Walk(
            counts=tuple(self.counts),
            active=tuple(self.active),
            scattered=tuple(self.scattered),
            assumptions=tuple(self.assumptions),
            undecided=tuple(self.undecided),
            taken=self.taken,
            told_loops=tuple(self.loop_trips),
        )

    def step(self, at: int) -> int | None:
        ins = self.code[at]
        base = ins.base
        if base in ("BRA", "JMP", "CALL", "RET", "EXIT", "BRX", "JMX", "BPT"):
            return self.control(at, ins, base)
        lanes = self.guard(ins)
        if lanes is None or lanes.any():
            self.active[at] += 1
            if base in _GLOBAL_ACCESSES and global_address(self, ins) is None:
                self.scattered[at] += 1
        self.execute(ins)
        return at + 1

    # -- control flow --------------------------------------------------------------------------------------------

    def control(self, at: int, ins: Instruction, base: str) -> int | None:
        if base in ("BRX", "JMX"):
            raise WalkError(f"indirect branch: {ins}")
        condition = self.condition(ins)
        if base in ("EXIT", "BPT"):
            return self.leave(at, ins, condition)
        if base == "RET":
            return self.returns.pop() if self.returns else None
        if not self.decide(ins, condition):
            return at + 1
        if ins.target is None:
            raise WalkError(f"branch without a target: {ins}")
        if base == "CALL":
            self.returns.append(at + 1)
        if ins.target == ins.address:
            return None
        return self.index[ins.target]

    def condition(self, ins: Instruction) -> Value:
        """Lanes that branch: the guard and, for `BRA P1, ...`, the predicate operand."""
        if {"DIV", "CONV"} & set(ins.parts[1:]):
            return np.zeros(WARP, bool)
        lanes = self.guard(ins)
        for operand in ins.operands:
            if _PREDICATE.match(operand.lstrip("!")):
                lanes = _both(lanes, self.predicate(operand))
        return lanes

    def leave(self, at: int, ins: Instruction, condition: Value) -> int | None:
        if condition is None:
            return None if self.choose(ins) else at + 1
        if condition.all():
            return None
        if condition.any():
            self.assume(ins, "lanes disagree, not taken")
        return at + 1

    def decide(self, ins: Instruction, condition: Value) -> bool:
        backward = ins.target is not None and ins.target <= ins.address and ins.base == "BRA"
        if condition is None:
            return self.iterate(ins) if backward else self.choose(ins)
        if condition.all() or not condition.any():
            return bool(condition[0])
        self.assume(ins, "lanes disagree, " + ("taken" if backward else "falls through"))
        return backward

    def choose(self, ins: Instruction) -> bool:
        """Whether an undecidable forward branch or exit is taken in this attempt."""
        self.undecided[ins.address] = None
        taken = ins.address in self.taken
        self.assume(ins, "undecidable, " + ("taken" if taken else "not taken"))
        return taken

    def iterate(self, ins: Instruction) -> bool:
        """Whether an undecidable back branch is taken once more, by the caller's trip counts."""
        if ins.address not in self.loop_trips:
            count = next(self.trips, None)
            if count is None:
                raise WalkError(f"undecidable loop, give its trip count: {ins}")
            self.loop_trips[ins.address] = count
            self.assume(ins, f"undecidable, a loop of {count} iterations as told")
        self.iterations[ins.address] = self.iterations.get(ins.address, 0) + 1
        if self.iterations[ins.address] < self.loop_trips[ins.address]:
            return True
        self.iterations[ins.address] = 0
        return False

    def assume(self, ins: Instruction, what: str) -> None:
        self.assumptions[f"{what}: {ins}"] = None

    # -- operands ------------------------------------------------------------------------------------------------

    def guard(self, ins: Instruction) -> Value:
        return np.ones(WARP, bool) if ins.guard is None else self.predicate(ins.guard)

    def predicate(self, name: str) -> Value:
        invert, name = name.startswith("!"), name.lstrip("!")
        if name in ("PT", "UPT"):
            return np.full(WARP, not invert)
        value = self.predicates.get(name)
        return value if value is None or not invert else ~value

    def word(self, operand: str, offset: int = 0) -> Value:
        """A 32-bit source (`offset` 1: the upper word of a pair) as uint32 lanes, ignoring its sign prefix."""
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
        data = [self.constants.get(offset + i) for i in range(4)]
        if None in data:
            return None
        return np.full(WARP, int.from_bytes(bytes(data), "little"), np.uint32)

    def integer(self, operand: str, *, signed: bool = False, wide: bool = False) -> Value:
        """A source as int64 lanes, its prefix `-`, `~` or `|x|` applied; a 64-bit one wraps."""
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
        """A 64-bit source as uint64 lanes."""
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
        if name not in ("PT", "UPT"):
            self.store(self.predicates, name, value, self.guard(ins))

    @staticmethod
    def store(bank: dict[str, np.ndarray], name: str, new: Value, lanes: Value) -> None:
        if lanes is not None and not lanes.any():
            return
        if new is not None and lanes is not None and not lanes.all():
            old = bank.get(name)
            new = None if old is None else np.where(lanes, new, old)
        if new is None or lanes is None:
            bank.pop(name, None)
        else:
            bank[name] = new

    # -- execution -----------------------------------------------------------------------------------------------

    def execute(self, ins: Instruction) -> None:
        handler = _SEMANTICS.get(ins.base) or _SEMANTICS.get(ins.base.removeprefix("U"))
        if handler is None:
            forget(self, ins)
        else:
            handler(self, ins)


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


def _both(first: Value, second: Value) -> Value:
    """Three-valued `and`."""
    for one, other in ((first, second), (second, first)):
        if one is None and other is not None and not other.any():
            return other
    return None if first is None or second is None else first & second


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
