"""Vector operations that numba does not offer, written in LLVM's intermediate representation.

The mass and the three momenta of a cell are adjacent in memory, so that a particle contributes to a
cell by one addition of four 64-bit integers. numba disables the compiler's merging of scalar
operations into vectors and has no stores that bypass the cache. LLVM maps these vectors to the
instructions of the processor; they are correct on any processor.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE: Final = 16
"""float32 in a cache line."""
UNPACKED: Final = 4
"""Cells unpacked at once."""

# A float64 from 2**52 on is a multiple of 1: adding this rounds any number up to 2**51 in size to
# the nearest integer, half to even, and leaves that in the lower bits.
_MAGIC: Final = float(2**52 + 2**51)
_MAGIC_BITS: Final = int(np.float64(_MAGIC).view(np.int64))

# Converts an integer from -2**63 to 2**63 to float64 without the conversion instruction, which AVX2
# lacks for vectors: the two halves go into the mantissas of 2**52 and, with the sign bit flipped,
# of 2**84.
_LOW_MASK: Final = 2**32 - 1
_LOW_BITS: Final = 0x4330000000000000
_HIGH_BITS: Final = 0x4530000080000000
_HALVES: Final = float(2**84 + 2**63 + 2**52)

_F32, _F64, _I64, _I32 = ir.FloatType(), ir.DoubleType(), ir.IntType(64), ir.IntType(32)


def _vector(builder: Any, scalars: list[Any]) -> Any:
    """Build a vector of scalars."""
    vector = ir.Constant(ir.VectorType(scalars[0].type, len(scalars)), ir.Undefined)
    for lane, scalar in enumerate(scalars):
        vector = builder.insert_element(vector, scalar, ir.Constant(_I32, lane))
    return vector


def _same(kind: Any, value: float, lanes: int) -> Any:
    """Build a constant vector of equal numbers."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _tuple(builder: Any, value: Any, length: int) -> list[Any]:
    """Take a tuple apart."""
    return [builder.extract_value(value, k) for k in range(length)]


