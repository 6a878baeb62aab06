"""Walk one warp through a kernel's SASS with concrete arguments, to learn how often each instruction runs.

The walk evaluates the integer, predicate and uniform instructions of all 32 lanes; everything it cannot evaluate
(floating point, values loaded from memory whose contents were not given) is *unknown*, and unknown operands give
unknown results. Loop counters and branch conditions follow from the arguments, so trip counts need not be told and
unrolled loops with remainders are counted as they run. Where a branch depends on something unknown the machine
takes the way that issues fewer instructions, since that is where rare repairs (a division's slow path, a tile repeated
after an overflow) are not run, and records it (`Walk.assumptions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.sass.arithmetic import ARITHMETIC
from bench.sass.cubin import Cubin, Instruction
from bench.sass.operands import PLAIN_PREDICATE, forget
from bench.sass.state import WARP, Launch, Value, WarpState
from bench.sass.transfers import TRANSFERS, global_address

_MAX_STEPS = 4_000_000
_GLOBAL_ACCESSES = {"LDG", "LD", "STG", "ST", "RED", "REDG", "ATOM", "ATOMG"}
_SEMANTICS = ARITHMETIC | TRANSFERS


class WalkError(RuntimeError):
    """The walk cannot continue: an undecidable loop, an indirect branch or too many steps."""


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
        """Instructions issued."""
        return sum(self.counts)


def walk(cubin: Cubin, launch: Launch, *, warp: int = 0, trips: Sequence[int] = ()) -> Walk:
    """Issue the instructions of one warp from the kernel's entry to its exit.

    The compiler may have split one loop of the source into an unrolled one and a remainder, so memory contents that
    decide the loop are a better help than `trips`. Each undecidable forward branch or exit goes the shorter way, but
    none jumps over such a loop; where lanes disagree a forward branch falls through, an exit is not taken and a
    backward branch is. All of it is recorded in the assumptions.

    Args:
        cubin: the kernel.
        launch: its arguments, program and grid.
        warp: which of the program's warps.
        trips: iterations of the loops whose back branch is undecidable, in the order in which the walk meets them
            (inner loops first).

    Raises:
        WalkError: a loop is undecidable and `trips` has no number for it.
    """
    best = _Walker(cubin, launch, warp, trips, frozenset()).run()
    targets = {ins.address: ins.target for ins in cubin.instructions}
    tried: set[int] = set()
    while fresh := [at for at in best.undecided if at not in tried]:
        at = fresh[0]
        tried.add(at)
        if any(at < loop < (targets[at] or at) for loop in best.told_loops):
            continue
        other = _Walker(cubin, launch, warp, trips, best.taken | {at}).run()
        if other.length < best.length:
            best = other
    return best


class _Walker:
    """One attempt at a walk: which instruction comes next, and what was counted and assumed."""

    def __init__(self, cubin: Cubin, launch: Launch, warp: int, trips: Sequence[int], taken: frozenset[int]):
        self.code = cubin.instructions
        self.index = {ins.address: i for i, ins in enumerate(self.code)}
        self.state = WarpState(cubin, launch, warp)
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
        lanes = self.state.guard(ins)
        if lanes is None or lanes.any():
            self.active[at] += 1
            if base in _GLOBAL_ACCESSES and global_address(self.state, ins) is None:
                self.scattered[at] += 1
        handler = _SEMANTICS.get(ins.base) or _SEMANTICS.get(ins.base.removeprefix("U")) or forget
        handler(self.state, ins)
        return at + 1

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
        lanes = self.state.guard(ins)
        for operand in ins.operands:
            if PLAIN_PREDICATE.match(operand.lstrip("!")):
                lanes = _both(lanes, self.state.predicate(operand))
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
        """Return whether an undecidable forward branch or exit is taken in this attempt."""
        self.undecided[ins.address] = None
        taken = ins.address in self.taken
        self.assume(ins, "undecidable, " + ("taken" if taken else "not taken"))
        return taken

    def iterate(self, ins: Instruction) -> bool:
        """Return whether an undecidable back branch is taken once more, by the caller's trip counts."""
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


def _both(first: Value, second: Value) -> Value:
    """Three-valued `and`."""
    for one, other in ((first, second), (second, first)):
        if one is None and other is not None and not other.any():
            return other
    return None if first is None or second is None else first & second
