"""Device functions shared by the Triton kernels: bilinear sampling of one axis, packed 16-bit interpolation, loads.

A sample lies at pixel position (x, y) of a level whose cell centres have integer positions. It is described by a *base
cell* (the upper left of four) and by two weights per axis, the values of the tent `max(0, 1 - |distance|)` at the base
cell and at its successor. The base cell is clamped into the level, so all four cells exist; a corner outside the level
then has distance >= 1 and weight 0, and so has every corner of a position that is NaN, infinite or far away. No mask is
needed and one index serves four loads.

Two origins are in use: `axis_cell`, which the forward kernels call, takes pixel positions minus 0.5, so that the
subtraction costs no instruction per sample; `backward_samples.locate` takes pixel positions themselves.

What a weight of zero multiplies must be finite. Kernels therefore load without masks, test their sums at the end
(`any_not_finite`), and repeat the rare tile that fails with MASKED loads, which skip corners of weight zero.

Functions that take `PTX` use inline assembly on NVIDIA GPUs (one instruction instead of two to eight); elsewhere, and
in Triton's interpreter, the same step is plain arithmetic. Those marked "NVIDIA only" have no such second form.
"""

import triton
import triton.language as tl

# Adding 1.5 * 2^23 to a float32 of magnitude below 2^22 rounds it to an integer, which the low mantissa bits then hold.
ROUND = tl.constexpr(12582912.0)
ROUND_BITS = tl.constexpr(0x4B400000)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tent(distance, PTX: tl.constexpr):
    """max(0, 1 - |distance|) in float32, 0 for NaN."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{ .reg .f32 a; abs.f32 a, $1; sub.sat.f32 $0, 0f3F800000, a; }",
            "=f,f",
            [distance],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.maximum(1.0 - tl.abs(distance), 0.0)


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """2^x in float32 with subnormal results flushed to 0."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def axis_cell(position, size, THIN: tl.constexpr, PTX: tl.constexpr):
    """Base cell of positions along one axis and the tent weights of it and its successor.

    Args:
        position: float32, pixel position minus 0.5, any value.
        size: int32 scalar, cells along the axis.
        THIN: whether an axis of the problem may have a single cell; its successor then gets weight 0.
        PTX: see the top of this file.

    Returns:
        (cell int32 in [0, max(0, size - 2)], near float32, far float32).
    """
    last = size - 2
    if THIN:
        last = tl.maximum(last, 0)
    # Any cell c with c <= position + 0.5 <= c + 1 will do, so rounding to nearest replaces a floor.
    shifted = tl.minimum(tl.maximum(position, 0.0), last.to(tl.float32)) + ROUND
    within = position - (shifted - ROUND)
    near = tent(within + 0.5, PTX)
    far = tent(within - 0.5, PTX)
    if THIN:
        far = tl.where(size > 1, far, 0.0)
    return shifted.to(tl.int32, bitcast=True) - ROUND_BITS, near, far


@triton.jit
def level_size(shapes, starts, level):
    """(height, width, first position) of a level, int32 scalars, from [L, 2] and [L] integer tables."""
    height = tl.load(shapes + 2 * level).to(tl.int32)
    width = tl.load(shapes + 2 * level + 1).to(tl.int32)
    return height, width, tl.load(starts + level).to(tl.int32)


@triton.jit
def cell_offset(index, BYTES: tl.constexpr, WIDE: tl.constexpr):
    """Bytes from cell 0 to cell `index` (int32, not negative), BYTES apart: uint32, or int64 if WIDE.

    One 32-bit number per sample is what travels to the lanes that gather; WIDE is for frames of 2^32 bytes and more.
    """
    if WIDE:
        return index.to(tl.int64) * BYTES
    return index.to(tl.uint32, bitcast=True) * BYTES


@triton.jit
def cell_pointers(base, offset, VECTOR: tl.constexpr):
    """Pointers [N, C] to the cells `offset` [N] (`cell_offset`) beyond the pointers `base` [1, C].

    VECTOR: channels known to be contiguous and aligned together (1, 2, 4, 8).
    """
    BYTES: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
    address = base.to(tl.int64, bitcast=True) + offset.to(tl.int64)[:, None]
    pointers = address.to(base.dtype, bitcast=True)
    return tl.multiple_of(tl.max_contiguous(pointers, [1, VECTOR]), [1, VECTOR * BYTES])


@triton.jit
def any_not_finite(tile):
    """Whether a float32 [N, C] tile holds an infinity or NaN, as a scalar."""
    zero = tl.sum(tl.sum(tile * 0.0, axis=1), axis=0)
    return zero != 0.0


