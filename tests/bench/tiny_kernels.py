"""Compiles small kernels with known instruction counts for `test_sass.py`: tiny_kernels.py FOLDER ARCH...

Run as a program, in a process without TRITON_INTERPRET, which excludes compiling.
"""

import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def counted_loop(x, y, n, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for i in range(n):
        total += tl.load(x + i * TILE + at)
    tl.store(y + at, total)


@triton.jit
def computed_trips(x, y, a, b, c, TILE: tl.constexpr):
    """Loops as often as integer arithmetic on arguments and program index says, signed division included."""
    at = tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    trips = (a * 7 + b // c + tl.program_id(0)) % 13 + tl.minimum(b % c, 5)
    if a > b:
        trips ^= 3
    for i in range(trips):
        total += tl.load(x + i * TILE + at)
    tl.store(y + at, total)


@triton.jit
def loaded_trips(x, y, count, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for row in range(3):
        for i in range(tl.load(count + row)):
            total += tl.load(x + (i + row) * TILE + at)
    tl.store(y + at, total)


@triton.jit
def scatter(x, y, cell, n, TILE: tl.constexpr, D: tl.constexpr):
    rows = tl.arange(0, TILE)
    columns = tl.arange(0, D)[None, :]
    for i in range(n):
        index = tl.load(cell + i * TILE + rows)[:, None]
        tl.atomic_add(y + index * D + columns, tl.load(x + index * D + columns), sem="relaxed")


@triton.jit
def repaired(x, y, TILE: tl.constexpr):
    """Does everything twice where a sum is not finite."""
    at = tl.arange(0, TILE)
    value = tl.load(x + at)
    total = tl.sum(value)
    if total != total:
        for i in range(40):
            total += tl.sum(tl.where(value == value, tl.load(x + i * TILE + at), 0.0))
    tl.store(y + at, value * total)


@triton.jit
def packed_half(x, y, n, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    total = tl.load(x + at)
    weight = tl.load(x + TILE + at)
    for _ in range(n):
        total = tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $1;", "=r,r,r", [total, weight], dtype=tl.float16, is_pure=True, pack=2
        )
    tl.store(y + at, total)


@triton.jit
def tuples(x, y, sizes, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for i in range(sizes[0] * sizes[1]):
        total += tl.load(x + i * TILE + at)
    tl.store(y + at, total)


FLOATS = {"x": "*fp32", "y": "*fp32"}
# kernel -> (signature, constants, warps)
KERNELS = {
    counted_loop: (FLOATS | {"n": "i64"}, {"TILE": 256}, 2),
    computed_trips: (FLOATS | {"a": "i32", "b": "i32", "c": "i32"}, {"TILE": 128}, 1),
    loaded_trips: (FLOATS | {"count": "*i32"}, {"TILE": 128}, 1),
    scatter: (FLOATS | {"cell": "*i32", "n": "i32"}, {"TILE": 4, "D": 32}, 1),
    repaired: (FLOATS, {"TILE": 128}, 1),
    packed_half: ({"x": "*fp16", "y": "*fp16", "n": "i32"}, {"TILE": 256}, 1),
    tuples: (FLOATS | {"sizes": ("i32", "i32")}, {"TILE": 128}, 1),
}


def compile_all(folder: Path, archs: list[int]) -> None:
    for kernel, (signature, constants, warps) in KERNELS.items():
        full = signature | dict.fromkeys(constants, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(full.values()) if str(kind).startswith("*")}
        source = ASTSource(fn=kernel, signature=full, constexprs=constants, attrs=aligned)
        for arch in archs:
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
            (folder / f"{kernel.__name__}.{arch}.cubin").write_bytes(compiled.asm["cubin"])


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]), [int(arch) for arch in sys.argv[2:]])
