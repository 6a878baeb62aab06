"""A small simulator of PTX: numpy over the 32 lanes of a warp, one warp after the other from barrier to barrier.

It runs what Triton's NVIDIA backend makes of a kernel, inline assembly and matrix instructions included, so that the
code paths the interpreter never takes are executed without a GPU. Only the instructions those kernels use are known;
others raise. Branches must be uniform in a warp. Registers are raw bits: uint64 for every lane.
"""

import re
from itertools import product

import numpy as np

LANES = np.arange(32, dtype=np.uint64)
GLOBAL_BASE = 1 << 33  # addresses below are shared memory


class Memory:
    """Global memory: arrays by address, 512 bytes apart from each other; an access outside all of them raises."""

    def __init__(self):
        self.arrays: list[tuple[int, np.ndarray]] = []
        self.end = GLOBAL_BASE

    def place(self, array: np.ndarray) -> int:
        """Address given to a contiguous array; stores change the array itself."""
        address = self.end
        self.arrays.append((address, array.reshape(-1).view(np.uint8)))
        self.end = -(-(address + array.nbytes + 512) // 512) * 512
        return address

    def at(self, address: int, size: int) -> tuple[np.ndarray, int]:
        for start, memory in self.arrays:
            if start <= address and address + size <= start + len(memory):
                return memory, address - start
        raise IndexError(f"{size} bytes at {address:#x} belong to no tensor")


def _wide(x):
    return np.asarray(x).astype(np.uint64)


def _bits(values, kind: str) -> np.ndarray:
    """Raw bits of numbers of a PTX type."""
    if kind == "f32":
        return _wide(values.astype(np.float32).view(np.uint32))
    if kind == "f16":
        return _wide(values.astype(np.float16).view(np.uint16))
    if kind == "bf16":
        raw = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        rounded = (raw + np.uint64(0x7FFF) + (raw >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
        return np.where(np.isnan(values), np.uint64(0x7FFF), rounded)
    size = int(kind[1:])
    return values.astype(np.int64).view(np.uint64) & np.uint64((1 << size) - 1)


def _numbers(bits, kind: str) -> np.ndarray:
    """Raw bits as numbers to compute with: float64, or int64 (unsigned 64-bit arithmetic wraps alike)."""
    if kind == "f32":
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    size = int(kind[1:])
    bits = bits & np.uint64((1 << size) - 1)
    if kind[0] == "s" and size < 64:
        return bits.astype(np.int64) - np.where(bits >> np.uint64(size - 1), 1 << size, 0)
    return bits.view(np.int64)


def _halves(bits, size=16):
    mask = np.uint64((1 << size) - 1)
    return bits & mask, bits >> np.uint64(size) & mask


def _statements(ptx: str) -> list[tuple[str | None, str | None, str, list[str]]]:
    """(label, predicate, operation, operands) of a kernel's body; names declared in a block are made its own."""
    opening = ptx.index("\n{", ptx.index(".entry"))
    lines = [re.sub(r"//.*", "", line).strip() for line in ptx[opening : ptx.index("\n}", opening)].splitlines()]
    lines = [re.sub(r"^(\$\w+):$", r"label \1;", line) for line in lines if not line.startswith(".loc")]
    statements, block, names = [], 0, set()
    for text in " ".join(lines).split(";"):
        text = text.strip()
        while text[:1] in ("{", "}"):  # no statement starts with a vector
            text, block, names = text[1:].strip(), block + 1, set()
        if text.startswith(".reg") and "%" not in text:
            names |= {name.strip() for name in text.split(None, 2)[2].split(",")}
        if not text or text.startswith("."):
            continue
        if text.startswith("label"):
            statements.append((text.split()[1], None, "", []))
            continue
        if names:
            pattern = rf"(?<![\w%$.])({'|'.join(names)})(?![\w.])"
            text = re.sub(pattern, rf"\1@{block}", text)
        predicate = None
        if text.startswith("@"):
            predicate, text = text[1:].split(None, 1)
        operation, *rest = text.split(None, 1)
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest[0]) if rest else []
        statements.append((None, predicate, operation, operands))
    return statements


class Program:
    """A compiled kernel; `run` executes one program of its grid."""

    def __init__(self, ptx: str):
        self.statements = _statements(ptx)
        self.labels = {s[0]: i for i, s in enumerate(self.statements) if s[0]}
        self.warps = int(re.search(r"\.reqntid (\d+)", ptx)[1]) // 32
        self.executed: dict[str, int] = {}  # how often, by instruction

    def run(self, parameters: list[int], memory: Memory, block: tuple[int, int, int], grid: tuple[int, int, int]):
        shared = np.zeros(1 << 17, np.uint8)
        warps = [_Warp(self, number, parameters, memory, shared) for number in range(self.warps)]
        for warp in warps:
            for axis, at, size in zip("xyz", block, grid, strict=True):
                warp.registers[f"%ctaid.{axis}"] = np.full(32, at, np.uint64)
                warp.registers[f"%nctaid.{axis}"] = np.full(32, size, np.uint64)
        # In both orders by turns: what lacks a barrier between two warps finds stale numbers in one of them.
        running = [warp.run() for warp in warps]
        while running:
            waiting = [warp for warp in running if next(warp, None)]
            assert len(waiting) in (0, len(running)), "some warps wait for others that have ended"
            running = waiting[::-1]


class _Warp:
    """A warp's registers, and the memory that it works on."""

    def __init__(self, program: Program, number: int, parameters: list[int], memory: Memory, shared: np.ndarray):
        self.program, self.parameters, self.memory, self.shared = program, parameters, memory, shared
        lane = LANES.copy()
        self.registers = {"%tid.x": lane + np.uint64(32 * number), "%laneid": lane, "global_smem": _wide(np.zeros(32))}

    def run(self):
        """Run to the end; yields True at every barrier."""
        position, statements, executed = 0, self.program.statements, self.program.executed
        while True:
            _, predicate, operation, operands = statements[position]
            position += 1
            if not operation:
                continue
            mask = np.ones(32, bool)
            if predicate:
                mask = self.read(predicate.removeprefix("!")).astype(bool) ^ predicate.startswith("!")
            executed[operation] = executed.get(operation, 0) + 1
            if operation.startswith("bra"):
                assert mask.all() or not mask.any(), "divergent branch"
                if mask.all():
                    position = self.program.labels[operands[0]]
            elif operation == "ret":
                assert mask.all() or not mask.any(), "divergent return"
                if mask.all():
                    return
            elif operation.startswith("bar."):
                assert mask.all(), "a barrier for some lanes"
                if "warp" not in operation:
                    yield True
            else:
                self.step(operation.split("."), operands, mask)

    def read(self, operand: str) -> np.ndarray:
        if operand in self.registers:
            return self.registers[operand]
        if operand.startswith("0f"):
            return np.full(32, int(operand[2:], 16), np.uint64)
        return np.full(32, int(operand.rstrip("U"), 0) & (2**64 - 1), np.uint64)

    def write(self, operand: str, bits: np.ndarray, mask: np.ndarray):
        old = self.registers.get(operand)
        self.registers[operand] = bits.astype(np.uint64) if old is None or mask.all() else np.where(mask, bits, old)

    def step(self, op: list[str], operands: list[str], mask: np.ndarray):
        base, kind = op[0], op[-1]
        if base in ("ld", "st", "atom", "red"):
            self.access(op, operands, mask)
        elif base == "mov":
            self.move(kind, operands, mask)
        elif base == "shfl":
            self.shuffle(op, operands, mask)
        elif base == "mma":
            self.multiply_matrices(op, operands, mask)
        elif base in ("stmatrix", "ldmatrix"):
            self.matrix_access(op, operands)
        else:
            sources = [self.read(x) for x in operands[1:]]
            self.write(operands[0], self.compute(op, kind, sources), mask)

    def compute(self, op, kind, sources):
        base = op[0]
        if kind.endswith("x2"):
            one, size = kind[:-2], 32 if kind == "f32x2" else 16
            halves = [[_numbers(h, one) for h in _halves(x, size)] for x in sources]
            low, high = (self.arithmetic(base, one, op, [h[i] for h in halves]) for i in (0, 1))
            return low | high << np.uint64(size)
        if base == "cvt":
            return self.convert(op, sources)
        if op[-2] == "f32" and kind in ("f16", "bf16"):  # a sum, or a product and a sum, in the last one's float32
            *narrow, wide = sources
            numbers = [*(_numbers(x, kind) for x in narrow), _numbers(wide, "f32")]
            return self.arithmetic(base, "f32", op, numbers)
        if base == "setp":
            return self.compare(op[1], *(_numbers(x, kind) for x in sources))
        if base == "selp":
            return np.where(sources[2].astype(bool), sources[0], sources[1])
        if base in ("and", "or", "xor", "not"):
            if base == "not":
                return ~sources[0] & np.uint64(1 if kind == "pred" else (1 << int(kind[1:])) - 1)
            return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[base](*sources)
        if base == "prmt":
            both = sources[0] & np.uint64(0xFFFFFFFF) | sources[1] << np.uint64(32)
            chosen = [sources[2] >> np.uint64(4 * i) & np.uint64(7) for i in range(4)]
            return sum(
                (both >> byte * np.uint64(8) & np.uint64(0xFF)) << np.uint64(8 * i) for i, byte in enumerate(chosen)
            )
        if base == "bfe":
            field = (sources[0] >> sources[1]) & ((np.uint64(1) << sources[2]) - np.uint64(1))
            if kind[0] == "s":  # the field's first bit is its sign
                sign = np.uint64(1) << (sources[2] - np.uint64(1))
                return (field ^ sign) - sign & np.uint64((1 << int(kind[1:])) - 1)
            return field
        if base in ("shl", "shr"):
            size = int(kind[1:])
            amount = np.minimum(sources[1] & np.uint64(0xFFFFFFFF), np.uint64(size))
            value = _numbers(sources[0], kind if kind[0] == "s" else f"u{size}")
            if base == "shr" and kind[0] == "s":
                return _bits(value >> np.minimum(amount.astype(np.int64), 63), kind)
            bits = sources[0] & np.uint64((1 << size) - 1)
            full = amount >= 64
            moved = np.where(full, 0, bits << (amount % 64) if base == "shl" else bits >> (amount % 64))
            return _wide(moved) & np.uint64((1 << size) - 1)
        wide = "wide" in op
        numbers = [_numbers(x, kind if not (wide and i == 2) else kind[0] + "64") for i, x in enumerate(sources)]
        return self.arithmetic(base, kind[0] + "64" if wide else kind, op, numbers)

    @staticmethod
    def compare(name, a, b):
        """A name with "u" at its end is also true for numbers without an order."""
        unordered = (a != a) | (b != b)
        result = {"eq": a == b, "ne": a != b, "lt": a < b, "gt": a > b, "le": a <= b, "ge": a >= b}[name[:2]]
        return np.where(unordered, name.endswith("u"), result).astype(np.uint64)

    def arithmetic(self, base, kind, op, n):
        with np.errstate(all="ignore"):
            result = {
                "add": lambda: n[0] + n[1], "sub": lambda: n[0] - n[1], "mul": lambda: n[0] * n[1],
                "mad": lambda: n[0] * n[1] + n[2], "fma": lambda: n[0] * n[1] + n[2],
                "min": lambda: np.fmin(n[0], n[1]), "max": lambda: np.fmax(n[0], n[1]),
                "neg": lambda: -n[0], "abs": lambda: np.abs(n[0]), "ex2": lambda: np.exp2(n[0]),
                "lg2": lambda: np.log2(n[0]),
                "div": lambda: n[0] / n[1] if "f" in kind else np.trunc(n[0] / n[1]).astype(np.int64),
                "rem": lambda: np.fmod(n[0], n[1]),
            }[base]()  # fmt: skip
            if "sat" in op:
                result = np.where(np.isnan(result), 0.0, np.clip(result, 0.0, 1.0))
            return _bits(result, kind)

    def convert(self, op, sources):
        if op[-2] in ("f16x2", "bf16x2"):  # the first source goes to the upper half
            high, low = (_bits(_numbers(x, "f32"), op[-2][:-2]) for x in sources)
            return low | high << np.uint64(16)
        numbers = _numbers(sources[0], op[-1])
        with np.errstate(all="ignore"):
            if "f" in op[-1] and op[-2][0] in "su":
                assert "rzi" in op, op
                numbers = np.nan_to_num(np.trunc(numbers), nan=0.0, posinf=2.0**31, neginf=-(2.0**31))
            elif "rmi" in op:
                numbers = np.floor(numbers)
            return _bits(numbers, op[-2])

    def move(self, kind, operands, mask):
        target, source = operands
        if target.startswith("{"):
            parts = [x.strip() for x in target.strip("{}").split(",")]
            size = int(kind[1:]) // len(parts)
            bits = self.read(source)
            for i, part in enumerate(parts):
                self.write(part, bits >> np.uint64(i * size) & np.uint64((1 << size) - 1), mask)
            return
        if source.startswith("{"):
            parts = [self.read(x.strip()) for x in source.strip("{}").split(",")]
            size = int(kind[1:]) // len(parts)
            bits = _wide(np.zeros(32))
            for i, part in enumerate(parts):
                bits = bits | (part & np.uint64((1 << size) - 1)) << np.uint64(i * size)
            self.write(target, bits, mask)
            return
        limit = 1 if kind == "pred" else (1 << int(kind[1:])) - 1
        self.write(target, self.read(source) & np.uint64(limit), mask)

    def address(self, operand):
        inner = operand.strip("[] ")
        register, _, displacement = inner.partition("+")
        return self.read(register.strip()) + np.uint64(int(displacement) if displacement else 0)

    def place(self, address, size):
        if address < GLOBAL_BASE:
            return self.shared, address
        return self.memory.at(address, size)

    def access(self, op, operands, mask):
        kind, count = op[-1], next((int(x[1]) for x in op if re.fullmatch(r"v[248]", x)), 1)
        size = int(re.sub(r"\D", "", kind)) // 8
        if op[1] == "param":
            index = int(operands[1].strip("[]").rsplit("_", 1)[1])
            bits = np.full(32, self.parameters[index] & (2**64 - 1), np.uint64)
            wide = _bits(_numbers(bits, "s32"), "s64") if kind == "s32" else bits & np.uint64((1 << 8 * size) - 1)
            return self.write(operands[0], wide, mask)
        first = 1 if op[0] in ("ld", "atom") else 0
        address = self.address(operands[first])
        names = operands[0 if op[0] == "ld" else first + 1].strip("{} ").split(",")
        names = [x.strip() for x in names]
        for lane in np.flatnonzero(mask):
            assert address[lane] % (size * count) == 0, f"{op} at {int(address[lane]):#x} is not aligned"
            memory, at = self.place(int(address[lane]), size * count)
            for i, name in enumerate(names):
                piece = memory[at + i * size : at + (i + 1) * size]
                if op[0] == "ld":
                    bits = int.from_bytes(piece.tobytes(), "little")
                    self.registers.setdefault(name, _wide(np.zeros(32)))
                    self.registers[name] = self.registers[name].copy()
                    self.registers[name][lane] = bits
                elif op[0] == "st":
                    bits = int(self.read(name)[lane]) & ((1 << 8 * size) - 1)
                    piece[:] = np.frombuffer(bits.to_bytes(size, "little"), np.uint8)
                else:
                    assert "add" in op, op
                    number = piece.view(np.float32 if kind == "f32" else np.int64)
                    number += _numbers(self.read(name)[lane : lane + 1], kind).astype(number.dtype)
        return None

    def shuffle(self, op, operands, mask):
        target = operands[0].split("|")[0]
        value, number = self.read(operands[1]), self.read(operands[2])
        source = {"bfly": LANES ^ number, "idx": number & np.uint64(31)}[op[2]]
        self.write(target, value[source.astype(int)], mask)

    def multiply_matrices(self, op, operands, mask):
        """m16n8k16, row.col, float32 sums (PTX ISA, "Matrix Fragments for mma.m16n8k16")."""
        assert op[3] == "m16n8k16", op
        kind = op[7]
        d, a, b, c = ([x.strip() for x in operand.strip("{}").split(",")] for operand in operands)
        A, B = np.zeros((16, 16)), np.zeros((16, 8))
        C = np.zeros((16, 8))
        group, member = np.arange(32) // 4, np.arange(32) % 4
        for register, half in product(range(4), range(2)):
            row, column = group + 8 * (register % 2), 2 * member + half + 8 * (register // 2)
            A[row, column] = _numbers(_halves(self.read(a[register]))[half], kind)
        for register, half in product(range(2), range(2)):
            B[2 * member + half + 8 * register, group] = _numbers(_halves(self.read(b[register]))[half], kind)
        for i in range(4):
            C[group + 8 * (i // 2), 2 * member + i % 2] = _numbers(self.read(c[i]), "f32")
        with np.errstate(all="ignore"):
            D = A @ B + C
        for i in range(4):
            self.write(d[i], _bits(D[group + 8 * (i // 2), 2 * member + i % 2], "f32"), mask)

    def matrix_access(self, op, operands):
        """8 x 8 matrices of 16 bits.

        Lane 8 j + i has the address of row i of matrix j; lane l holds columns 2 (l % 4) and 2 (l % 4) + 1 of row
        l / 4, or, transposed, these rows of that column.
        """
        store, transposed = op[0] == "stmatrix", "trans" in op
        pointer, names = operands if store else operands[::-1]
        address = self.address(pointer)
        for j, name in enumerate(x.strip() for x in names.strip("{} ").split(",")):
            if not store:
                self.registers[name] = _wide(np.zeros(32))
            for lane, half in product(range(32), range(2)):
                row, column = lane // 4, 2 * (lane % 4) + half
                if transposed:
                    row, column = column, row
                memory, at = self.place(int(address[8 * j + row]), 16)
                piece = memory[at + 2 * column : at + 2 * column + 2]
                if store:
                    bits = int(self.read(name)[lane]) >> 16 * half & 0xFFFF
                    piece[:] = np.frombuffer(bits.to_bytes(2, "little"), np.uint8)
                else:
                    self.registers[name][lane] |= np.uint64(int.from_bytes(piece.tobytes(), "little") << 16 * half)
