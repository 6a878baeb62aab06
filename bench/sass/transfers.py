"""What moves, loads, votes and conversions do, lane by lane (see `bench.sass.walk`)."""

import re
from collections.abc import Callable

import numpy as np

from bench.sass.cubin import Instruction
from bench.sass.operands import PLAIN_PREDICATE, forget, result_words, sources_of
from bench.sass.state import Value, WarpState

_MEMORY_OPERAND = re.compile(r"\[([^\[\]]+)\]$")


def _select(m: WarpState, ins: Instruction) -> None:
    if ins.base == "FSEL" and any(source[0] in "-|" for source in ins.operands[1:3]):
        forget(m, ins)
        return
    destination, _, (first, second), (chosen,) = sources_of(ins, 2)
    predicate = m.predicate(chosen)
    a, b = m.integer(first), m.integer(second)
    if predicate is not None and (predicate.all() or not predicate.any()):
        m.write(ins, destination, a if predicate.all() else b)
    else:
        m.write(ins, destination, None if a is None or b is None or predicate is None else np.where(predicate, a, b))


def _move(m: WarpState, ins: Instruction) -> None:
    destination, _, sources, _ = sources_of(ins, 1)
    wide = "64" in ins.parts
    m.write(ins, destination, m.integer(sources[0], wide=wide), 2 if wide else 1)


def _return_register(m: WarpState, ins: Instruction) -> None:
    """`RPCMOV.32 Rpc.LO, R4` and back: since sm_120 the register of the return address keeps numbers meanwhile."""
    destination, source = ins.operands
    value = m.registers.get(source) if source.startswith("Rpc") else m.word(source)
    if destination.startswith("Rpc"):
        m.store(m.registers, destination, value, m.guard(ins))
    else:
        m.write(ins, destination, None if value is None else value.astype(np.int64))


def _cs2r(m: WarpState, ins: Instruction) -> None:
    value = np.zeros(32, np.int64) if ins.operands[1] == "SRZ" else None
    m.write(ins, ins.operands[0], value, 1 if "32" in ins.parts else 2)


def _s2r(m: WarpState, ins: Instruction) -> None:
    m.write(ins, ins.operands[0], m.special.get(ins.operands[1]))


def _load_constant(m: WarpState, ins: Instruction) -> None:
    words = 4 if "128" in ins.parts else 2 if "64" in ins.parts else 1
    narrow = {"U8", "S8", "U16", "S16"} & set(ins.parts)
    destination = ins.operands[0]
    for offset in range(words):
        number = int(re.search(r"\d+", destination)[0]) if "Z" not in destination else 0
        name = re.sub(r"\d+", str(number + offset), destination)
        m.write(ins, name, None if narrow else m.word(ins.operands[1], offset))


def _half_constant(m: WarpState, ins: Instruction) -> None:
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


def _to_uniform(m: WarpState, ins: Instruction) -> None:
    destination, outs, (first,), _ = sources_of(ins, 1)
    value = m.integer(first)
    m.write(ins, destination, None if value is None else np.full(32, value[0]))
    for name in outs:
        m.write_predicate(ins, name, None)


def _to_predicates(m: WarpState, ins: Instruction) -> None:
    """`R2P PR, R0, mask`: predicate i takes bit i where the mask has it."""
    value = None if "." in ins.operands[1].removesuffix(".reuse") else m.integer(ins.operands[1])
    mask = int(ins.operands[2], 0)
    for bit in range(7):
        if mask >> bit & 1:
            m.write_predicate(ins, f"P{bit}", None if value is None else (value >> bit & 1).astype(bool))


def _from_predicates(m: WarpState, ins: Instruction) -> None:
    """`P2R R0, PR, R1, mask`: R1, with predicate i as bit i where the mask has it."""
    value = None if len(ins.parts) > 1 else m.integer(ins.operands[2])
    mask = int(ins.operands[3], 0)
    for bit in range(7):
        if value is not None and mask >> bit & 1:
            predicate = m.predicate(f"P{bit}")
            value = None if predicate is None else value & ~(1 << bit) | predicate.astype(np.int64) << bit
    m.write(ins, ins.operands[0], value)


def _permute(m: WarpState, ins: Instruction) -> None:
    destination, _, (first, selector, second), _ = sources_of(ins, 3)
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


