"""Count the warp instructions a compiled kernel issues, without a GPU.

From a Triton kernel compiled ahead of time (in a process without TRITON_INTERPRET):

    compiled = triton.compile(ASTSource(...), target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    analysis = analyse_kernel(compiled, {"value": np.zeros(8, np.float16), "frames": 6, ...}, program=(3, 0, 0))
    analysis.executed / (queries_per_program * samples)     # N: warp instructions per (query, head, sample)
    analysis.loads, analysis.reductions, analysis.classes   # {16: 1792}, {"F32x4": 3584}, {"fp32": ...}

`arguments` are by parameter name: ints and floats as the launcher would pass them, an array for a pointer whose contents
the control flow depends on (a frame table, spatial shapes), a tuple for a tuple parameter. Pointers may be left out:
each gets an address of its own, aligned to 16 bytes, with unknown contents. Choose a `program` inside the grid whose
tile is full, since the walk follows its bounds checks.

From any cubin, with the kernel's parameters as raw values in order (`_` leaves one unknown):

    python -m bench.sass kernel.cubin --arguments 0x1000 0x2000 6 _ --num-warps 1 --trips 5

How it counts: every warp of one program is walked from entry to exit (`bench.warp`), evaluating the integer and
predicate instructions of all lanes, so trip counts of unrolled loops and their remainders follow from the arguments.
An issued instruction counts once however many lanes are active, also when its guard is false, because it takes an
issue slot. A branch on an unknown value falls through and is listed in `Analysis.assumptions`; a loop on an unknown
value needs `trips`. Whoever reports a number checks it against a count known beforehand: 16-byte gathers and
reductions per sample (`Analysis.loads`, `Analysis.reductions`).
"""

