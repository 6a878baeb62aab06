"""Vectors of float32 lanes and raw addresses inside Numba kernels.

Numba vectorizes loops only where LLVM proves it safe; a sum over samples that lives in memory is not such a case. Here
a row of a head is one value of vector type, which LLVM keeps in registers: SSE, AVX, AVX-512 or NEON, whatever the
processor has. Kernels take addresses and strides instead of arrays: one signature for every input layout.
"""

import hashlib
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

FLOAT = ir.FloatType()


def source_digest(folder: Path) -> str:
    """Part of a type's name: Numba's disk cache sees changes of a kernel's own file only, not of those it calls."""
    sources = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


_DIGEST = source_digest(Path(__file__).parent)


class Width:
    """The number of lanes a kernel is compiled for; passed as its first argument."""

    def __init__(self, lanes: int):
        self.lanes = lanes


class WidthType(types.Type):
    """Numba's type of a `Width`."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(name=f"Width({lanes}, {_DIGEST})")


class LanesType(types.Type):
    """Numba's type of a vector of float32 lanes."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(name=f"Lanes({lanes})")


register_model(WidthType)(models.OpaqueModel)


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    """How LLVM holds a vector of lanes: in one value of vector type."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(FLOAT, kind.lanes))


@typeof_impl.register(Width)
def _type_of_width(value, context):
    return WidthType(value.lanes)


@unbox(WidthType)
def _unbox_width(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


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


def reduction(function):
    """A helper whose loop sums or compares in any order, so that LLVM may vectorize it (the order is still fixed)."""
    return njit(fastmath=_STRICT | {"reassoc", "nnan"}, **_OPTIONS)(function)


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _splat(builder, scalar, lanes):
    single = builder.insert_element(
        ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    return _shuffle(builder, single, single, [0] * lanes)


def _shuffle(builder, left, right, indices):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)
    return builder.shuffle_vector(left, right, mask)


def _fold(builder, vector, lanes, target):
    """Add the upper half of a vector to its lower half until `target` lanes are left."""
    while lanes > target:
        lanes //= 2
        low = _shuffle(builder, vector, vector, list(range(lanes)))
        high = _shuffle(builder, vector, vector, list(range(lanes, 2 * lanes)))
        vector = builder.fadd(low, high)
    return vector


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
def zeros(typing, width):
    """A vector of zeros."""
    lanes = LanesType(width.lanes)

    def code(context, builder, signature, args):
        return ir.Constant(context.get_value_type(lanes), [0.0] * lanes.lanes)

    return lanes(width), code


@intrinsic
def width_lanes(typing, width):
    """The number of lanes, a constant."""

    def code(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), width.lanes)

    return types.int64(width), code


@intrinsic
def load(typing, width, address):
    """The vector at a 4-byte aligned address."""
    lanes = LanesType(width.lanes)

    def code(context, builder, signature, args):
        return builder.load(_pointer(builder, args[1], context.get_value_type(lanes)), align=4)

    return lanes(width, types.int64), code


@intrinsic
def store(typing, address, vector):
    """Write a vector to a 4-byte aligned address."""

    def code(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), code


@intrinsic
def multiply_add(typing, total, scalar, vector):
    """`total + scalar * vector`."""

    def code(context, builder, signature, args):
        product = builder.fmul(_splat(builder, args[1], vector.lanes), args[2], flags=["contract"])
        return builder.fadd(args[0], product, flags=["contract"])

    return vector(vector, types.float32, vector), code


@intrinsic
def scale(typing, scalar, vector):
    """`scalar * vector`."""

    def code(context, builder, signature, args):
        return builder.fmul(_splat(builder, args[0], vector.lanes), args[1])

    return vector(types.float32, vector), code


@intrinsic
def finite(typing, vector):
    """The vector with 0 in place of lanes that are infinite or NaN."""

    def code(context, builder, signature, args):
        nothing = ir.Constant(args[0].type, [0.0] * vector.lanes)
        ordinary = builder.fcmp_ordered("==", builder.fsub(args[0], args[0]), nothing)
        return builder.select(ordinary, args[0], nothing)

    return vector(vector), code


@intrinsic
def dot(typing, left, right):
    """The scalar product of two vectors, summed in a fixed order."""

    def code(context, builder, signature, args):
        product = _fold(builder, builder.fmul(args[0], args[1]), left.lanes, 1)
        return builder.extract_element(product, ir.Constant(ir.IntType(32), 0))

    return types.float32(left, left), code


@intrinsic
def dot4(typing, a, b, c, d, right):
    """Four scalar products with the same right side, summed together: fewer shuffles than four times `dot`."""
    result = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):
        parts = [_fold(builder, builder.fmul(left, args[4]), right.lanes, 4) for left in args[:4]]
        pairs = [_add_neighbours(builder, parts[0], parts[1]), _add_neighbours(builder, parts[2], parts[3])]
        sums = _add_neighbours(builder, *pairs)
        items = [builder.extract_element(sums, ir.Constant(ir.IntType(32), i)) for i in range(4)]
        return context.make_tuple(builder, result, items)

    return result(a, b, c, d, right), code


def _add_neighbours(builder, left, right):
    even = _shuffle(builder, left, right, [0, 2, 4, 6])
    odd = _shuffle(builder, left, right, [1, 3, 5, 7])
    return builder.fadd(even, odd)


@intrinsic
def _power_of_two(typing, exponent):
    """2 to an integer between -126 and 127."""

    def code(context, builder, signature, args):
        biased = builder.add(args[0], ir.Constant(ir.IntType(32), 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(ir.IntType(32), 23)), FLOAT)

    return types.float32(types.int32), code


@intrinsic
def floor(typing, number):
    """Round a float32 down, as a float32."""

    def code(context, builder, signature, args):
        return builder.call(builder.module.declare_intrinsic("llvm.floor", [FLOAT]), args)

    return types.float32(types.float32), code


@intrinsic
def to_int(typing, number):
    """Truncate a float32 of small magnitude."""

    def code(context, builder, signature, args):
        return builder.fptosi(args[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic
def choose(typing, condition, yes, no):
    """`yes if condition else no` without a branch, which would keep LLVM from vectorizing."""

    def code(context, builder, signature, args):
        flag = cgutils.as_bool_bit(builder, args[0])
        return builder.select(flag, args[1], args[2])

    return types.float32(types.boolean, types.float32, types.float32), code


_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_SMALLEST = -87.0  # below, exp is less than 2 ** -125: taken as 0


@helper
def exp(x):
    """E to the power x <= 0 within two units in the last place (Cephes' polynomial); 0 for -inf; NaN for NaN."""
    bounded = choose(x < np.float32(_SMALLEST), np.float32(_SMALLEST), x)
    power = floor(bounded * np.float32(_LOG2_E) + np.float32(0.5))
    rest = bounded - power * np.float32(_LN2_HIGH) - power * np.float32(_LN2_LOW)
    y = np.float32(1.9875691500e-4)
    y = y * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1.0)
    # NaN must not reach the conversion; the polynomial carries it on.
    power = choose(power == power, power, np.float32(0.0))
    y = y * _power_of_two(to_int(power))
    return choose(x < np.float32(_SMALLEST), np.float32(0.0), y)
