"""Arithmetic of vectors of lanes: operators, minima and maxima, sums in a fixed order, the exponential."""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from stnet.kernels.cpu.simd import INT, LanesType, MaskType, call_intrinsic, helper, shuffle, splat

_FLAGS = ["contract", "nsz"]


def _vectors(builder, lanes, kinds, values):
    """Values as vectors, scalars spread."""
    return [x if isinstance(k, LanesType) else splat(builder, x, lanes) for k, x in zip(kinds, values, strict=True)]


def _lanes_of(*kinds):
    """The type of the lanes among types that go together with them, None where there are none or others."""
    lanes = {kind for kind in kinds if isinstance(kind, LanesType)}
    rest = {kind for kind in kinds if not isinstance(kind, LanesType)}
    return lanes.pop() if len(lanes) == 1 and rest <= {types.float32} else None


def _define(operation, emit, result):
    """Let kernels apply a Python operator to lanes, or to lanes and a float32."""

    @intrinsic
    def apply(typing, a, b):
        kind = _lanes_of(a, b)

        def code(context, builder, signature, args):
            return emit(builder, *_vectors(builder, kind.lanes, (a, b), args))

        return result(kind)(a, b), code

    @overload(operation)
    def of_lanes(a, b):
        if _lanes_of(a, b) is not None:
            return lambda a, b: apply(a, b)
        return None


def _same(kind):
    return kind


def _conditions(kind):
    return MaskType(kind.lanes)


_define(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_FLAGS), _same)
_define(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_FLAGS), _same)
_define(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_FLAGS), _same)
_define(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), _conditions)
_define(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), _conditions)
_define(operator.eq, lambda builder, a, b: builder.fcmp_ordered("==", a, b), _conditions)


