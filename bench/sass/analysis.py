"""What one program of a kernel issues: counts by opcode, class and access width."""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.sass.cubin import Cubin, Instruction, Parameter, read_cubin
from bench.sass.state import Launch
from bench.sass.walk import walk

_POINTER_STEP = 1 << 36
_CLASSES = (
    ("global load", ("LDG", "LD")),
    ("global store", ("STG", "ST")),
    ("reduction", ("RED", "REDG")),
    ("atomic", ("ATOM", "ATOMG")),
    ("shared memory", ("LDS", "STS", "LDSM", "STSM", "ATOMS", "LDGSTS", "UTMALDG")),
    ("spill", ("LDL", "STL")),
    ("constant load", ("LDC", "ULDC", "LDCU")),
    ("matrix", ("HMMA", "IMMA", "DMMA", "QMMA", "HGMMA", "UTCHMMA")),
    (
        "fp32",
        (
            "FADD",
            "FMUL",
            "FFMA",
            "FMNMX",
            "FMNMX3",
            "FSEL",
            "FSETP",
            "FSET",
            "FADD2",
            "FMUL2",
            "FFMA2",
            "FHADD",
            "FHFMA",
            "FCHK",
            "FSWZADD",
        ),
    ),
    ("fp64", ("DADD", "DMUL", "DFMA", "DSETP")),
    ("half", ("HADD2", "HMUL2", "HFMA2", "HMNMX2", "VHMNMX", "HSETP2", "HSET2")),
    ("convert", ("I2F", "I2FP", "F2I", "F2IP", "F2F", "F2FP", "FRND", "I2I", "I2IP")),
    ("mufu", ("MUFU",)),
    ("shuffle", ("SHFL", "VOTE", "REDUX", "MATCH")),
    ("barrier", ("BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "MEMBAR", "BSSY", "BSYNC", "SYNCS", "ERRBAR")),
    ("control", ("BRA", "EXIT", "CALL", "RET", "NOP", "BREAK", "YIELD", "BPT", "NANOSLEEP")),
    ("predicate", ("ISETP", "PLOP3", "R2P", "P2R")),
    ("move", ("MOV", "SEL", "PRMT", "CS2R", "S2R", "S2UR", "R2UR", "MOVM", "RPCMOV")),
    ("integer", ("IADD3", "IADD", "VIADD", "IMAD", "LEA", "LOP3", "SHF", "SHL", "SHR", "IMNMX", "VIMNMX", "VIMNMX3")),
    ("integer", ("IABS", "SGXT", "POPC", "FLO", "BREV", "BMSK", "VABSDIFF", "VIADDMNMX", "IDP", "LOP")),
)
_CLASS_OF = {base: name for name, bases in _CLASSES for base in bases}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What one program of a kernel issues, all its warps together.

    `loads` and `stores`: global accesses by bytes per lane, without those whose guard was false in all lanes;
    `gathers`: the loads among them whose address depends on loaded data. `reductions` and `atomics`: by element type
    and vector length (`F32x4`). `static_spills` counts LDL and STL in the code, `stack` bytes per thread. `shared` is
    the statically allocated part: Triton's own is in the compiled kernel's metadata.
    """

    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    static_instructions: int
    static_spills: int
    executed: int
    executed_per_warp: tuple[int, ...]
    classes: dict[str, int]
    opcodes: dict[str, int]
    loads: dict[int, int]
    gathers: dict[int, int]
    stores: dict[int, int]
    reductions: dict[str, int]
    atomics: dict[str, int]
    loops: tuple[str, ...]
    assumptions: tuple[str, ...]

    def count(self, *prefixes: str) -> int:
        """Issued instructions whose opcode starts with one of the prefixes (`HFMA2`, `LDG.E.128`)."""
        return sum(number for opcode, number in self.opcodes.items() if opcode.startswith(prefixes))


def analyse(
    cubin: bytes,
    arguments: Sequence[int | float | bytes | np.ndarray | None] = (),
    *,
    program: tuple[int, int, int] = (0, 0, 0),
    grid: tuple[int, int, int] | None = None,
    num_warps: int = 1,
    trips: Sequence[int] = (),
    kernel: str | None = None,
) -> Analysis:
    """Walk one program of the cubin's kernel with these arguments, in the kernel's parameter order.

    None leaves an argument unknown; an array stands for a pointer to its contents. Arguments beyond those given are
    unknown, except 8-byte ones, taken as pointers. `trips`: iterations of undecidable loops,
    in the order in which the walk meets them.

    Raises:
        CubinError: the bytes are no cubin.
        WalkError: a loop is undecidable.
        ValueError: the arguments do not fit the parameters.
    """
    image = read_cubin(cubin, kernel=kernel)
    constants, memory = _place(image, arguments)
    launch = Launch(constants=constants, memory=memory, program=program, grid=grid, num_warps=num_warps)
    walks = [walk(image, launch, warp=warp, trips=trips) for warp in range(num_warps)]
    return _summarize(
        image,
        _total(one.counts for one in walks),
        _total(one.active for one in walks),
        _total(one.scattered for one in walks),
        executed_per_warp=tuple(sum(one.counts) for one in walks),
        assumptions=tuple(dict.fromkeys(text for one in walks for text in one.assumptions)),
    )


def _total(counts: Iterable[tuple[int, ...]]) -> list[int]:
    return [sum(of_one) for of_one in zip(*counts, strict=True)]


def analyse_kernel(compiled: Any, arguments: Mapping[str, Any], **options: Any) -> Analysis:
    """Return `analyse` of what `triton.compile(ASTSource(...))` returned, with arguments by parameter name.

    Warps per program come from the kernel's metadata.

    Raises:
        ValueError: names that the kernel does not have.
    """
    ordered = ordered_arguments(compiled.src.signature, arguments)
    return analyse(compiled.asm["cubin"], ordered, num_warps=compiled.metadata.num_warps, **options)


def ordered_arguments(signature: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Any]:
    """Arguments in parameter order: compile-time ones dropped, tuples flattened, missing pointers synthesized."""
    unknown = set(arguments) - set(signature)
    if unknown:
        raise ValueError(f"no such parameters: {sorted(unknown)}; the kernel has {sorted(signature)}")
    flat: list[Any] = []
    for name, kind in signature.items():
        flat.extend(_flatten(kind, arguments.get(name)))
    return [
        (index + 1) * _POINTER_STEP if value is None and kind.startswith("*") else value
        for index, (kind, value) in enumerate(flat)
    ]


def _flatten(kind: Any, value: Any) -> list[tuple[str, Any]]:
    if kind == "constexpr":
        return []
    if isinstance(kind, str):
        return [(kind, value)]
    values = [None] * len(kind) if value is None else value
    if len(values) != len(kind):
        raise ValueError(f"a tuple parameter of {len(kind)} elements was given {len(values)}")
    return [item for pair in zip(kind, values, strict=True) for item in _flatten(*pair)]


def _place(image: Cubin, arguments: Sequence[Any]) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Constant-bank bytes by parameter index, and memory contents by base address."""
    if len(arguments) > len(image.parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(image.parameters)} parameters of {image.kernel}")
    constants: dict[int, bytes] = {}
    memory: dict[int, bytes] = {}
    padded = [*arguments, *[None] * (len(image.parameters) - len(arguments))]
    for index, (parameter, value) in enumerate(zip(image.parameters, padded, strict=True)):
        if isinstance(value, np.ndarray):
            memory[(index + 1) * _POINTER_STEP] = value.tobytes()
            value = (index + 1) * _POINTER_STEP
        elif value is None and index >= len(arguments) and parameter.size == 8:
            value = (index + 1) * _POINTER_STEP
        if value is not None:
            constants[index] = _encode(value, parameter, index)
    return constants, memory


def _encode(value: int | float | bytes, parameter: Parameter, index: int) -> bytes:
    if isinstance(value, float):
        return struct.pack("<f" if parameter.size == 4 else "<d", value)
    data = value if isinstance(value, bytes) else None
    if data is None:
        bits = 8 * parameter.size
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise ValueError(f"argument {index} is {value}, its parameter has {parameter.size} bytes")
        data = (value % (1 << bits)).to_bytes(parameter.size, "little")
    if len(data) != parameter.size:
        raise ValueError(f"argument {index} has {len(data)} bytes, its parameter {parameter.size}")
    return data


def _summarize(image: Cubin, issued: list[int], active: list[int], scattered: list[int], **walked: Any) -> Analysis:
    opcodes: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    accesses: dict[str, Counter] = {name: Counter() for name in ("loads", "gathers", "stores", "reductions", "atomics")}
    for ins, count, effective, unknown in zip(image.instructions, issued, active, scattered, strict=True):
        kind = classify(ins)
        opcodes[ins.opcode] += count
        classes[kind] += count
        if kind == "global load":
            accesses["loads"][access_bytes(ins)] += effective
            accesses["gathers"][access_bytes(ins)] += unknown
        elif kind == "global store":
            accesses["stores"][access_bytes(ins)] += effective
        elif kind in ("reduction", "atomic"):
            accesses[kind + "s"][reduction_type(ins)] += effective
    return Analysis(
        kernel=image.kernel,
        arch=image.arch,
        registers=image.registers,
        stack=image.stack,
        shared=image.shared,
        static_instructions=len(image.instructions),
        static_spills=sum(ins.base in ("LDL", "STL") for ins in image.instructions),
        executed=sum(issued),
        opcodes=_nonzero(opcodes),
        classes=_nonzero(classes),
        loops=_loops(image, issued),
        **{name: _nonzero(counter) for name, counter in accesses.items()},
        **walked,
    )


def _nonzero(counter: Counter) -> dict:
    return {key: number for key, number in counter.most_common() if number}


def classify(ins: Instruction) -> str:
    """Return the class an instruction is counted in; `uniform` for what runs once per warp on the uniform datapath."""
    if ins.base == "HADD2" and "F32" in ins.parts:
        return "convert"
    if ins.base == "HFMA2" and ins.operands[1:3] == ("-RZ", "RZ"):
        return "move"
    if ins.parts[:2] == ("IMAD", "MOV"):
        return "move"
    if ins.base in _CLASS_OF:
        return _CLASS_OF[ins.base]
    return "uniform" if ins.base.startswith("U") else "other"


def access_bytes(ins: Instruction) -> int:
    """Bytes per lane of a memory instruction."""
    return next((_WIDTHS[part] for part in ins.parts if part in _WIDTHS), 4)


def reduction_type(ins: Instruction) -> str:
    """Element type and vector length of a reduction: `F32x4`, `F32`, `F16x2`, `BF16x8`, `U32`."""
    for part in ins.parts[1:]:
        name, _, lanes = part.partition("x")
        if name in ("F32", "F16", "BF16", "BF16_V2", "F64", "S32", "U32", "U64", "S64", "64"):
            return f"{name.removesuffix('_V2')}x{lanes or 2}" if lanes or name == "BF16_V2" else name
    return "U32"


def _loops(image: Cubin, totals: list[int]) -> tuple[str, ...]:
    at = {ins.address: i for i, ins in enumerate(image.instructions)}
    texts = []
    for index, ins in enumerate(image.instructions):
        if ins.base == "BRA" and ins.target is not None and ins.target < ins.address and totals[index]:
            body = index - at[ins.target] + 1
            texts.append(f"{ins.target:#06x}-{ins.address:#06x}: {totals[index]} iterations of {body} instructions")
    return tuple(texts)
