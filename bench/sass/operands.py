"""Which operands of a SASS instruction are written and which are read."""

import re

from bench.sass.cubin import Instruction
from bench.sass.state import WarpState

PLAIN_PREDICATE = re.compile(r"^U?P(\d|T)$")
_VECTOR_REGISTER = re.compile(r"^U?R(\d+|Z)")
_NO_DESTINATION = ("ST", "RED", "BAR", "NOP", "MEMBAR", "WARPSYNC", "BSSY", "BSYNC", "BREAK", "DEPBAR", "ERRBAR")
_NO_DESTINATION += ("CCTL", "YIELD", "NANOSLEEP", "FENCE", "UTMA", "SYNCS", "ACQBULK", "PREEXIT", "WARPGROUP", "LDGSTS")
_PAIR_RESULT = {"DADD", "DMUL", "DFMA", "FADD2", "FMUL2", "FFMA2"}
_MATRIX = ("HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "LDSM", "OMMA")


def forget(m: WarpState, ins: Instruction) -> None:
    """Make every register and predicate that the instruction may write unknown."""
    if ins.base.startswith(_NO_DESTINATION):
        return
    words = result_words(ins)
    registers, predicates, _ = destinations(ins)
    for register in registers:
        m.write(ins, register, None, words)
    for predicate in predicates:
        m.write_predicate(ins, predicate, None)


def result_words(ins: Instruction) -> int:
    """Return the number of 32-bit registers that a result takes."""
    if ins.base.startswith(_MATRIX) or "128" in ins.parts or "256" in ins.parts:
        return 4
    if ins.base in _PAIR_RESULT or {"64", "WIDE", "F64", "S64", "U64"} & set(ins.parts):
        return 2
    return 1


def destinations(ins: Instruction) -> tuple[list[str], list[str], list[str]]:
    """Leading registers and predicates that are written, and the remaining (source) operands.

    Written are the predicates before the first register, that register, and the plain predicates after it; a load of
    256 bits names two registers.
    """
    operands = list(ins.operands)
    predicates: list[str] = []
    registers: list[str] = []
    wanted = 2 if "256" in ins.parts else 1
    while operands and PLAIN_PREDICATE.match(operands[0]):
        predicates.append(operands.pop(0))
    while operands and len(registers) < wanted and _VECTOR_REGISTER.match(operands[0]):
        registers.append(operands.pop(0))
    while operands and PLAIN_PREDICATE.match(operands[0]):
        predicates.append(operands.pop(0))
    return registers, predicates, operands


def sources_of(ins: Instruction, count: int) -> tuple[str, list[str], list[str], list[str]]:
    """Destination, carry-out predicates, `count` numeric sources and the trailing predicates."""
    registers, predicates, rest = destinations(ins)
    return registers[0], predicates, rest[:count], rest[count:]