@triton.jit
def pack_pair(low, high, BFLOAT: tl.constexpr):
    """Two float32 tensors rounded to 16 bits, as one int32 tensor: `low` in the low half. NVIDIA only."""
    if BFLOAT:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1
        )
    return tl.inline_asm_elementwise(
        "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def interpolate_packed(v00, v01, v10, v11, top, bottom):
    """Weighted sum of four 16-bit tensors in packed 16-bit arithmetic. NVIDIA only.

    Two neighbouring elements in a lane's registers share the weights of the first, so they must belong to one row: the
    layout is that of loads of at least two channels (VECTOR >= 2).

    v00, v01, v10, v11 are the values at the upper left, upper right, lower left and lower right corner; top and bottom
    are int32 from `pack_pair`, the weights of (left, right), broadcastable to the values.
    """
    BFLOAT: tl.constexpr = v00.dtype == tl.bfloat16
    if BFLOAT:
        # sm_80 and sm_89 have no mul.bf16x2; a product is a multiply-add to -0.
        result = tl.inline_asm_elementwise(
            """{
            .reg .b16 l, r; .reg .b32 a, b, s;
            mov.b32 {l, r}, $5; mov.b32 a, {l, l}; mov.b32 b, {r, r};
            mov.b32 s, 0x80008000; fma.rn.bf16x2 s, $1, a, s; fma.rn.bf16x2 s, $2, b, s;
            mov.b32 {l, r}, $7; mov.b32 a, {l, l}; mov.b32 b, {r, r};
            fma.rn.bf16x2 s, $3, a, s; fma.rn.bf16x2 $0, $4, b, s;
            }""",
            "=r,r,r,r,r,r,r,r,r",
            [v00, v01, v10, v11, top, bottom],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        result = tl.inline_asm_elementwise(
            """{
            .reg .b16 l, r; .reg .b32 a, b, s;
            mov.b32 {l, r}, $5; mov.b32 a, {l, l}; mov.b32 b, {r, r};
            mul.rn.f16x2 s, $1, a; fma.rn.f16x2 s, $2, b, s;
            mov.b32 {l, r}, $7; mov.b32 a, {l, l}; mov.b32 b, {r, r};
            fma.rn.f16x2 s, $3, a, s; fma.rn.f16x2 $0, $4, b, s;
            }""",
            "=r,r,r,r,r,r,r,r,r",
            [v00, v01, v10, v11, top, bottom],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    return result


@triton.jit
def matrix_identity(BFLOAT: tl.constexpr):
    """This lane's part of the 8 x 8 identity, the B operand that makes a matrix instruction an addition. NVIDIA only.

    Lane l holds rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4: a one where they meet, in the low or the high half.
    """
    if BFLOAT:
        one: tl.constexpr = 0x3F80
    else:
        one: tl.constexpr = 0x3C00
    return tl.inline_asm_elementwise(
        """{
        .reg .u32 lane, column, shift; .reg .pred absent;
        mov.u32 lane, %laneid; shr.u32 column, lane, 2;
        and.b32 lane, lane, 3; shl.b32 lane, lane, 1;
        sub.u32 shift, column, lane; setp.gt.u32 absent, shift, 1;
        shl.b32 shift, shift, 4; shl.b32 $0, $1, shift; @absent mov.b32 $0, 0;
        }""",
        "=r,r",
        [one],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def add_by_matrix_unit(total, first, second, identity):
    """Total + first + second, float32 plus two 16-bit tensors of the same shape, exact before rounding. NVIDIA only.

    A lane's share of the A operand of m16n8k16 has the positions of its share of the result, so that multiplying by the
    identity (twice, for the two halves of k) adds element by element, whatever the layout of the tensors.
    """
    BFLOAT: tl.constexpr = first.dtype == tl.bfloat16
    if BFLOAT:
        result = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $8}, {$12, $13, $14, $15};",
            "=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f",
            [first, second, identity, total],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    else:
        result = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $8}, {$12, $13, $14, $15};",
            "=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f",
            [first, second, identity, total],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    return result


@triton.jit
def split_pairs(tile):
    """[N, 2 K] to two [N, K] tensors, the even and the odd columns."""
    rows: tl.constexpr = tile.shape[0]
    half: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.reshape(tile, [rows, half, 2]))


@triton.jit
def column(tile, i: tl.constexpr):
    """Column i of a [N, 1] or [N, 2] tensor, [N]."""
    WIDTH: tl.constexpr = tile.shape[1]
    if WIDTH == 1:
        chosen = tl.reshape(tile, [tile.shape[0]])
    else:
        first, second = tl.split(tile)
        chosen = first if i == 0 else second
    return chosen
