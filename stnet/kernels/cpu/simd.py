"""Vectors of float32 lanes and raw addresses inside Numba kernels; `lanes` computes with them.

Numba vectorizes loops only where LLVM proves it safe and worth it. A sum over samples that lives in memory is not such
a case, nor is a loop over the few samples of a frame. Here a row of a head, or eight samples, are one value of vector
type, which LLVM keeps in registers: SSE, AVX, AVX-512 or NEON, whatever the processor has. Kernels take addresses and
strides instead of arrays: one signature for every input layout.
"""

import hashlib
from pathlib import Path

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import lower_constant
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

FLOAT, INT, LONG, BIT = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(1)


def source_digest(folder: Path) -> str:
    """Part of a type's name: Numba's disk cache sees changes of a kernel's own file only, not of those it calls."""
    sources = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


_DIGEST = source_digest(Path(__file__).parent)


class WidthType(types.Type):
    """Numba's type of a `Width`."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(name=f"Width({lanes}, {_DIGEST})")


class Width:
    """The number of lanes a kernel or a helper is compiled for; passed as its first argument."""

    def __init__(self, lanes: int):
        self.lanes, self.type = lanes, WidthType(lanes)


class LanesType(types.Type):
    """Numba's type of a vector of float32 lanes."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(name=f"Lanes({lanes})")


class MaskType(types.Type):
    """Numba's type of a vector of conditions, one for each lane."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(name=f"Mask({lanes})")


register_model(WidthType)(models.OpaqueModel)


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    """How LLVM holds a vector of lanes: in one value of vector type."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(FLOAT, kind.lanes))


@register_model(MaskType)
class MaskModel(models.PrimitiveModel):
    """How LLVM holds a vector of conditions."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(BIT, kind.lanes))


@typeof_impl.register(Width)
def _type_of_width(value, context):
    return value.type


@unbox(WidthType)
def _unbox_width(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


@lower_constant(WidthType)
def _constant_width(context, builder, kind, value):
    return context.get_dummy_value()


_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_STRICT = {"contract", "nsz"}  # infinite and NaN numbers behave, and sums keep their order


def kernel(function):
    """Compile without the GIL, cached on disk where a cache folder can be written."""
    try:
        return njit(cache=True, fastmath=_STRICT, **_OPTIONS)(function)
    except RuntimeError:  # no folder for the cache
        return njit(fastmath=_STRICT, **_OPTIONS)(function)


def helper(function):
    """Compile a function that kernels call; LLVM inlines it."""
    return njit(fastmath=_STRICT, **_OPTIONS)(function)


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def read(typing, address, index):
    """The float32 at `address`, `index` elements on."""

    def code(context, builder, signature, args):
        return builder.load(builder.gep(_pointer(builder, args[0], FLOAT), [args[1]]))

    return types.float32(types.int64, types.int64), code


@intrinsic
def write(typing, address, index, number):
    """Store a float32 `index` elements after `address`."""

    def code(context, builder, signature, args):
        builder.store(args[2], builder.gep(_pointer(builder, args[0], FLOAT), [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), code


@intrinsic
def read_long(typing, address, index):
    """The int64 at `address`, `index` elements on."""

    def code(context, builder, signature, args):
        return builder.load(builder.gep(_pointer(builder, args[0], LONG), [args[1]]))

    return types.int64(types.int64, types.int64), code


@intrinsic
def write_long(typing, address, index, number):
    """Store an int64 `index` elements after `address`."""

    def code(context, builder, signature, args):
        builder.store(args[2], builder.gep(_pointer(builder, args[0], LONG), [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def fetch_and_add(typing, address):
    """Add 1 to an int64 that threads share; return what it was."""

    def code(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(builder, args[0], LONG), ir.Constant(LONG, 1), "monotonic")

    return types.int64(types.int64), code


@intrinsic
def width_lanes(typing, width):
    """The number of lanes, a constant."""

    def code(context, builder, signature, args):
        return ir.Constant(LONG, width.lanes)

    return types.int64(width), code


@intrinsic
def load(typing, width, address):
    """The vector at a 4-byte aligned address."""
    lanes = LanesType(width.lanes)

    def code(context, builder, signature, args):
        return builder.load(_pointer(builder, args[1], context.get_value_type(lanes)), align=4)

    return lanes(width, types.int64), code


@intrinsic
def load_first(typing, width, address, count, filling):
    """The vector at an address of which only the first `count` lanes are read; the others are `filling`."""
    lanes = LanesType(width.lanes)

    def code(context, builder, signature, args):
        kind = context.get_value_type(lanes)
        mask = first_lanes(builder, args[2], width.lanes)
        arguments = [_pointer(builder, args[1], kind), ir.Constant(INT, 4), mask, splat(builder, args[3], width.lanes)]
        return call_intrinsic(builder, f"llvm.masked.load.v{width.lanes}f32.p0", kind, arguments)

    return lanes(width, types.int64, types.int64, types.float32), code


@intrinsic
def store(typing, address, vector):
    """Write a vector to a 4-byte aligned address."""

    def code(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), code


@intrinsic
def store_first(typing, address, vector, count):
    """Write the first `count` lanes of a vector to a 4-byte aligned address, all where there are not so many."""

    def code(context, builder, signature, args):
        pointer = _pointer(builder, args[0], args[1].type)
        mask = first_lanes(builder, args[2], vector.lanes)
        arguments = [args[1], pointer, ir.Constant(INT, 4), mask]
        call_intrinsic(builder, f"llvm.masked.store.v{vector.lanes}f32.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(types.int64, vector, types.int64), code


@intrinsic
def store_cells(typing, address, first, columns, left, top):
    """Write the int64 numbers of the cells (left, top), as float32 lanes, of levels that start at int32 `first`."""

    def code(context, builder, signature, args):
        integers = ir.VectorType(INT, left.lanes)
        starts, widths = (builder.load(_pointer(builder, x, integers), align=4) for x in args[1:3])
        x, y = (builder.fptosi(number, integers) for number in args[3:])
        cells = builder.add(starts, builder.add(builder.mul(y, widths), x))
        cells = builder.sext(cells, ir.VectorType(LONG, left.lanes))
        builder.store(cells, _pointer(builder, args[0], cells.type), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, left, top), code


def first_lanes(builder, count, lanes):
    """A mask of the first `count` lanes, in LLVM's language."""
    numbers = ir.Constant(ir.VectorType(INT, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, builder.trunc(count, INT), lanes))


def call_intrinsic(builder, name, result, arguments):
    """Call a function that LLVM knows by name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def splat(builder, scalar, lanes):
    """A vector of equal numbers, in LLVM's language."""
    kind = ir.VectorType(scalar.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INT, 0))
    return shuffle(builder, single, single, [0] * lanes)


def shuffle(builder, left, right, indices):
    """The vector of the lanes with these indices of two vectors, in LLVM's language."""
    mask = ir.Constant(ir.VectorType(INT, len(indices)), indices)
    return builder.shuffle_vector(left, right, mask)