@intrinsic
def _both(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.and_(*args)


@overload(operator.and_)
def _and_of_masks(a, b):
    if isinstance(a, MaskType) and a == b:
        return lambda a, b: _both(a, b)
    return None


@intrinsic
def where(typing, mask, yes, no):
    """`yes` in the lanes whose condition holds, `no` in the others; either may be a float32."""
    lanes = LanesType(mask.lanes)

    def code(context, builder, signature, args):
        return builder.select(args[0], *_vectors(builder, mask.lanes, (yes, no), args[1:]))

    return lanes(mask, yes, no), code


@intrinsic
def spread(typing, width, number):
    """A vector of equal numbers."""
    lanes = LanesType(width.lanes)
    return lanes(width, types.float32), lambda context, builder, signature, args: splat(builder, args[1], width.lanes)


@intrinsic
def multiply_add(typing, total, scalar, vector):
    """`total + scalar * vector`."""

    def code(context, builder, signature, args):
        product = builder.fmul(splat(builder, args[1], vector.lanes), args[2], flags=["contract"])
        return builder.fadd(args[0], product, flags=["contract"])

    return vector(vector, types.float32, vector), code


@intrinsic
def floor(typing, vector):
    """Round down."""

    def code(context, builder, signature, args):
        return call_intrinsic(builder, f"llvm.floor.v{vector.lanes}f32", args[0].type, args)

    return vector(vector), code


@intrinsic(prefer_literal=True)
def every_second(typing, vector, first):
    """Half of the lanes: the even ones where `first` is 0, the odd ones where it is 1."""
    half = LanesType(vector.lanes // 2)

    def code(context, builder, signature, args):
        return shuffle(builder, args[0], args[0], list(range(first.literal_value, vector.lanes, 2)))

    return half(vector, first), code


@intrinsic
def interleave(typing, even, odd):
    """The lanes of two vectors in turn."""
    both = LanesType(2 * even.lanes)

    def code(context, builder, signature, args):
        return shuffle(builder, *args, [i // 2 + i % 2 * even.lanes for i in range(2 * even.lanes)])

    return both(even, odd), code


def _is_finite(builder, vector):
    nothing = ir.Constant(vector.type, [0.0] * vector.type.count)
    return builder.fcmp_ordered("==", builder.fsub(vector, vector), nothing)


@intrinsic
def finite(typing, vector):
    """The vector with 0 in place of lanes that are infinite or NaN."""

    def code(context, builder, signature, args):
        nothing = ir.Constant(args[0].type, [0.0] * vector.lanes)
        return builder.select(_is_finite(builder, args[0]), args[0], nothing)

    return vector(vector), code


@intrinsic
def all_finite(typing, vector):
    """Whether no lane is infinite or NaN."""

    def code(context, builder, signature, args):
        bits = builder.bitcast(_is_finite(builder, args[0]), ir.IntType(vector.lanes))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(vector), code


def _fold(builder, vector, lanes, target, combine):
    """Combine the upper half of a vector with its lower half until `target` lanes are left."""
    while lanes > target:
        lanes //= 2
        low = shuffle(builder, vector, vector, list(range(lanes)))
        high = shuffle(builder, vector, vector, list(range(lanes, 2 * lanes)))
        vector = combine(builder, low, high)
    return vector


def _sum(builder, a, b):
    return builder.fadd(a, b)


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _first(builder, vector):
    return builder.extract_element(vector, ir.Constant(INT, 0))


@intrinsic
def sum_of(typing, vector):
    """The sum of the lanes, in a fixed order."""

    def code(context, builder, signature, args):
        return _first(builder, _fold(builder, args[0], vector.lanes, 1, _sum))

    return types.float32(vector), code


@intrinsic
def largest_of(typing, vector):
    """The largest lane, none of them NaN."""

    def code(context, builder, signature, args):
        return _first(builder, _fold(builder, args[0], vector.lanes, 1, _larger))

    return types.float32(vector), code


@intrinsic
def dot4(typing, a, b, c, d, right):
    """Four scalar products with the same right side, summed together: fewer shuffles than four times `sum_of`."""
    result = types.UniTuple(types.float32, 4)

    def code(context, builder, signature, args):
        parts = [_fold(builder, builder.fmul(left, args[4]), right.lanes, 4, _sum) for left in args[:4]]
        pairs = [_add_neighbours(builder, parts[0], parts[1]), _add_neighbours(builder, parts[2], parts[3])]
        sums = _add_neighbours(builder, *pairs)
        items = [builder.extract_element(sums, ir.Constant(INT, i)) for i in range(4)]
        return context.make_tuple(builder, result, items)

    return result(a, b, c, d, right), code


def _add_neighbours(builder, left, right):
    even = shuffle(builder, left, right, [0, 2, 4, 6])
    odd = shuffle(builder, left, right, [1, 3, 5, 7])
    return builder.fadd(even, odd)


@intrinsic
def _power_of_two(typing, exponent):
    """2 to whole numbers between -126 and 127."""

    def code(context, builder, signature, args):
        integers = ir.VectorType(INT, exponent.lanes)
        biased = builder.add(builder.fptosi(args[0], integers), ir.Constant(integers, [127] * exponent.lanes))
        return builder.bitcast(builder.shl(biased, ir.Constant(integers, [23] * exponent.lanes)), args[0].type)

    return exponent(exponent), code


_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_SMALLEST = np.float32(-87.0)  # below, exp is less than 2 ** -125: taken as 0


@helper
def exp(x):
    """E to the power x <= 0 within two units in the last place (Cephes' polynomial); 0 for -inf; NaN for NaN."""
    bounded = where(x < _SMALLEST, _SMALLEST, x)
    power = floor(bounded * _LOG2_E + np.float32(0.5))
    rest = bounded - power * _LN2_HIGH - power * _LN2_LOW
    y = rest * np.float32(1.9875691500e-4) + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1.0)
    # NaN must not reach the conversion; the polynomial carries it on.
    y = y * _power_of_two(where(power == power, power, np.float32(0.0)))
    return where(x < _SMALLEST, np.float32(0.0), y)
