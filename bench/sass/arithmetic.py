"""What the integer and predicate instructions compute, lane by lane (see `bench.sass.walk`)."""

from collections.abc import Callable

import numpy as np

from bench.sass.cubin import Instruction
from bench.sass.operands import PLAIN_PREDICATE, destinations, forget, sources_of
from bench.sass.state import Value, WarpState

_COMPARE = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


def _add(*terms: Value) -> Value:
    return None if any(term is None for term in terms) else sum(terms[1:], terms[0])


def _carries(m: WarpState, ins: Instruction, names: list[str]) -> list[Value]:
    if "X" not in ins.parts:
        return []
    return [None if (bit := m.predicate(name)) is None else bit.astype(np.int64) for name in names]


def _write_carries(m: WarpState, ins: Instruction, names: list[str], total: Value) -> None:
    for least, name in enumerate(names, start=1):
        m.write_predicate(ins, name, None if total is None else (total >> 32) >= least)


def _iadd3(m: WarpState, ins: Instruction) -> None:
    destination, outs, sources, ins_predicates = sources_of(ins, 2 if ins.base in ("IADD", "UIADD", "VIADD") else 3)
    if "64" in ins.parts:
        total = _add(*(m.integer(source, wide=True) for source in sources))
        m.write(ins, destination, total, 2)
        for name in outs:
            m.write_predicate(ins, name, None)
        return
    total = _add(*(m.integer(source) for source in sources), *_carries(m, ins, ins_predicates))
    m.write(ins, destination, total)
    _write_carries(m, ins, outs, total)


def _imad(m: WarpState, ins: Instruction) -> None:
    destination, outs, (first, second, third), rest = sources_of(ins, 3)
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


def _lea(m: WarpState, ins: Instruction) -> None:
    high = "HI" in ins.parts
    extended = any(part.startswith("SX32") for part in ins.parts)
    count = 4 if high and not extended else 3
    destination, outs, sources, rest = sources_of(ins, count)
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


def _lop3(m: WarpState, ins: Instruction) -> None:
    registers, outs, rest = destinations(ins)
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
    """Return the three-input truth table applied bit by bit; an input the table ignores may be unknown."""
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


def _plop3(m: WarpState, ins: Instruction) -> None:
    outs, rest = [], list(ins.operands)
    while len(outs) < 2 and PLAIN_PREDICATE.match(rest[0]):
        outs.append(rest.pop(0))
    inputs = [m.predicate(name) for name in rest[:3]]
    for name, table in zip(outs, rest[3:5], strict=False):
        words = [None if value is None else np.where(value, 0xFFFFFFFF, 0).astype(np.int64) for value in inputs]
        result = _lookup(words, int(table, 0))
        m.write_predicate(ins, name, None if result is None else result != 0)


def _shf(m: WarpState, ins: Instruction) -> None:
    destination, _, sources, _ = sources_of(ins, 3)
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


def _shift(m: WarpState, ins: Instruction) -> None:
    destination, _, (first, by), _ = sources_of(ins, 2)
    right = ins.base.endswith("SHR")
    value, shift = m.integer(first, signed=right and "U32" not in ins.parts), m.integer(by)
    if value is None or shift is None:
        m.write(ins, destination, None)
        return
    shift = np.minimum(shift, 32)
    m.write(ins, destination, value >> shift if right else value << shift)


def _isetp(m: WarpState, ins: Instruction) -> None:
    outs, rest = [], list(ins.operands)
    while PLAIN_PREDICATE.match(rest[0]) and len(outs) < 2:
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


def _compared(m: WarpState, source: str, *, signed: bool, wide: bool) -> Value:
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


def _minmax(m: WarpState, ins: Instruction) -> None:
    """`VIMNMX R, a, b, P`: the smaller (P) or larger of a and b; of 64 bits `IMNMX.S64 PT, PT, R, a, b, P, !PT`."""
    if set(ins.parts[1:]) - {"U32", "S32", "U64", "S64"}:
        forget(m, ins)
        return
    destination, outs, (first, second), rest = sources_of(ins, 2)
    wide, signed = bool({"U64", "S64"} & set(ins.parts)), not {"U32", "U64"} & set(ins.parts)
    a, b = (_compared(m, source, signed=signed, wide=wide) for source in (first, second))
    smaller = m.predicate(rest[0 if wide else -1]) if rest else None
    known = a is not None and b is not None and smaller is not None
    result = np.where(smaller, np.minimum(a, b), np.maximum(a, b)) if known else None
    m.write(ins, destination, result, 2 if wide else 1)
    for name in outs:
        m.write_predicate(ins, name, None)


def _add_minmax(m: WarpState, ins: Instruction) -> None:
    """`VIADDMNMX R, a, b, c, P`: the smaller (P) or larger of a + b and c."""
    if set(ins.parts[1:]) - {"U32", "S32"}:
        forget(m, ins)
        return
    destination, _, (first, second, third), rest = sources_of(ins, 3)
    signed = "U32" not in ins.parts
    a, b, c = (m.integer(source, signed=signed) for source in (first, second, third))
    smaller = m.predicate(rest[-1])
    if a is None or b is None or c is None or smaller is None:
        m.write(ins, destination, None)
        return
    total = (a + b) & 0xFFFFFFFF
    if signed:
        total = total.astype(np.uint32).view(np.int32).astype(np.int64)
    m.write(ins, destination, np.where(smaller, np.minimum(total, c), np.maximum(total, c)))


def _sign_extend(m: WarpState, ins: Instruction) -> None:
    destination, _, (first, bits), _ = sources_of(ins, 2)
    value, count = m.integer(first), m.integer(bits)
    if value is None or count is None:
        m.write(ins, destination, None)
        return
    kept = value & ((1 << count) - 1)
    negative = (kept >> (count - 1) & 1).astype(bool)
    m.write(ins, destination, kept if "U32" in ins.parts else np.where(negative, kept - (1 << count), kept))


def _absolute(m: WarpState, ins: Instruction) -> None:
    destination, _, (first,), _ = sources_of(ins, 1)
    value = m.integer(first, signed=True)
    m.write(ins, destination, None if value is None else np.abs(value))


ARITHMETIC: dict[str, Callable[[WarpState, Instruction], None]] = {
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
    "IMNMX": _minmax,
    "VIMNMX": _minmax,
    "VIADDMNMX": _add_minmax,
    "SGXT": _sign_extend,
    "IABS": _absolute,
}