def _vote(m: WarpState, ins: Instruction) -> None:
    source = m.predicate(ins.operands[-1])
    result = None if source is None else np.full(32, source.all() if "ALL" in ins.parts else source.any())
    for name in ins.operands[:-1]:
        if PLAIN_PREDICATE.match(name):
            m.write_predicate(ins, name, result)
        else:
            m.write(
                ins,
                name,
                None if source is None else np.full(32, int((source.astype(np.int64) << np.arange(32)).sum())),
            )


def _integer_to_float(m: WarpState, ins: Instruction) -> None:
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


def _reciprocal(m: WarpState, ins: Instruction) -> None:
    value = m.word(ins.operands[1]) if ins.parts[1:] == ("RCP",) and "-" not in ins.operands[1] else None
    if value is None:
        m.write(ins, ins.operands[0], None)
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.float32(1) / value.view(np.float32)
    m.write(ins, ins.operands[0], result.view(np.uint32).astype(np.int64))


def _float_to_integer(m: WarpState, ins: Instruction) -> None:
    plain = "TRUNC" in ins.parts and not {"F16", "F64", "S64", "U64", "S16", "U16", "S8", "U8"} & set(ins.parts)
    value = m.word(ins.operands[1]) if plain else None
    if value is None or ins.operands[1][0] in "-|":
        forget(m, ins)
        return
    low, high = (0, 2**32 - 1) if "U32" in ins.parts else (-(2**31), 2**31 - 1)
    number = np.nan_to_num(value.view(np.float32).astype(np.float64), posinf=high, neginf=low)
    m.write(ins, ins.operands[0], np.clip(np.trunc(number), low, high).astype(np.int64))


def _load_global(m: WarpState, ins: Instruction) -> None:
    """Load from memory whose contents the launch gave; anything else is unknown."""
    address = global_address(m, ins) if m.memory and len(ins.operands) == 2 else None
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


def global_address(m: WarpState, ins: Instruction) -> Value:
    """Byte address of `[R2.64+UR4+0x10]` (with or without a descriptor), int64 lanes; None where unknown."""
    match = next(filter(None, map(_MEMORY_OPERAND.search, ins.operands)), None)
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


def _read(m: WarpState, address: np.ndarray, size: int) -> np.ndarray | None:
    base = max((start for start in m.memory if start <= address.min()), default=None)
    if base is None or address.max() + size > base + len(m.memory[base]):
        return None
    contents = np.frombuffer(m.memory[base], np.uint8)
    return contents[(address - base)[:, None] + np.arange(size)]


def _store_local(m: WarpState, ins: Instruction) -> None:
    """Spilled registers come back under the address text they went to; partial stores make them unknown."""
    first = re.search(r"\d+", ins.operands[1])
    for offset in range(result_words(ins)):
        value = m.word(f"R{int(first[0]) + offset}") if first else np.zeros(32, np.uint32)
        lanes = m.guard(ins)
        whole = lanes is not None and lanes.all()
        m.local[_local_slot(m, ins.operands[0], offset)] = value if whole else None


def _load_local(m: WarpState, ins: Instruction) -> None:
    first = re.search(r"\d+", ins.operands[0])
    if first is None:
        return
    for offset in range(result_words(ins)):
        value = m.local.get(_local_slot(m, ins.operands[1], offset))
        m.write(ins, f"R{int(first[0]) + offset}", None if value is None else value.astype(np.int64))


def _local_slot(m: WarpState, operand: str, offset: int) -> tuple[str, int]:
    text = _MEMORY_OPERAND.search(operand)[1]
    base, _, displacement = text.partition("+")
    return base, int(displacement or "0", 0) + 4 * offset


TRANSFERS: dict[str, Callable[[WarpState, Instruction], None]] = {
    "SEL": _select,
    "FSEL": _select,
    "MOV": _move,
    "RPCMOV": _return_register,
    "CS2R": _cs2r,
    "S2R": _s2r,
    "S2UR": _s2r,
    "LDC": _load_constant,
    "ULDC": _load_constant,
    "LDCU": _load_constant,
    "HFMA2": _half_constant,
    "R2UR": _to_uniform,
    "R2P": _to_predicates,
    "P2R": _from_predicates,
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