import argparse
import json
import struct
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cubin import Cubin, CubinError, Instruction, Parameter, read_cubin
from bench.warp import Launch, WalkError, walk

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
    ("fp32", ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "FSET", "FADD2", "FMUL2", "FFMA2", "FCHK", "FSWZADD")),
    ("fp64", ("DADD", "DMUL", "DFMA", "DSETP")),
    ("half", ("HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSETP2", "HSET2")),
    ("convert", ("I2F", "I2FP", "F2I", "F2IP", "F2F", "F2FP", "FRND", "I2I", "I2IP")),
    ("mufu", ("MUFU",)),
    ("shuffle", ("SHFL", "VOTE", "REDUX", "MATCH")),
    ("barrier", ("BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "MEMBAR", "BSSY", "BSYNC", "SYNCS", "ERRBAR")),
    ("control", ("BRA", "EXIT", "CALL", "RET", "NOP", "BREAK", "YIELD", "BPT", "NANOSLEEP")),
    ("predicate", ("ISETP", "PLOP3", "R2P", "P2R")),
    ("move", ("MOV", "SEL", "PRMT", "CS2R", "S2R", "S2UR", "R2UR", "MOVM")),
    ("integer", ("IADD3", "IADD", "VIADD", "IMAD", "LEA", "LOP3", "SHF", "SHL", "SHR", "IMNMX", "VIMNMX", "VIMNMX3")),
    ("integer", ("IABS", "SGXT", "POPC", "FLO", "BREV", "BMSK", "VABSDIFF", "VIADDMNMX", "IDP", "LOP")),
)
_CLASS_OF = {base: name for name, bases in _CLASSES for base in bases}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What one program of a kernel issues, all its warps together.

    `loads` and `stores`: global accesses by bytes per lane; `reductions` and `atomics` by element type and vector
    (`F32x4`). `static_spills` counts LDL and STL in the code, `stack` bytes per thread. `shared` is the statically
    allocated part: Triton's own is in the compiled kernel's metadata.
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
    unknown, except 8-byte ones, taken as pointers. `trips`: iterations of undecidable loops in address order.

    Raises CubinError for bytes that are no cubin, WalkError for an undecidable loop, ValueError for arguments that do
    not fit the parameters.
    """
    image = read_cubin(cubin, kernel=kernel)
    constants, memory = _place(image, arguments)
    launch = Launch(constants=constants, memory=memory, program=program, grid=grid, num_warps=num_warps)
    walks = [walk(image, launch, warp=warp, trips=trips) for warp in range(num_warps)]
    totals = [sum(counts) for counts in zip(*(one.counts for one in walks), strict=True)]
    return _summarize(
        image,
        totals,
        executed_per_warp=tuple(sum(one.counts) for one in walks),
        assumptions=tuple(dict.fromkeys(text for one in walks for text in one.assumptions)),
    )


def analyse_kernel(compiled: Any, arguments: Mapping[str, Any], **options: Any) -> Analysis:
    """`analyse` for what `triton.compile(ASTSource(...))` returned, with arguments by parameter name.

    Warps per program come from the kernel's metadata. Raises ValueError for names the kernel does not have.
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


def _summarize(image: Cubin, totals: list[int], **walked: Any) -> Analysis:
    opcodes: Counter[str] = Counter()
    kinds: dict[str, Counter] = {name: Counter() for name in ("classes", "loads", "stores", "reductions", "atomics")}
    for ins, count in zip(image.instructions, totals, strict=True):
        if not count:
            continue
        opcodes[ins.opcode] += count
        kind = classify(ins)
        kinds["classes"][kind] += count
        if kind in ("global load", "global store"):
            kinds["loads" if kind == "global load" else "stores"][access_bytes(ins)] += count
        elif kind in ("reduction", "atomic"):
            kinds["reductions" if kind == "reduction" else "atomics"][reduction_type(ins)] += count
    return Analysis(
        kernel=image.kernel,
        arch=image.arch,
        registers=image.registers,
        stack=image.stack,
        shared=image.shared,
        static_instructions=len(image.instructions),
        static_spills=sum(ins.base in ("LDL", "STL") for ins in image.instructions),
        executed=sum(totals),
        opcodes=dict(opcodes.most_common()),
        loops=_loops(image, totals),
        **{name: dict(counter.most_common()) for name, counter in kinds.items()},
        **walked,
    )


def classify(ins: Instruction) -> str:
    """The class an instruction is counted in; `uniform` for what runs once per warp on the uniform datapath."""
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


def _argument(text: str) -> int | float | None:
    if text == "_":
        return None
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def _program(text: str) -> tuple[int, int, int]:
    parts = [int(part) for part in text.split(",")]
    if not 1 <= len(parts) <= 3:
        raise ValueError(text)
    return (*parts, *[0] * (3 - len(parts)))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sass", description="Count the warp instructions that one program of a cubin issues."
    )
    parser.add_argument("cubin", type=Path, help="file written from compiled.asm['cubin']")
    parser.add_argument(
        "--arguments", type=_argument, nargs="*", default=[], help="kernel arguments in order; _ leaves one unknown"
    )
    parser.add_argument("--program", type=_program, default=(0, 0, 0), help="program (block) index x[,y[,z]]")
    parser.add_argument("--num-warps", type=int, default=1, help="warps per program (default 1)")
    parser.add_argument(
        "--trips", type=_numbers, default=(), help="iterations of undecidable loops in address order: 5,4"
    )
    parser.add_argument("--samples", type=float, help="divide by this many (query, head, sample) triples per program")
    parser.add_argument("--json", action="store_true", help="print the analysis as JSON")
    return parser


def _print(analysis: Analysis, samples: float | None) -> None:
    per = f", {analysis.executed / samples:.2f} per sample" if samples else ""
    print(f"{analysis.kernel} sm_{analysis.arch}: {analysis.registers} registers, {analysis.stack} bytes of stack")
    print(f"{analysis.executed} warp instructions ({analysis.static_instructions} in the code){per}")
    for name, count in analysis.classes.items():
        share = f"  {count / samples:.3f} per sample" if samples else ""
        print(f"  {name:14} {count:9}{share}")
    for name in ("loads", "stores", "reductions", "atomics"):
        print(f"{name}: {getattr(analysis, name) or 'none'}")
    for text in (*analysis.loops, *(f"assumed: {one}" for one in analysis.assumptions)):
        print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (2: unusable input)."""
    options = _parser().parse_args(argv)
    try:
        analysis = analyse(
            options.cubin.read_bytes(),
            options.arguments,
            program=options.program,
            num_warps=options.num_warps,
            trips=options.trips,
        )
    except (OSError, CubinError, WalkError, ValueError) as error:
        print(f"error: {options.cubin}: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(analysis), indent=2))
    else:
        _print(analysis, options.samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
