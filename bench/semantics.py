"""What the SASS instructions that can steer control flow compute, lane by lane.

Each function takes the machine of `bench.warp` and an instruction. Instructions without an entry make their
destinations unknown (`forget`), which is always safe: a branch on an unknown value is reported, never guessed silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bench.cubin import Instruction

if TYPE_CHECKING:
    from bench.warp import Value
    from bench.warp import _Machine as Machine

_PLAIN_PREDICATE = re.compile(r"^U?P(\d|T)$")
_VECTOR_REGISTER = re.compile(r"^U?R(\d+|Z)")
_MEMORY_OPERAND = re.compile(r"\[([^\[\]]+)\]$")
_NO_DESTINATION = ("ST", "RED", "BAR", "NOP", "MEMBAR", "WARPSYNC", "BSSY", "BSYNC", "BREAK", "DEPBAR", "ERRBAR")
_NO_DESTINATION += ("CCTL", "YIELD", "NANOSLEEP", "FENCE", "UTMA", "SYNCS", "ACQBULK", "PREEXIT", "WARPGROUP", "LDGSTS")
_PAIR_RESULT = {"DADD", "DMUL", "DFMA", "FADD2", "FMUL2", "FFMA2"}
_MATRIX = ("HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "LDSM", "OMMA")
_COMPARE = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


def forget(m: Machine, ins: Instruction) -> None:
    """Make every register and predicate that the instruction may write unknown."""
    if ins.base.startswith(_NO_DESTINATION):
        return
    words = _result_words(ins)
    registers, predicates, _ = _destinations(ins)
    for register in registers:
        m.write(ins, register, None, words)
    for predicate in predicates:
        m.write_predicate(ins, predicate, None)


def _result_words(ins: Instruction) -> int:
    if ins.base.startswith(_MATRIX) or "128" in ins.parts or "256" in ins.parts:
        return 4
    if ins.base in _PAIR_RESULT or {"64", "WIDE", "F64", "S64", "U64"} & set(ins.parts):
        return 2
    return 1


def _destinations(ins: Instruction) -> tuple[list[str], list[str], list[str]]:
    """Leading registers and predicates that are written, and the remaining (source) operands.

    Written are the predicates before the first register, that register, and the plain predicates after it; a load of
    256 bits names two registers.
    """
    operands = list(ins.operands)
    predicates: list[str] = []
    registers: list[str] = []
    wanted = 2 if "256" in ins.parts else 1
    while operands and _PLAIN_PREDICATE.match(operands[0]):
        predicates.append(operands.pop(0))
    while operands and len(registers) < wanted and _VECTOR_REGISTER.match(operands[0]):
        registers.append(operands.pop(0))
    while operands and _PLAIN_PREDICATE.match(operands[0]):
        predicates.append(operands.pop(0))
    return registers, predicates, operands


def _sources(ins: Instruction, count: int) -> tuple[str, list[str], list[str], list[str]]:
    """Destination, carry-out predicates, `count` numeric sources and the trailing predicates."""
    registers, predicates, rest = _destinations(ins)
    return registers[0], predicates, rest[:count], rest[count:]


def _add(*terms: Value) -> Value:
    return None if any(term is None for term in terms) else sum(terms[1:], terms[0])


def _carries(m: Machine, ins: Instruction, names: list[str]) -> list[Value]:
    if "X" not in ins.parts:
        return []
    return [None if (bit := m.predicate(name)) is None else bit.astype(np.int64) for name in names]


def _write_carries(m: Machine, ins: Instruction, names: list[str], total: Value) -> None:
    for least, name in enumerate(names, start=1):
        m.write_predicate(ins, name, None if total is None else (total >> 32) >= least)


def _iadd3(m: Machine, ins: Instruction) -> None:
    destination, outs, sources, ins_predicates = _sources(ins, 2 if ins.base in ("IADD", "UIADD", "VIADD") else 3)
    if "64" in ins.parts:
        total = _add(*(m.integer(source, wide=True) for source in sources))
        m.write(ins, destination, total, 2)
        for name in outs:
            m.write_predicate(ins, name, None)
        return
    total = _add(*(m.integer(source) for source in sources), *_carries(m, ins, ins_predicates))
    m.write(ins, destination, total)
    _write_carries(m, ins, outs, total)


def _imad(m: Machine, ins: Instruction) -> None:
    destination, outs, (first, second, third), rest = _sources(ins, 3)
    signed = "U32" not in ins.parts
    a, b = m.integer(first, signed=signed), m.integer(second, signed=signed)
    product = np.zeros(32, np.int64) if _is_zero(a) or _is_zero(b) else None if a is None or b is None else a * b
    if "HI" in ins.parts or "WIDE" in ins.parts:
        total = _add(product, m.integer(third, wide=True), *_carries(m, ins, rest))
        if "WIDE" in ins.parts:
            m.write(ins, destination, total, 2)
        else:
            m.write(ins, destination, None if total is None else total >> 32)
        for name in outs:
            m.write_predicate(ins, name, None)
        return
    m.write(ins, destination, _add(product, m.integer(third), *_carries(m, ins, rest)))
    for name in outs:
        m.write_predicate(ins, name, None)


def _is_zero(value: Value) -> bool:
    return value is not None and not value.any()


def _lea(m: Machine, ins: Instruction) -> None:
    high = "HI" in ins.parts
    extended = any(part.startswith("SX32") for part in ins.parts)
    count = 4 if high and not extended else 3
    destination, outs, sources, rest = _sources(ins, count)
    shift = m.integer(sources[-1])
    a, b = m.integer(sources[0]), m.integer(sources[1])
    if high and a is not None and shift is not None:
        upper = m.integer(sources[0], signed=True) >> 32 if extended else m.integer(sources[2])
        a = None if upper is None else _funnel_upper(a, upper, shift)
    elif a is not None and shift is not None:
        a = (a << shift) & 0xFFFFFFFF
    total = None if shift is None else _add(a, b, *_carries(m, ins, rest))
    m.write(ins, destination, total)
    _write_carries(m, ins, outs, total)


def _funnel_upper(low: np.ndarray, high: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Upper word of `{high, low} << shift`."""
    both = (low & 0xFFFFFFFF).astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    return ((both << shift.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def _lop3(m: Machine, ins: Instruction) -> None:
    registers, outs, rest = _destinations(ins)
    words = [m.integer(source) for source in rest[:3]]
    table = int(rest[3], 0)
    result = _lookup(words, table)
    m.write(ins, registers[0], result)
    if not outs:
        return
    extra = m.predicate(rest[4]) if len(rest) > 4 else np.zeros(32, bool)
    nonzero = None if result is None or extra is None else ((result & 0xFFFFFFFF) != 0)
    if nonzero is not None:
        nonzero = nonzero & extra if "PAND" in ins.parts else nonzero | extra
    m.write_predicate(ins, outs[0], nonzero)


def _lookup(words: list[Value], table: int) -> Value:
    """The three-input truth table applied bit by bit; an input the table ignores may be unknown."""
    live = [bit for bit in range(8) if table >> bit & 1]
    matters = [any((table >> bit & 1) != (table >> (bit ^ 4 >> i) & 1) for bit in range(8)) for i in range(3)]
    if any(word is None and needed for word, needed in zip(words, matters, strict=True)):
        return None
    known = [np.zeros(32, np.int64) if word is None else word for word in words]
    result = np.zeros(32, np.int64)
    for bit in live:
        term = np.full(32, 0xFFFFFFFF, np.int64)
        for i, word in enumerate(known):
            term &= word if bit & (4 >> i) else ~word
        result |= term
    return result & 0xFFFFFFFF


def _plop3(m: Machine, ins: Instruction) -> None:
    outs, rest = [], list(ins.operands)
    while len(outs) < 2 and _PLAIN_PREDICATE.match(rest[0]):
        outs.append(rest.pop(0))
    inputs = [m.predicate(name) for name in rest[:3]]
    for name, table in zip(outs, rest[3:5], strict=False):
        words = [None if value is None else np.where(value, 0xFFFFFFFF, 0).astype(np.int64) for value in inputs]
        result = _lookup(words, int(table, 0))
        m.write_predicate(ins, name, None if result is None else result != 0)


def _shf(m: Machine, ins: Instruction) -> None:
    destination, _, sources, _ = _sources(ins, 3)
    left = "L" in ins.parts
    signed = any(part in ("S32", "S64") for part in ins.parts)
    a, shift = m.integer(sources[0]), m.integer(sources[1])
    c = m.integer(sources[2], signed=signed and not left)
    high = "HI" in ins.parts
    single = high and not {"U64", "S64"} & set(ins.parts) and not left
    if shift is None or (c is None and (high or not left)) or (a is None and not single):
        m.write(ins, destination, None)
        return
    shift = shift & 31 if "W" in ins.parts else np.minimum(shift, 63)
    if single:
        result = c >> shift
    elif left:
        result = _funnel_upper(a, c, shift) if high else np.where(shift < 32, a << np.minimum(shift, 31), 0)
    else:
        both = (a & 0xFFFFFFFF) | (c << 32)
        result = both >> shift if signed else (both.view(np.uint64) >> shift.astype(np.uint64)).view(np.int64)
        result = result >> 32 if high else result
    m.write(ins, destination, result)


def _shift(m: Machine, ins: Instruction) -> None:
    destination, _, (first, by), _ = _sources(ins, 2)
    right = ins.base.endswith("SHR")
    value, shift = m.integer(first, signed=right and "U32" not in ins.parts), m.integer(by)
    if value is None or shift is None:
        m.write(ins, destination, None)
        return
    shift = np.minimum(shift, 32)
    m.write(ins, destination, value >> shift if right else value << shift)


def _isetp(m: Machine, ins: Instruction) -> None:
    outs, rest = [], list(ins.operands)
    while _PLAIN_PREDICATE.match(rest[0]) and len(outs) < 2:
        outs.append(rest.pop(0))
    wide = any(part in ("U64", "S64", "64") for part in ins.parts)
    signed = not {"U32", "U64"} & set(ins.parts)
    a, b = (_compared(m, source, signed=signed, wide=wide) for source in rest[:2])
    result = None if a is None or b is None else _COMPARE[ins.parts[1]](a, b)
    if "EX" in ins.parts and result is not None:
        low = m.predicate(rest[3])
        strict = {"LE": np.less, "GE": np.greater, "EQ": None}.get(ins.parts[1], _COMPARE[ins.parts[1]])
        result = None if low is None else (low & (a == b)) | (strict(a, b) if strict else False)
    also = m.predicate(rest[2]) if len(rest) > 2 else np.ones(32, bool)
    how = next((part for part in ins.parts if part in ("AND", "OR", "XOR")), "AND")
    for name, value in zip(outs, (result, None if result is None else ~result), strict=False):
        m.write_predicate(ins, name, _combine(value, also, how))


def _compared(m: Machine, source: str, *, signed: bool, wide: bool) -> Value:
    if not wide:
        value = m.integer(source, signed=signed)
        return value if signed or value is None else value & 0xFFFFFFFF
    value = m.integer(source, wide=True)
    return value if signed or value is None else value.view(np.uint64)


def _combine(first: Value, second: Value, how: str) -> Value:
    if how == "XOR":
        return None if first is None or second is None else first ^ second
    decisive = how == "OR"
    for one in (first, second):
        if one is not None and (one == decisive).all():
            return one
    if first is None or second is None:
        return None
    return first | second if decisive else first & second


def _select(m: Machine, ins: Instruction) -> None:
    if ins.base == "FSEL" and any(source[0] in "-|" for source in ins.operands[1:3]):
        forget(m, ins)
        return
    destination, _, (first, second), (chosen,) = _sources(ins, 2)
    predicate = m.predicate(chosen)
    a, b = m.integer(first), m.integer(second)
    if predicate is not None and (predicate.all() or not predicate.any()):
        m.write(ins, destination, a if predicate.all() else b)
    else:
        m.write(ins, destination, None if a is None or b is None or predicate is None else np.where(predicate, a, b))


def _minmax(m: Machine, ins: Instruction) -> None:
    if set(ins.parts[1:]) - {"U32", "S32"}:
        forget(m, ins)
        return
    destination, outs, (first, second), rest = _sources(ins, 2)
    signed = "U32" not in ins.parts
    a, b = m.integer(first, signed=signed), m.integer(second, signed=signed)
    smaller = m.predicate(rest[-1]) if rest else None
    known = a is not None and b is not None and smaller is not None
    m.write(ins, destination, np.where(smaller, np.minimum(a, b), np.maximum(a, b)) if known else None)
    for name in outs:
        m.write_predicate(ins, name, None)


def _move(m: Machine, ins: Instruction) -> None:
    destination, _, sources, _ = _sources(ins, 1)
    wide = "64" in ins.parts
    m.write(ins, destination, m.integer(sources[0], wide=wide), 2 if wide else 1)


def _cs2r(m: Machine, ins: Instruction) -> None:
    value = np.zeros(32, np.int64) if ins.operands[1] == "SRZ" else None
    m.write(ins, ins.operands[0], value, 1 if "32" in ins.parts else 2)


def _s2r(m: Machine, ins: Instruction) -> None:
    m.write(ins, ins.operands[0], m.special.get(ins.operands[1]))


def _load_constant(m: Machine, ins: Instruction) -> None:
    words = 4 if "128" in ins.parts else 2 if "64" in ins.parts else 1
    narrow = {"U8", "S8", "U16", "S16"} & set(ins.parts)
    destination = ins.operands[0]
    for offset in range(words):
        number = int(re.search(r"\d+", destination)[0]) if "Z" not in destination else 0
        name = re.sub(r"\d+", str(number + offset), destination)
        m.write(ins, name, None if narrow else m.word(ins.operands[1], offset))


def _half_constant(m: Machine, ins: Instruction) -> None:
    """`HFMA2 R, -RZ, RZ, high, low` is how the compiler loads constants through the half-precision pipe."""
    if len(ins.operands) == 5 and ins.operands[1:3] == ("-RZ", "RZ") and "BF16_V2" not in ins.parts:
        halves = [_half(number) for number in ins.operands[3:]]
        if None not in halves:
            m.write(ins, ins.operands[0], np.full(32, halves[0] << 16 | halves[1], np.int64))
            return
    forget(m, ins)


def _half(text: str) -> int | None:
    special = {"+INF": 0x7C00, "-INF": 0xFC00, "+QNAN": 0x7FFF, "-QNAN": 0xFFFF}
    if text in special:
        return special[text]
    try:
        return int(np.float16(float(text)).view(np.uint16))
    except ValueError:
        return None


def _sign_extend(m: Machine, ins: Instruction) -> None:
    destination, _, (first, bits), _ = _sources(ins, 2)
    value, count = m.integer(first), m.integer(bits)
    if value is None or count is None:
        m.write(ins, destination, None)
        return
    kept = value & ((1 << count) - 1)
    negative = (kept >> (count - 1) & 1).astype(bool)
    m.write(ins, destination, kept if "U32" in ins.parts else np.where(negative, kept - (1 << count), kept))


def _absolute(m: Machine, ins: Instruction) -> None:
    destination, _, (first,), _ = _sources(ins, 1)
    value = m.integer(first, signed=True)
    m.write(ins, destination, None if value is None else np.abs(value))


def _to_uniform(m: Machine, ins: Instruction) -> None:
    destination, outs, (first,), _ = _sources(ins, 1)
    value = m.integer(first)
    m.write(ins, destination, None if value is None else np.full(32, value[0]))
    for name in outs:
        m.write_predicate(ins, name, None)


def _to_predicates(m: Machine, ins: Instruction) -> None:
    """`R2P PR, R0, mask`: predicate i takes bit i where the mask has it."""
    value = None if "." in ins.operands[1].removesuffix(".reuse") else m.integer(ins.operands[1])
    mask = int(ins.operands[2], 0)
    for bit in range(7):
        if mask >> bit & 1:
            m.write_predicate(ins, f"P{bit}", None if value is None else (value >> bit & 1).astype(bool))


def _permute(m: Machine, ins: Instruction) -> None:
    destination, _, (first, selector, second), _ = _sources(ins, 3)
    a, choose, b = m.integer(first), m.integer(selector), m.integer(second)
    if a is None or b is None or choose is None or len(ins.parts) > 1:
        m.write(ins, destination, None)
        return
    both = ((b << 32) | a).view(np.uint64)
    result = np.zeros(32, np.int64)
    for byte in range(4):
        nibble = choose >> (4 * byte) & 15
        picked = (both >> (8 * (nibble & 7)).astype(np.uint64)).astype(np.int64) & 0xFF
        result |= np.where(nibble & 8, np.where(picked & 0x80, 0xFF, 0), picked) << (8 * byte)
    m.write(ins, destination, result)


def _vote(m: Machine, ins: Instruction) -> None:
    source = m.predicate(ins.operands[-1])
    result = None if source is None else np.full(32, source.all() if "ALL" in ins.parts else source.any())
    for name in ins.operands[:-1]:
        if _PLAIN_PREDICATE.match(name):
            m.write_predicate(ins, name, result)
        else:
            m.write(
                ins,
                name,
                None if source is None else np.full(32, int((source.astype(np.int64) << np.arange(32)).sum())),
            )


def _integer_to_float(m: Machine, ins: Instruction) -> None:
    if {"F16", "F64", "BF16", "U64", "S64"} & set(ins.parts):
        forget(m, ins)
        return
    value = m.integer(ins.operands[1], signed="U32" not in ins.parts)
    if value is None:
        m.write(ins, ins.operands[0], None)
        return
    nearest = value.astype(np.float32)
    if "RP" in ins.parts:
        nearest = np.where(nearest.astype(np.float64) < value, np.nextafter(nearest, np.float32(np.inf)), nearest)
    m.write(ins, ins.operands[0], nearest.astype(np.float32).view(np.uint32).astype(np.int64))


def _reciprocal(m: Machine, ins: Instruction) -> None:
    value = m.word(ins.operands[1]) if ins.parts[1:] == ("RCP",) and "-" not in ins.operands[1] else None
    if value is None:
        m.write(ins, ins.operands[0], None)
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.float32(1) / value.view(np.float32)
    m.write(ins, ins.operands[0], result.view(np.uint32).astype(np.int64))


def _float_to_integer(m: Machine, ins: Instruction) -> None:
    plain = "TRUNC" in ins.parts and not {"F16", "F64", "S64", "U64", "S16", "U16", "S8", "U8"} & set(ins.parts)
    value = m.word(ins.operands[1]) if plain else None
    if value is None or ins.operands[1][0] in "-|":
        forget(m, ins)
        return
    low, high = (0, 2**32 - 1) if "U32" in ins.parts else (-(2**31), 2**31 - 1)
    number = np.nan_to_num(value.view(np.float32).astype(np.float64), posinf=high, neginf=low)
    m.write(ins, ins.operands[0], np.clip(np.trunc(number), low, high).astype(np.int64))


def _load_global(m: Machine, ins: Instruction) -> None:
    """A load from memory whose contents the launch gave; anything else is unknown."""
    address = _address(m, ins.operands[-1]) if m.memory and len(ins.operands) == 2 else None
    widths = [part for part in ins.parts if part in ("U8", "S8", "U16", "S16", "64", "128", "256")]
    size = 4 if not widths else int(widths[0].lstrip("US")) // 8
    data = None if address is None or size > 16 else _read(m, address, size)
    if data is None:
        forget(m, ins)
        return
    first = re.search(r"\d+", ins.operands[0])
    for offset in range(max(1, size // 4)):
        word = data[:, 4 * offset : 4 * offset + 4]
        value = sum(word[:, i].astype(np.int64) << (8 * i) for i in range(word.shape[1]))
        if widths and widths[0].startswith("S"):
            value = np.where(value >> (8 * size - 1) & 1, value - (1 << 8 * size), value)
        if first:
            m.write(ins, f"R{int(first[0]) + offset}", value)


def _address(m: Machine, operand: str) -> Value:
    """Byte address of `[R2.64+UR4+0x10]` (with or without a descriptor), int64 lanes."""
    match = _MEMORY_OPERAND.search(operand)
    if match is None:
        return None
    total = np.zeros(32, np.int64)
    for term in match[1].replace("-0x", "+-0x").split("+"):
        if not term:
            continue
        number = term.startswith(("0x", "-0x"))
        wide = term.endswith(".64") or (term.startswith("UR") and ".64" not in match[1])
        value = np.full(32, int(term, 0)) if number else m.integer(term.removesuffix(".U32"), wide=wide)
        if value is None:
            return None
        total = total + value
    return total


def _read(m: Machine, address: np.ndarray, size: int) -> np.ndarray | None:
    base = max((start for start in m.memory if start <= address.min()), default=None)
    if base is None or address.max() + size > base + len(m.memory[base]):
        return None
    contents = np.frombuffer(m.memory[base], np.uint8)
    return contents[(address - base)[:, None] + np.arange(size)]


def _store_local(m: Machine, ins: Instruction) -> None:
    """Spilled registers come back under the address text they went to; partial stores make them unknown."""
    first = re.search(r"\d+", ins.operands[1])
    for offset in range(_result_words(ins)):
        value = m.word(f"R{int(first[0]) + offset}") if first else np.zeros(32, np.uint32)
        lanes = m.guard(ins)
        whole = lanes is not None and lanes.all()
        m.local[_local_slot(m, ins.operands[0], offset)] = value if whole else None


def _load_local(m: Machine, ins: Instruction) -> None:
    first = re.search(r"\d+", ins.operands[0])
    if first is None:
        return
    for offset in range(_result_words(ins)):
        value = m.local.get(_local_slot(m, ins.operands[1], offset))
        m.write(ins, f"R{int(first[0]) + offset}", None if value is None else value.astype(np.int64))


def _local_slot(m: Machine, operand: str, offset: int) -> tuple[str, int]:
    text = _MEMORY_OPERAND.search(operand)[1]
    base, _, displacement = text.partition("+")
    return base, int(displacement or "0", 0) + 4 * offset


SEMANTICS: dict[str, Callable[[Machine, Instruction], None]] = {
    "IADD3": _iadd3,
    "IADD": _iadd3,
    "VIADD": _iadd3,
    "IMAD": _imad,
    "LEA": _lea,
    "LOP3": _lop3,
    "PLOP3": _plop3,
    "SHF": _shf,
    "SHL": _shift,
    "SHR": _shift,
    "ISETP": _isetp,
    "SEL": _select,
    "FSEL": _select,
    "IMNMX": _minmax,
    "VIMNMX": _minmax,
    "MOV": _move,
    "CS2R": _cs2r,
    "S2R": _s2r,
    "S2UR": _s2r,
    "LDC": _load_constant,
    "ULDC": _load_constant,
    "LDCU": _load_constant,
    "HFMA2": _half_constant,
    "SGXT": _sign_extend,
    "IABS": _absolute,
    "R2UR": _to_uniform,
    "R2P": _to_predicates,
    "PRMT": _permute,
    "VOTE": _vote,
    "VOTEU": _vote,
    "I2F": _integer_to_float,
    "I2FP": _integer_to_float,
    "MUFU": _reciprocal,
    "F2I": _float_to_integer,
    "LDG": _load_global,
    "STL": _store_local,
    "LDL": _load_local,
}