def _element(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    """Return a pointer to a vector of elements of a contiguous array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(vector))


@intrinsic
def spread(typing_context, grid, start, step_x, step_y, amounts, wx, wy, wz, shift):  # type: ignore[no-untyped-def]
    """Add the cloud of one particle to fixed-point sums.

    Parameters
    ----------
    grid : (n,) int64
        Sums, with channels adjacent.
    start, step_x, step_y : int64
        Index of the cloud's first number, and steps along x and y, in numbers.
    amounts : tuple of 1 or 4 float64
        Amounts to distribute, in fixed-point units, one per channel.
    wx, wy, wz : tuple of float64
        Shares of the cells along the axes; the length is the order of the scheme.
    shift : int64 or None
        Bits by which the rounded numbers are shifted left.

    Notes
    -----
    A cell gets ``rint(((amount * wx) * wy) * wz)``. Every operation is rounded by the IEEE rules
    and none are fused, so that the sums are the same on every processor.
    """
    order, channels = len(wx), len(amounts)
    signature = types.void(grid, start, step_x, step_y, amounts, wx, wy, wz, shift)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        start, step_x, step_y = args[1:4]
        numbers = _tuple(builder, args[4], channels)
        along_x, along_y, along_z = (_tuple(builder, w, order) for w in args[5:8])
        if channels > 1:  # lanes are channels
            lanes = channels
            whole = _vector(builder, numbers)
            columns = [_vector(builder, [w] * lanes) for w in along_z]
        else:  # lanes are cells along z
            lanes = order
            whole = _vector(builder, numbers * lanes)
            columns = [_vector(builder, along_z)]
        integers = ir.VectorType(_I64, lanes)
        for i in range(order):
            plane = builder.fmul(whole, _vector(builder, [along_x[i]] * lanes))
            for j in range(order):
                row = builder.fmul(plane, _vector(builder, [along_y[j]] * lanes))
                at = builder.add(
                    builder.add(start, builder.mul(step_x, ir.Constant(_I64, i))),
                    builder.mul(step_y, ir.Constant(_I64, j)),
                )
                for k, column in enumerate(columns):
                    amount = builder.fadd(builder.fmul(row, column), _same(_F64, _MAGIC, lanes))
                    rounded = builder.sub(
                        builder.bitcast(amount, integers), _same(_I64, _MAGIC_BITS, lanes)
                    )
                    if not isinstance(kinds[8], types.NoneType):
                        rounded = builder.shl(rounded, _vector(builder, [args[8]] * lanes))
                    place = builder.add(at, ir.Constant(_I64, k * channels))
                    pointer = _element(context, builder, kinds[0], args[0], place, integers)
                    old = builder.load(pointer, align=8)
                    builder.store(builder.add(old, rounded), pointer, align=8)
        return context.get_dummy_value()

    return signature, generate


def _as_floats(builder: Any, integers: Any) -> Any:
    """Convert a vector of int64 to float64, rounded once."""
    lanes = integers.type.count
    floats = ir.VectorType(_F64, lanes)
    high = builder.xor(
        builder.lshr(integers, _same(_I64, 32, lanes)), _same(_I64, _HIGH_BITS, lanes)
    )
    low = builder.or_(
        builder.and_(integers, _same(_I64, _LOW_MASK, lanes)), _same(_I64, _LOW_BITS, lanes)
    )
    upper = builder.fsub(builder.bitcast(high, floats), _same(_F64, _HALVES, lanes))
    return builder.fadd(upper, builder.bitcast(low, floats))


@intrinsic
def unpack(typing_context, sums, start, room, at):  # type: ignore[no-untyped-def]
    """Convert the sums of UNPACKED cells to float64, channel by channel.

    Parameters
    ----------
    sums : (n,) int64
        Sums with channels adjacent; the first channel of the first cell is at ``start``.
    room : tuple of 1 or 4 (m,) float64
        Output arrays of the channels, written from element ``at`` on.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        lanes, channels = UNPACKED, len(kinds[2])
        integers, floats = ir.VectorType(_I64, lanes), ir.VectorType(_F64, lanes)
        columns = []
        for step in range(channels):
            place = builder.add(args[1], ir.Constant(_I64, step * lanes))
            pointer = _element(context, builder, kinds[0], args[0], place, integers)
            columns.append(_as_floats(builder, builder.load(pointer, align=8)))
        if channels > 1:
            columns = _transpose(builder, columns)
        for column, array in zip(columns, _tuple(builder, args[2], channels), strict=True):
            pointer = _element(context, builder, kinds[2].dtype, array, args[3], floats)
            builder.store(column, pointer, align=8)
        return context.get_dummy_value()

    return types.void(sums, start, room, at), generate


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose four vectors of four."""

    def pick(a: Any, b: Any, *lanes: int) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, 4), list(lanes)))

    a, b, c, d = rows
    even_ab, odd_ab = pick(a, b, 0, 4, 2, 6), pick(a, b, 1, 5, 3, 7)
    even_cd, odd_cd = pick(c, d, 0, 4, 2, 6), pick(c, d, 1, 5, 3, 7)
    return [
        pick(even_ab, even_cd, 0, 1, 4, 5),
        pick(odd_ab, odd_cd, 0, 1, 4, 5),
        pick(even_ab, even_cd, 2, 3, 6, 7),
        pick(odd_ab, odd_cd, 2, 3, 6, 7),
    ]


@intrinsic
def stream(typing_context, source, first, factor, target, at):  # type: ignore[no-untyped-def]
    """Write a cache line of float64 times a factor as float32, bypassing the cache.

    An ordinary store first reads the cache line, which for fields larger than the cache takes three
    times as long (measured).

    Parameters
    ----------
    source : (n,) float64
        Array from which LINE numbers are taken, from ``first`` on.
    factor : float64
        Factor on the numbers.
    target : (m,) float32
        Contiguous array whose element ``at`` begins a cache line.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, narrow = ir.VectorType(_F64, LINE), ir.VectorType(_F32, LINE)
        kinds = signature.args
        numbers = builder.load(
            _element(context, builder, kinds[0], args[0], args[1], wide), align=8
        )
        product = builder.fmul(numbers, _vector(builder, [args[2]] * LINE))
        written = builder.store(
            builder.fptrunc(product, narrow),
            _element(context, builder, kinds[3], args[3], args[4], narrow),
            align=4 * LINE,
        )
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
        return context.get_dummy_value()

    return types.void(source, first, factor, target, at), generate


@intrinsic
def finish_streams(typing_context):  # type: ignore[no-untyped-def]
    """Make streamed data visible to other threads before any later operation."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def address(typing_context, array):  # type: ignore[no-untyped-def]
    """Return the address of an array's first element."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, _I64)

    return types.int64(array), generate


def _at(kind: Any) -> Any:
    """Make the intrinsic that reads a number of a given type at an address and an index."""

    def read(typing_context, start, index):  # type: ignore[no-untyped-def]
        result, scalar = (types.float32, _F32) if kind == "float32" else (types.float64, _F64)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = builder.inttoptr(args[0], ir.PointerType(scalar))
            return builder.load(builder.gep(data, [args[1]]))

        return result(start, index), generate

    return intrinsic(read)


float32_at: Any = _at("float32")
"""Element ``index`` of the float32 array at an address."""
float64_at: Any = _at("float64")
"""Element ``index`` of the float64 array at an address."""


@intrinsic
def prefetch(typing_context, start, index):  # type: ignore[no-untyped-def]
    """Prefetch the cache line of element ``index`` of the float32 array at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.PointerType(ir.IntType(8))
        data = builder.inttoptr(args[0], ir.PointerType(_F32))
        place = builder.bitcast(builder.gep(data, [args[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
        # For reading, kept in all cache levels, data.
        builder.call(function, [place, *(ir.Constant(_I32, k) for k in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(start, index), generate
